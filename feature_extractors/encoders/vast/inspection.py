"""What `calmrl-lab weights check` finds in a weights folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calmrl_lab.errors import CalmrlError
from feature_extractors.encoders.vast.checkpoint import (
    LAYOUT,
    architecture_file,
    compare,
    contradictions,
    find_beside,
    find_checkpoint,
    find_vocabulary,
    read_run_settings,
    read_tensors,
    released_names,
    run_folder,
    sizes_of,
)
from feature_extractors.encoders.vast.networks.architecture import PUBLISHED, AudioSizes

_BEATS_FILES = ("beats/BEATs_iter3_plus_AS2M.pt", "BEATs_iter3_plus_AS2M.pt")
_VOCABULARY_LINES = 30522
# Settings of the original BEATs file -> the field here that must agree, or the value that VAST's code fixes.
_BEATS_SETTINGS: Mapping[str, Any] = {
    "encoder_layers": "depth",
    "encoder_embed_dim": "width",
    "encoder_ffn_embed_dim": "mlp",
    "encoder_attention_heads": "heads",
    "embed_dim": "embed",
    "input_patch_size": "patch",
    "conv_pos": "position_kernel",
    "conv_pos_groups": "position_groups",
    "num_buckets": "buckets",
    "max_distance": "max_distance",
    "deep_norm": "deep_norm",
}
_BEATS_FIXED: Mapping[str, Any] = {
    "relative_position_embedding": True,
    "gru_rel_pos": True,
    "layer_norm_first": False,
    "conv_bias": False,
}


def check_weights(folder: Path) -> list[dict[str, str]]:
    """One finding a part: `state` ok, note or bad; `what` was found; what to `do` about it.

    Parts: the checkpoint's tensors one by one, the vocabulary, the sizes in use, BEATs' own settings where its original file is there.
    Nothing in any file is executed.
    """
    if not folder.exists():
        return [_finding("bad", f"'{folder}' does not exist", LAYOUT)]
    findings = _tensors(folder)
    findings.append(_vocabulary(folder))
    try:
        architecture = sizes_of(folder)
    except CalmrlError:
        return findings  # already reported with the tensors
    if architecture != PUBLISHED:
        findings.append(_finding("note", f"sizes are those of '{architecture_file(folder)}', not the published ones"))
    findings.append(_beats(find_beside(folder, _BEATS_FILES), architecture.audio))
    return findings


def _tensors(folder: Path) -> list[dict[str, str]]:
    try:
        path = find_checkpoint(folder)
        architecture = sizes_of(folder)
        differing = contradictions(read_run_settings(run_folder(path)), architecture)
        tensors = released_names(read_tensors(path))
    except CalmrlError as error:
        return [_finding("bad", error.message, error.hint or LAYOUT)]
    problems = [f"log/hps.json: {clause}" for clause in differing] + compare(tensors, architecture)
    if problems:
        return [
            _finding("bad", f"'{path}': {problem}", "use a checkpoint of VAST, GRAM or PMRL with EVA01-CLIP-g/14 and BEATs")
            for problem in problems
        ]
    extra = "with a head for depth (GRAM)" if "contra_head_d.linear.weight" in tensors else "without a head for depth"
    millions = sum(tensor.numel() for tensor in tensors.values()) / 1e6
    return [_finding("ok", f"'{path}': {len(tensors)} tensors, {millions:.1f} million values, all as expected, {extra}")]


def _vocabulary(folder: Path) -> dict[str, str]:
    try:
        path = find_vocabulary(folder)
        lines = len(path.read_text(encoding="utf-8").splitlines())
    except (CalmrlError, UnicodeDecodeError) as error:
        return _finding(
            "bad", str(error), "put vocab.txt of bert-base-uncased at bert/bert-base-uncased/vocab.txt in the weights folder"
        )
    if lines != _VOCABULARY_LINES:
        return _finding("note", f"'{path}' has {lines} lines; that of bert-base-uncased has {_VOCABULARY_LINES}")
    return _finding("ok", f"'{path}': {lines} words")


def _beats(path: Path | None, sizes: AudioSizes) -> dict[str, str]:
    if path is None:
        return _finding(
            "note",
            f"BEATs' own settings are taken as max_distance {sizes.max_distance}, deep_norm {sizes.deep_norm}; its original file is not here to compare",
            f"optional: put it at {_BEATS_FILES[0]}",
        )
    try:
        settings = _beats_settings(path)
    except CalmrlError as error:
        return _finding("bad", error.message, error.hint or "")
    expected = {name: getattr(sizes, field) for name, field in _BEATS_SETTINGS.items()} | dict(_BEATS_FIXED)
    wrong = [
        f"{name} is {settings[name]}, used here: {value}"
        for name, value in expected.items()
        if name in settings and settings[name] != value
    ]
    if wrong:
        return _finding(
            "bad", f"'{path}' was made with other settings: {'; '.join(wrong)}", "write them to architecture.json, part audio"
        )
    return _finding("ok", f"'{path}': its settings are the ones used here")


def _beats_settings(path: Path) -> Mapping[str, Any]:
    import pickle

    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        reason = re.split(r"[\n.]", str(error))[0]
        raise CalmrlError(
            f"'{path}' cannot be read: {reason}", hint="download it again, or remove it: it is only compared"
        ) from None
    if not isinstance(content, Mapping) or not isinstance(content.get("cfg"), Mapping):
        raise CalmrlError(
            f"'{path}' has no settings ('cfg')", hint="use the original BEATs file, or remove it: it is only compared"
        )
    return content["cfg"]


def _finding(state: str, what: str, do: str = "") -> dict[str, str]:
    return {"state": state, "what": what, "do": do}
