"""Condition tokens of a split kept beside its store, so that captions and clips can be matched later without the media."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from calmrl_lab.errors import CalmrlError
from feature_extractors.encoders import encoders
from feature_extractors.encoders.vast.encoder import VastEncoder
from feature_extractors.encoders.vast.matching import TOP, Matcher, rerank
from feature_extractors.encoders.vast.token_file import TokenFile, TokenWriter
from feature_extractors.fingerprints import fingerprint
from feature_extractors.protocols import AbsentError, File, Item, Manifest, MediaError

_CONDITIONS = ("vision", "audio", "subtitle")


def keep_tokens(
    manifest: Manifest,
    choice: Mapping[str, str],
    path: Path,
    weights: Path,
    media: Path | None = None,
    split: str = "test",
    device: str = "cpu",
    workers: int = 4,
    precision: str = "fp32",
    progress: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """Encode the items of one split once more, all tokens instead of pooled ones, and write their condition tokens to `path`.

    `choice` maps modalities to VAST's encoders (as a preset does; `caption` is needed for its tokenizer). A modality that is absent or
    fails gives no tokens (extraction itself records why), and an item without any is left out. `workers` threads decode ahead.
    Returns counts: `kept`, `left_out`. Raises CalmrlError for encoders that are not VAST's or a split without items.
    """
    kinds = {m: encoders.get(choice[m]) for m in (*_CONDITIONS, "caption") if m in choice}
    foreign = [choice[m] for m, kind in kinds.items() if not (isinstance(kind, type) and issubclass(kind, VastEncoder))]
    if foreign or "caption" not in kinds:
        what = f"the encoder '{foreign[0]}' is" if foreign else "no encoder of captions is"
        raise CalmrlError(f"condition tokens need VAST's encoders, and {what} among those chosen", hint="--encoders vast-paper")
    made: dict[str, VastEncoder] = {m: kind(device=device, weights=weights, precision=precision) for m, kind in kinds.items()}
    items = [item for item in manifest.items if item.split == split]
    if not items:
        raise CalmrlError(f"dataset '{manifest.dataset}' has no items in split '{split}'")
    checkpoint = made["caption"].checkpoint
    for encoder in made.values():
        encoder.__dict__["checkpoint"] = checkpoint  # read and checked once, not once a modality
    matcher = Matcher(checkpoint, device, precision)
    parts = [f"{m} {made[m].fingerprint}" for m in sorted(made)]
    kept = 0
    with TokenWriter(path, matcher.width, fingerprint({"parts": " ".join(parts)}, {})) as writer:
        for item, prepared in _ahead(items, lambda item: _prepare(made, item, media), workers):
            tokens = {m: made[m].tokens([prepared[m]])[0] for m in _CONDITIONS if m in prepared}
            if tokens:
                captions = [made["caption"].prepare(medium) for medium in item.media.get("caption", ())]
                writer.add(item.id, matcher.condition(**tokens), captions)
                kept += 1
            if progress is not None:
                progress(1)
    return {"kept": kept, "left_out": len(items) - kept}


def _prepare(made: Mapping[str, VastEncoder], item: Item, media: Path | None) -> dict[str, np.ndarray]:
    """The prepared media of one item, by modality; what is absent, fails or lies outside `media` is not in it."""
    prepared = {}
    for modality in _CONDITIONS:
        for medium in item.media.get(modality, ()) if modality in made else ():
            if isinstance(medium, File) and media is not None and not medium.path.resolve().is_relative_to(media.resolve()):
                break
            with suppress(AbsentError, MediaError, OSError):
                prepared[modality] = made[modality].prepare(medium)
            break
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
    item `clips[j]`. Raises CalmrlError if an item's tokens were not kept or it has fewer captions there.
    """
    seen: Counter[str] = Counter()
    captions = []
    for name in caption_items:
        known = tokens.captions[tokens.place(name)]
        if seen[name] >= len(known):
            raise CalmrlError(f"item '{name}' has {len(known)} captions in '{tokens.path}', and more in the store")
        captions.append(known[seen[name]])
        seen[name] += 1
    places = [tokens.place(name) for name in clips]
    return rerank(similarity, captions, lambda clip: tokens.condition(places[clip]), matcher, top, queries, progress)
