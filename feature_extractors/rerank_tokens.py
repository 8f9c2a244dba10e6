"""What VAST's matching head needs of a store's test split, kept beside the store (`--save-rerank-tokens`), and matching by it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calmrl_lab.errors import CalmrlError
from calmrl_lab.runtime.progress import progress
from calmrl_lab.store import FeatureStore
from feature_extractors import retry_failed as retrying
from feature_extractors.encoder_setup import facts
from feature_extractors.encoders import encoders
from feature_extractors.encoders.vast.batching import PRECISIONS
from feature_extractors.encoders.vast.rerank.condition_tokens import keep_tokens, rerank_kept, vast_encoders
from feature_extractors.encoders.vast.rerank.matching import TOP, Matcher
from feature_extractors.encoders.vast.rerank.token_file import TokenFile, tokens_folder
from feature_extractors.fingerprints import fingerprint
from feature_extractors.protocols import Manifest
from feature_extractors.request import resolve_request
from feature_extractors.workers.encode_block import media_of

SPLIT = "test"
Matching = Callable[[np.ndarray, Sequence[str], Sequence[str], str], np.ndarray]


def check_request(
    dataset: str,
    preset: str | None = None,
    media: Path | None = None,
    weights: Path | None = None,
    options: Mapping[str, Any] | None = None,
    encoder_options: Mapping[str, Mapping[str, Any]] | None = None,
    precision: str | None = None,
    completes: Path | None = None,
) -> None:
    """CalmrlError if tokens could not be kept after an extraction of this: other encoders than VAST's, no test items.

    `completes`: the store that the extraction goes on with, if it does.
    """
    before = FeatureStore.open(completes) if completes is not None else None
    request = resolve_request(dataset, preset, media, weights, "cpu", options, encoder_options, precision, before)
    vast_encoders(request.equipment.encoders())
    if not any(item.split == SPLIT for item in request.manifest.items):
        raise CalmrlError(f"dataset '{request.manifest.dataset}' has no items in split '{SPLIT}', of which tokens are kept")


def keep_test_tokens(
    dataset: str,
    store: Path,
    preset: str | None = None,
    media: Path | None = None,
    weights: Path | None = None,
    workers: int | None = None,
    device: str = "auto",
    options: Mapping[str, Any] | None = None,
    encoder_options: Mapping[str, Mapping[str, Any]] | None = None,
    precision: str | None = None,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write the condition tokens of the test items of the extracted `store` into `tokens_folder(store)`; counts `kept` and `left_out`.

    The arguments are those the store was extracted with; `overwrite` replaces tokens that are there. Raises CalmrlError if the encoders are
    not VAST's, or the encoders or the items are not those of the store.
    """
    from calmrl_lab.runtime.devices import resolve

    made = FeatureStore.open(store)
    request = resolve_request(
        dataset, preset, media, weights, str(resolve(device)), options, encoder_options, precision, completes=made
    )
    vast_encoders(request.equipment.encoders())
    if set(request.equipment.choice) != set(made.modalities):
        raise CalmrlError(
            f"'{store}' has the modalities {', '.join(made.modalities)}; the request is for {', '.join(request.equipment.choice)}",
            hint="give the same --encoders as when it was extracted, or none",
        )
    retrying.check_encoders(made, facts(request.equipment))
    _check_captions(made, request.manifest)
    count = sum(item.split == SPLIT for item in request.manifest.items)
    with progress("keeping condition tokens", count) as task:
        return keep_tokens(
            request.manifest,
            request.equipment.encoders(),
            tokens_folder(store),
            _mark(made),
            media,
            SPLIT,
            workers or 4,
            overwrite,
            task.advance,
            request.equipment.followed,
        )


def _check_captions(store: FeatureStore, manifest: Manifest) -> None:
    """CalmrlError if a test item of the store has another number of captions in the manifest: the rows would not be theirs."""
    stored = dict(zip(store.ids.tolist(), np.diff(store.offsets("caption")).tolist(), strict=True))
    asked = Counter(manifest.items[index].id for index, _ in media_of(manifest.items, "caption"))
    for name in store.ids[store.split == SPLIT].tolist():
        if asked[name] != stored[name]:
            raise CalmrlError(
                f"item '{name}' has {stored[name]} captions in '{store.path}', and {asked[name]} now",
                hint="give the same --set and --media as when it was extracted, or extract it again with --overwrite",
            )


def kept_matching(store: FeatureStore, weights: Path | None, device: str = "cpu", top: int = TOP) -> Matching:
    """Re-scores the `top` candidates of every query by the matching head of `weights`, from the tokens kept beside `store`.

    Raises CalmrlError if no tokens were kept, or if they or the weights are not those of the store.
    """
    tokens = TokenFile(tokens_folder(store.path))
    if tokens.fingerprint != _mark(store):
        raise CalmrlError(
            f"the tokens in '{tokens.path}' are not those of '{store.path}' as it is now",
            hint="remove that folder, and calmrl-lab extract --save-rerank-tokens makes it anew",
        )
    spec = store.spec("caption")
    encoder = encoders.get(spec.encoder)(weights=weights)
    precision = next((p for p in PRECISIONS if _fingerprint(spec.encoder, weights, p) == spec.fingerprint), None)
    if precision is None:
        raise CalmrlError(f"'{weights}' are not the weights that '{store.path}' was made with", hint="give its own --weights")
    matcher = Matcher(encoder.checkpoint, device, precision)

    def match(similarity: np.ndarray, caption_items: Sequence[str], clips: Sequence[str], asking: str) -> np.ndarray:
        with progress(f"matching, {asking} ask", len(clips), "clips") as task:
            return rerank_kept(similarity, caption_items, clips, tokens, matcher, top, asking, task.advance)

    return match


def _mark(store: FeatureStore) -> str:
    """What its tokens are marked with: its content, encoders and gaps included, so that tokens of a completed store are not taken for its own."""
    return fingerprint({"store": store.digest}, {})


def _fingerprint(name: str, weights: Path | None, precision: str) -> str:
    return str(encoders.get(name)(weights=weights, precision=precision).fingerprint)
