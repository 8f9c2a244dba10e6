"""One annotation file as VAST, GRAM and PMRL release them: a JSON list of items with ids, captions, subtitles."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calmrl_lab.errors import CalmrlError
from calmrl_lab.runtime import console

_ID_KEYS = ("clip_id", "video_id", "image_id", "image", "id")
_TEXT_KEYS = ("desc", "caption", "vast_cap")


@dataclass(frozen=True)
class Split:
    """A split and the names its annotation file may have, best first.

    `row_per_caption`: the same id may come in several rows, each with further captions; in other files that is an error.
    """

    name: str
    files: tuple[str, ...]
    row_per_caption: bool = False


@dataclass
class Annotation:
    """What one item's rows say, before its media are looked for."""

    id: str
    raw_id: str
    split: str
    captions: list[str]
    subtitle: str = ""
    extra: dict[str, list[str]] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)


def read_annotations(path: Path, split: Split, extra_keys: Mapping[str, str] | None = None) -> list[Annotation]:
    """The items of one file in its order.

    The id is the first of clip_id, video_id, image_id, image, id, with HTML entities resolved; the text the first of desc,
    caption, vast_cap, a string or a list. A subtitle of white space counts as none. `extra_keys` maps a further text modality to
    its key. Empty captions are left out and counted; an item of which none is left has no caption. Raises CalmrlError for a broken file, a row without id
    or text, a repeated id or a subtitle that is no string.
    """
    found: dict[str, Annotation] = {}
    empty = 0
    for number, row in enumerate(_rows(path)):
        where = f"row {number} of '{path}'"
        if not isinstance(row, dict):
            raise CalmrlError(
                f"{where} is {type(row).__name__}, expected an object", hint="restore the released annotation file"
            )
        raw = _id(row, where)
        captions = _texts(next((row[key] for key in _TEXT_KEYS if key in row), None), f"the caption of '{raw}'", where)
        empty += sum(not caption.strip() for caption in captions)
        captions = [caption for caption in captions if caption.strip()]
        name = html.unescape(raw)
        known = found.get(name)
        if known is None:
            extra = {m: _texts(row[key], f"{key} of '{raw}'", where) for m, key in (extra_keys or {}).items() if row.get(key)}
            found[name] = Annotation(name, raw, split.name, captions, _subtitle(row, raw, where), extra)
        elif split.row_per_caption:
            known.captions += [caption for caption in captions if caption not in known.captions]
        else:
            raise CalmrlError(f"the id '{raw}' comes twice in '{path}' ({where})", hint="remove one of the two rows")
    if empty:
        console.note(f"'{path}': {empty} empty captions are left out")
    return list(found.values())


def _id(row: Mapping[str, Any], where: str) -> str:
    given = next((row[key] for key in _ID_KEYS if row.get(key) is not None), None)
    if isinstance(given, int) and not isinstance(given, bool):
        given = str(given)
    if not isinstance(given, str) or not given.strip():
        got = f"; got {json.dumps(given)[:80]}" if given is not None else ""
        raise CalmrlError(
            f"{where} has no id (looked for a text or a number under {', '.join(_ID_KEYS)}{got})",
            hint="restore the released annotation file",
        )
    return given


def _subtitle(row: Mapping[str, Any], name: str, where: str) -> str:
    subtitle = row.get("subtitle")
    if not isinstance(subtitle, str | None):
        raise CalmrlError(f"the subtitle of '{name}' is no text ({where})", hint="expected one string, or none")
    return subtitle or ""


def _rows(path: Path) -> list[Any]:
    try:
        # Some editors put a byte order mark before the text.
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise CalmrlError(f"the annotation file '{path}' cannot be read: {(error.strerror or 'input error').lower()}") from None
    except UnicodeDecodeError as error:
        raise CalmrlError(f"the annotation file '{path}' is not UTF-8: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise CalmrlError(
            f"the annotation file '{path}' is no valid JSON: {error.msg} in line {error.lineno}, column {error.colno}",
            hint="download it again; a git-lfs pointer or an HTML page looks like this",
        ) from None
    except RecursionError:
        raise CalmrlError(f"the annotation file '{path}' is no list of items: its brackets are nested too deep") from None
    if not isinstance(rows, list) or not rows:
        got = "an empty list" if rows == [] else type(rows).__name__
        raise CalmrlError(f"the annotation file '{path}' holds {got}, expected a list of items")
    return rows


def _texts(value: Any, what: str, where: str) -> list[str]:
    texts = value if isinstance(value, list) else [value]
    if not texts or any(not isinstance(text, str) for text in texts):
        raise CalmrlError(
            f"{what} is no text ({where})", hint=f"expected a string or a list of strings under {', '.join(_TEXT_KEYS)}"
        )
    return texts
