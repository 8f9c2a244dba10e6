"""An index as a web service: `/search` by vectors, text or an item's id, as JSON, and a small page to try it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from calmrl_lab.config import Settings
from calmrl_lab.errors import CalmrlError, missing_extra
from calmrl_lab.search.index_folder import Gallery

if TYPE_CHECKING:
    from fastapi import FastAPI, Request

# Largest request in bytes: 1,000 vectors of 1,000 numbers as text.
MOST_BYTES = 16_000_000
_PAGE = Path(__file__).with_name("page")
# The page runs its own script and shows its own pictures, and nothing from anywhere else.
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

# (modality, text) -> features [1, d]; (modality, id) -> features [n, d]; id -> a data URI, a character, or nothing
Encode = Callable[[str, str], np.ndarray]
Picture = Callable[[str], str]


class Query(Settings):
    """The body of a request to /search: one of `vectors` (features of `modality`, one list per query), `text` and `item`."""

    vectors: Annotated[list[Annotated[list[float], Field(max_length=65_536)]], Field(min_length=1, max_length=1000)] | None = (
        None
    )
    text: str | None = Field(None, min_length=1, max_length=2000)
    item: str | None = Field(None, min_length=1, max_length=1000)
    modality: str | None = Field(None, max_length=200)
    k: int = Field(10, ge=1, le=1000)
    effort: int | None = Field(None, ge=1, le=1_000_000)
    labels: dict[str, str] = Field(default_factory=dict, max_length=20)

    @model_validator(mode="after")
    def _one_source(self) -> Query:
        if sum(source is not None for source in (self.vectors, self.text, self.item)) != 1:
            raise ValueError("a search needs one of vectors, text and item")
        return self


def make_app(gallery: Gallery, encode: Encode, features_of: Encode, picture: Picture, hosts: list[str]) -> FastAPI:
    """The service over an open `gallery`: GET / (page), GET /about, GET /picture?item=ID, POST /search.

    `encode` makes features of a text, `features_of` looks up those of an item, `picture` is what an item looks like (a data URI, a character or
    ""). Requests for other `hosts` are refused, so that pages of others cannot ask in a reader's name. What makes no sense is answered by
    400 and a sentence, what is malformed by 422. Raises MissingExtraError without FastAPI.
    """
    try:
        from fastapi import FastAPI
        from fastapi.responses import FileResponse, JSONResponse, Response
        from starlette.middleware.trustedhost import TrustedHostMiddleware
    except ImportError:
        raise missing_extra("fastapi", "serve", "calmrl-lab serve") from None

    app = FastAPI(title="calmrl-lab", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)

    @app.middleware("http")
    async def guarded(request: Request, answer: Any) -> Any:
        length = request.headers.get("content-length", "")
        if request.method == "POST" and not (length.isdecimal() and int(length) <= MOST_BYTES):
            return JSONResponse({"error": f"a request says its length, at most {MOST_BYTES} bytes"}, 413)
        response = await answer(request)
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    @app.exception_handler(CalmrlError)
    async def refused(_: Request, error: CalmrlError) -> JSONResponse:
        return JSONResponse({"error": _without_paths(gallery, error.message)}, 400)

    @app.get("/about")
    def about() -> dict[str, Any]:
        facts = {key: gallery.facts[key] for key in ("run", "items", "kind", "scorer", "modalities", "dim")}
        labels = [name.removeprefix("label.") for name in gallery.items.columns if name.startswith("label.")]
        return {**facts, "queries": list(gallery.modalities), "labels": labels}

    @app.get("/picture")
    def shown(item: str) -> dict[str, str]:
        gallery.position(item)
        return {"picture": picture(item)}

    def search(query: Query) -> dict[str, Any]:
        return {"results": gallery.records(_asked(gallery, query, encode, features_of), query.k, query.effort, query.labels)}

    # Annotations of inner functions are text here, which FastAPI cannot look up.
    search.__annotations__["query"] = Query
    app.post("/search")(search)

    def file(name: str, kind: str) -> Callable[[], Response]:
        return lambda: FileResponse(_PAGE / name, media_type=kind)

    for route, name, kind in (
        ("/", "index.html", "text/html"),
        ("/page.js", "page.js", "text/javascript"),
        ("/page.css", "page.css", "text/css"),
    ):
        app.get(route, include_in_schema=False, response_model=None)(file(name, kind))
    return app


def _asked(gallery: Gallery, query: Query, encode: Encode, features_of: Encode) -> np.ndarray:
    """Query vectors of a request."""
    modality = query.modality or ("caption" if "caption" in gallery.modalities else gallery.modalities[0])
    if query.vectors is not None:
        if len({len(row) for row in query.vectors}) > 1:
            raise CalmrlError("the vectors of a request have one length")
        return gallery.embed(modality, np.array(query.vectors, dtype=np.float64))
    if query.text is not None:
        return gallery.embed(modality, encode(modality, query.text))
    assert query.item is not None
    return gallery.embed(modality, features_of(modality, query.item))


def _without_paths(gallery: Gallery, message: str) -> str:
    """An error for readers elsewhere, who need not know the folders of this machine."""
    return message.replace(f"index '{gallery.path}'", "the index").replace(
        f"store '{gallery.facts['store']['path']}'", "the store"
    )
