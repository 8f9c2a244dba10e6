"""Condition tokens of a split kept beside its store, so that captions and clips can be matched later without the media."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Float, Float64

from calmrl_lab.errors import CalmrlError
from feature_extractors.encoders.vast.encoder import VastEncoder
from feature_extractors.encoders.vast.rerank.matching import TOP, Matcher, rerank
from feature_extractors.encoders.vast.rerank.token_file import TokenFile, writing_tokens
from feature_extractors.media.links import AllowedPlaces
from feature_extractors.protocols import Encoder, File, Item, Manifest, bare
from feature_extractors.workers.prepare import attempt

_CONDITIONS = ("vision", "audio", "subtitle")


def keep_tokens(
    manifest: Manifest,
    encoders: Mapping[str, Encoder],
    path: Path,
    mark: str,
    media: Path | None = None,
    split: str = "test",
    workers: int = 4,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
    followed: Sequence[Path] = (),
) -> dict[str, int]:
    """Encode the items of one split once more, all tokens instead of pooled ones, and write their condition tokens to `path`.

    `encoders` maps modalities to VAST's encoders (`caption` is needed for its tokenizer). `mark` names what the tokens belong to. A
    modality that is absent or fails gives no tokens (extraction itself records why), and an item without any is left out. `workers`
    threads decode ahead. `followed`: folders that links in `media` may lead to. Tokens that are there already, of the same mark, stay, unless `overwrite` replaces them. Returns counts:
    `kept`, `left_out`. Raises CalmrlError for encoders that are not VAST's, a split without items, or tokens of another mark in the way.
    """
    made = vast_encoders(encoders)
    items = [item for item in manifest.items if item.split == split]
    if not items:
        raise CalmrlError(f"dataset '{manifest.dataset}' has no items in split '{split}'")
    if path.exists() and not overwrite:
        there = TokenFile(path)
        if there.fingerprint != mark:
            raise CalmrlError(f"'{path}' holds the tokens of another store", hint="remove it, and they are made anew")
        return {"kept": len(there.ids), "left_out": len(items) - len(there.ids)}
    checkpoint = made["caption"].checkpoint
    for encoder in made.values():
        encoder.__dict__["checkpoint"] = checkpoint  # read and checked once, not once per modality
    places = AllowedPlaces(media, followed) if media is not None else None
    matcher = Matcher(checkpoint, made["caption"].device, made["caption"].precision)
    kept = 0
    with writing_tokens(path, matcher.width, mark, overwrite) as writer:
        for item, prepared in _ahead(items, lambda item: _prepare(made, item, places), workers):
            tokens = {m: made[m].tokens([prepared[m]])[0] for m in _CONDITIONS if m in prepared}
            # What an encoder cannot make sense of has no feature in the store either.
            tokens = {m: values for m, values in tokens.items() if np.isfinite(values).all()}
            if tokens:
                captions = [made["caption"].prepare(medium) for medium in item.media.get("caption", ())]
                writer.add(item.id, matcher.condition(**tokens), captions)
                kept += 1
            if progress is not None:
                progress(1)
    return {"kept": kept, "left_out": len(items) - kept}


def vast_encoders(encoders: Mapping[str, Encoder]) -> dict[str, VastEncoder]:
    """Those of `encoders` that matching needs. Raises CalmrlError if one is not VAST's, or there is none of captions."""
    wanted = {m: encoders[m] for m in (*_CONDITIONS, "caption") if m in encoders}
    made: dict[str, VastEncoder] = {}
    for modality, encoder in wanted.items():
        if isinstance(encoder, VastEncoder):
            made[modality] = encoder
    foreign = [m for m in wanted if m not in made]
    if foreign or "caption" not in made:
        what = f"the encoder of '{foreign[0]}' is another" if foreign else "there is no encoder of captions"
        raise CalmrlError(f"condition tokens need VAST's encoders, and {what}", hint="--encoders vast-paper")
    return made


def _prepare(made: Mapping[str, VastEncoder], item: Item, places: AllowedPlaces | None) -> dict[str, np.ndarray]:
    """The prepared media of one item, by modality; what is absent, fails or lies outside `places` is not in it."""
    prepared = {}
    for modality in _CONDITIONS:
        for medium in item.media.get(modality, ())[:1] if modality in made else ():
            file = bare(medium)
            if isinstance(file, File) and places is not None and not places.holds(file.path):
                continue
            with suppress(OSError):
                outcome = attempt(cast(Encoder, made[modality]), medium, None)
                if isinstance(outcome, np.ndarray):
                    prepared[modality] = outcome
    return prepared


def _ahead(items: Sequence[Item], function: Callable[[Item], Any], workers: int) -> Iterator[tuple[Item, Any]]:
    """`function` of each item, in order, computed by threads at most two items a thread ahead."""
    with ThreadPoolExecutor(workers) as threads:
        waiting = deque((item, threads.submit(function, item)) for item in items[: 2 * workers])
        for item in [*items[2 * workers :], *[None] * len(waiting)]:
            done, future = waiting.popleft()
            if item is not None:
                waiting.append((item, threads.submit(function, item)))
            yield done, future.result()


def rerank_kept(
    similarity: Float[np.ndarray, "captions clips"],
    caption_items: Sequence[str],
    clips: Sequence[str],
    tokens: TokenFile,
    matcher: Matcher,
    top: int = TOP,
    queries: str = "captions",
    progress: Callable[[int], None] | None = None,
) -> Float64[np.ndarray, "captions clips"]:
    """`matching.rerank` with everything read from kept tokens.

    Row r of `similarity` is a caption of the item `caption_items[r]` (the captions of an item in the order of its store rows), column j the
    item `clips[j]`. Raises CalmrlError if an item's tokens were not kept or it has another number of captions there: then nobody
    knows which of them is meant.
    """
    for name, rows in Counter(caption_items).items():
        known = len(tokens.captions[tokens.place(name)])
        if known != rows:
            raise CalmrlError(
                f"item '{name}' has {known} captions in '{tokens.path}' and {rows} in the store",
                hint="remove that folder, and calmrl-lab extract --save-rerank-tokens makes it anew",
            )
    seen: Counter[str] = Counter()
    captions = []
    for name in caption_items:
        captions.append(tokens.captions[tokens.place(name)][seen[name]])
        seen[name] += 1
    places = [tokens.place(name) for name in clips]
    return rerank(similarity, captions, lambda clip: tokens.condition(places[clip]), matcher, top, queries, progress)
