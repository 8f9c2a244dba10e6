"""A dry run of extraction: items, splits, captions per item and missing files, without decoding a medium or loading an encoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calmrl_lab.errors import CalmrlError
from feature_extractors import request_checks as planning
from feature_extractors.datasets import datasets
from feature_extractors.protocols import File, Item, Manifest
from feature_extractors.request import check_links, followed_folders
from feature_extractors.workers.single_thread import one_thread

_SHOWN = 3


def dry_run(
    dataset: str, preset: str | None = None, media: Path | None = None, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What `extract` would read of a dataset, in the words of its arguments.

    Returns `dataset`, `items`, `splits` {name: items}, `groups`, and a record for each modality: its encoder (None without a preset), the items
    that have it, its rows, rows per item (least, mean, most), files that are there, missing and empty, and the first that are missing. `without`: modalities of the dataset's first preset that no item has.
    Raises CalmrlError for names, options and tables that make no sense.
    """
    source = datasets.get(dataset)
    preset = planning.preset_meant(source.presets, preset)
    choice = planning.choose_encoders(dataset, source.presets, preset) if preset is not None or source.presets else {}
    named = preset or next(iter(source.presets), None)
    implied = getattr(source, "preset_options", {}).get(named, {})
    with one_thread():
        made = source(media=media, **{**implied, **(options or {})})
        if hasattr(made, "expects_media"):
            made.expects_media = False
        manifest: Manifest = made.manifest()
    if not manifest.items:
        raise CalmrlError(f"dataset '{dataset}' has no items", hint="look at its table or annotation files")
    if preset is not None:
        # A preset that was asked for must fit; the first of a dataset is only what it starts with.
        planning.checked_manifest(manifest, choice)
    check_links(manifest, media, followed_folders(options or {}))
    wanted = [name for name in manifest.modalities if not choice or name in choice]
    return {
        "dataset": manifest.dataset,
        "items": len(manifest.items),
        "splits": dict(Counter(item.split for item in manifest.items)),
        "groups": len({item.group or item.id for item in manifest.items}),
        "modalities": {name: {"encoder": choice.get(name), **_modality(manifest.items, name)} for name in wanted},
        "without": [name for name in choice if name not in manifest.modalities],
    }


def _modality(items: tuple[Item, ...], name: str) -> dict[str, Any]:
    rows = [len(item.media.get(name, ())) for item in items]
    files = [medium.path for item in items for medium in item.media.get(name, ()) if isinstance(medium, File)]
    sizes = {path: _size(path) for path in dict.fromkeys(files)}
    missing = [path for path in files if sizes[path] is None]
    observed = [count for count in rows if count]
    return {
        "items": len(observed),
        "rows": sum(rows),
        "rows_an_item": [min(observed), round(sum(observed) / len(observed), 2), max(observed)] if observed else [0, 0, 0],
        "files": len(files),
        "files_missing": len(missing),
        "files_empty": sum(sizes[path] == 0 for path in files),
        "first_missing": [str(path) for path in missing[:_SHOWN]],
    }


def _size(path: Path) -> int | None:
    """Bytes of a file, 1 for a folder (of frames), None if there is nothing."""
    try:
        return 1 if path.is_dir() else path.stat().st_size
    except (OSError, ValueError):
        return None
