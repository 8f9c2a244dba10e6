"""`calmrl-lab serve`: an index as a web service."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from calmrl_lab.runtime import console

if TYPE_CHECKING:
    import numpy as np

    from calmrl_lab.search.index_folder import Gallery


def register(app: typer.Typer) -> None:
    app.command("serve")(serve)


def serve(
    index: Path = typer.Option(..., help="Index folder (calmrl-lab index)."),
    host: str = typer.Option("127.0.0.1", help="Address to listen on; the default is reached from this machine only."),
    port: int = typer.Option(8000, min=0, max=65535, help="Port to listen on; 0 takes a free one."),
    store: Path | None = typer.Option(None, help="Where items are looked up. (default: the indexed store)"),
    weights: Path | None = typer.Option(None, help="Folder of encoder weights, for texts."),
) -> None:
    """Serve an index: POST /search with vectors, text or an item's id, answered as JSON, and a page to try it.

    Example: calmrl-lab serve --index indexes/emoji
    """
    from calmrl_lab.runtime.progress import paused
    from calmrl_lab.search.index_folder import Gallery

    served = _app(Gallery.open(index), host, store, weights)
    with paused():
        _listen(served, host, port)


def _app(gallery: Gallery, host: str, store: Path | None, weights: Path | None) -> Any:
    from calmrl_lab.reporting.output.thumbnails import emoji_picture
    from calmrl_lab.search.item_features import ItemFeatures
    from calmrl_lab.search.server import make_app

    # Like `search`, this command is an edge: it alone brings encoders and cached features together.
    @lru_cache(maxsize=1024)
    def encoded(modality: str, text: str) -> np.ndarray:
        from calmrl_lab.registry import known
        from feature_extractors.text_queries import encode_texts

        known(modality, gallery.modalities, f"index '{gallery.path}' has no modality")
        return encode_texts(gallery.facts["encoders"][modality], modality, [text], weights)

    # A name is needed where others may reach the service; on this machine these are its names.
    hosts = ["127.0.0.1", "localhost", "[::1]"] if host in ("127.0.0.1", "localhost", "::1") else ["*"]
    emoji = gallery.facts["store"]["dataset"].startswith("openmoji")
    return make_app(gallery, encoded, ItemFeatures(gallery, store), emoji_picture if emoji else lambda item: "", hosts)


def _listen(app: Any, host: str, port: int) -> None:
    """Answer until Ctrl-C; the address is printed once it is listened on."""
    import socket

    import uvicorn

    from calmrl_lab.errors import WorkFailedError

    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise WorkFailedError(
            f"{host}:{port} cannot be listened on: {error.strerror or error}", hint="choose another --port"
        ) from None
    console.out.print(f"serving on http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}", soft_wrap=True)
    console.out.file.flush()
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
