"""What VAST's matching head needs of a store's test split, kept beside the store (`--keep-tokens`)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calmrl_lab import console
from calmrl_lab.store import FeatureStore
from feature_extractors import retrying
from feature_extractors.encoders.vast.condition import keep_tokens
from feature_extractors.encoders.vast.token_file import tokens_folder
from feature_extractors.equipment import facts
from feature_extractors.request import understand

SPLIT = "test"


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

    The arguments are those the store was extracted with; `overwrite` replaces tokens that are there. Raises CalmrlError if the encoders are not VAST's or not those of the store.
    """
    from calmrl_lab.devices import resolve

    made = FeatureStore.open(store)
    request = understand(
        dataset, preset, media, weights, str(resolve(device)), options, encoder_options, precision, completes=made
    )
    retrying.check_encoders(made, facts(request.equipment))
    path = tokens_folder(store)
    if overwrite and path.exists():
        shutil.rmtree(path)
    count = sum(item.split == SPLIT for item in request.manifest.items)
    with console.progress("keeping condition tokens", count) as ticker:
        return keep_tokens(
            request.manifest, request.equipment.encoders(), path, media, SPLIT, workers or 4, lambda done: ticker.advance(done)
        )
