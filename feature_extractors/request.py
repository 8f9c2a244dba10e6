"""An extraction request, resolved: which items, and which encoders with which options."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store import FeatureStore
from feature_extractors import request_checks as planning
from feature_extractors.datasets import datasets
from feature_extractors.encoder_setup import Equipment
from feature_extractors.encoders import encoders
from feature_extractors.media.links import AllowedPlaces
from feature_extractors.protocols import File, Manifest
from feature_extractors.workers.single_thread import one_thread

# The attribute of a store that names the preset it was made with.
PRESET = "preset"
# The option that puts silence and empty texts in place of missing media.
GAPS_AS_SILENCE = "gaps_as_silence"


@dataclass(frozen=True)
class Request:
    """The items with the modalities asked for, and what encodes them. `preset`: the preset's name; None if encoders were named one by one."""

    manifest: Manifest
    equipment: Equipment
    preset: str | None


def resolve_request(
    dataset: str,
    preset: str | None = None,
    media: Path | None = None,
    weights: Path | None = None,
    device: str = "cpu",
    options: Mapping[str, Any] | None = None,
    encoder_options: Mapping[str, Mapping[str, Any]] | None = None,
    precision: str | None = None,
    completes: FeatureStore | None = None,
) -> Request:
    """The request in the words of `extraction.extract`.

    A preset decides some options of its dataset too (`preset_options`: as the code it names reads it); `options` win. `precision` is for every encoder that
    has this option. The option `gaps_as_silence` is of every dataset: silence and empty texts in place of missing sounds and subtitles. `completes`: a store to go on with; without a preset, everything is as it was made.
    Raises CalmrlError for names, options and datasets that make no sense.
    """
    options = dict(options or {})
    silence = options.pop(GAPS_AS_SILENCE, False)
    source = datasets.get(dataset)
    preset = planning.preset_meant(source.presets, preset)
    if completes is not None and preset is None:
        choice = {spec.name: spec.encoder for spec in completes.specs}
        named = completes.attributes.get(PRESET)
    else:
        choice = planning.choose_encoders(dataset, source.presets, preset)
        named = preset or next(iter(source.presets), None)
    implied = getattr(source, "preset_options", {}).get(named, {})
    followed = followed_folders(options or {})
    with one_thread():
        # Datasets may use an encoder to group their items; its last bits must not depend on the number of threads.
        manifest = planning.checked_manifest(source(media=media, **{**implied, **(options or {})}).manifest(), choice)
    check_links(manifest, media, followed)
    kinds = {name: encoders.get(name) for name in choice.values()}
    if silence:
        manifest = planning.gaps_as_silence(manifest, choice, kinds)
    chosen = {m: choice[m] for m in manifest.modalities}
    asked = _with_precision(precision, chosen, kinds, encoder_options or {})
    equipment = Equipment(chosen, kinds, device, weights, media, followed, asked)
    equipment.check_options()
    return Request(manifest, equipment, named if named in source.presets else None)


def followed_folders(options: Mapping[str, Any]) -> tuple[Path, ...]:
    """The folders that links in the media folder may lead to: the option `follow_links`, one folder or several."""
    given = options.get("follow_links") or ()
    return tuple(Path(str(folder)) for folder in ([given] if isinstance(given, str | Path) else given))


def check_links(manifest: Manifest, media: Path | None, followed: Sequence[Path]) -> None:
    """CalmrlError at once if the media of the items lie behind links that lead outside of the media folder."""
    if media is None:
        return
    files = [m.path for item in manifest.items for listed in item.media.values() for m in listed if isinstance(m, File)]
    AllowedPlaces(media, followed).check_files(list(dict.fromkeys(files)))


def _with_precision(
    precision: str | None,
    choice: Mapping[str, str],
    kinds: Mapping[str, Any],
    options: Mapping[str, Mapping[str, Any]],
) -> Mapping[str, Mapping[str, Any]]:
    if precision is None:
        return options
    able = [m for m, name in choice.items() if "precision" in inspect.signature(kinds[name]).parameters]
    if not able:
        raise CalmrlError(
            f"none of the encoders {', '.join(sorted(set(choice.values())))} has a precision to choose",
            hint="leave --precision out",
        )
    return {**options, **{m: {"precision": precision, **options.get(m, {})} for m in able}}
