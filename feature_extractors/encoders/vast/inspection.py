"""What `calmrl-lab weights check` finds in a weights folder."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from calmrl_lab.errors import CalmrlError
from feature_extractors.encoders.vast.checkpoint import compare, ignored_names, listed, released_names
from feature_extractors.encoders.vast.networks.architecture import PUBLISHED, Architecture, AudioSizes
from feature_extractors.encoders.vast.networks.bert import read_vocabulary
from feature_extractors.encoders.vast.tensor_files import MappedFiles, read_tensors
from feature_extractors.encoders.vast.weights_folder import (
    LAYOUT,
    architecture_file,
    contradictions,
    find_beside,
    find_checkpoint,
    find_vocabulary,
    read_run_settings,
    run_folder,
    shards_of,
    sizes_of,
)
from feature_extractors.fingerprints import file_digest

_BEATS_FILES = ("beats/BEATs_iter3_plus_AS2M.pt", "BEATs_iter3_plus_AS2M.pt")
_SUMS = ("SHA256SUMS", "SHA256SUMS.txt", "sha256sums.txt", "sha256sum.txt", "checksums.txt", "checksums.sha256")
_SHA256 = re.compile(r"([0-9a-fA-F]{64})(?:\s+\*?(.+?))?\s*$")
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
    """One finding per part: `state` ok, note or bad; `what` was found; what to `do` about it.

    Parts: the checkpoint's tensors one by one (names, shapes, NaN, checksums), the vocabulary, the sizes in use, BEATs' own settings where its original file is there.
    Nothing in any file is executed.
    """
    if not folder.exists():
        return [finding("bad", f"'{folder}' does not exist", LAYOUT)]
    try:
        architecture = sizes_of(folder)
    except CalmrlError as error:
        return [finding("bad", error.message, error.hint or LAYOUT)]
    findings = [*_tensors(folder, architecture), _vocabulary(folder, architecture)]
    if architecture != PUBLISHED:
        findings.append(finding("note", f"sizes are those of '{architecture_file(folder)}', not the published ones"))
    return [*findings, _beats(find_beside(folder, _BEATS_FILES), architecture.audio)]


def _tensors(folder: Path, architecture: Architecture) -> list[dict[str, str]]:
    try:
        path = find_checkpoint(folder)
        differing = contradictions(read_run_settings(run_folder(path)), architecture)
        saved = read_tensors(path)
    except CalmrlError as error:
        return [finding("bad", error.message, error.hint or LAYOUT)]
    tensors = released_names(saved)
    problems = [f"log/hps.json: {clause}" for clause in differing] + compare(tensors, architecture)
    if problems:
        return [
            finding("bad", f"'{path}': {problem}", "use a checkpoint of VAST, GRAM or PMRL with EVA01-CLIP-g/14 and BEATs")
            for problem in problems
        ]
    damage = [*changed_files(path), *_not_numbers(path, tensors)]
    if damage:
        return [finding("bad", what, "download the file again") for what in damage]
    extra = "with a head for depth (GRAM)" if "contra_head_d.linear.weight" in tensors else "without a head for depth"
    millions = sum(tensor.numel() for tensor in tensors.values()) / 1e6
    found = [finding("ok", f"'{path}': {len(tensors)} tensors, {millions:.1f} million values, all as expected, {extra}")]
    if ignored := ignored_names(tensors, architecture):
        found.append(finding("note", f"'{path}': {listed(ignored)} not used here, ignored"))
    return found


def _not_numbers(path: Path, tensors: Mapping[str, Any]) -> list[str]:
    """Clauses for tensors that hold NaN or infinity."""
    files = MappedFiles(shards_of(path))
    wrong = []
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            wrong.append(name)
        files.release(tensor)
    return [f"'{path}': NaN or infinity in {listed(wrong)}"] if wrong else []


def changed_files(path: Path) -> list[str]:
    """Clauses for files whose bytes are not those that a checksum says: inside PyTorch's files, or in a file beside them."""
    wrong = []
    for shard in shards_of(path):
        if zipfile.is_zipfile(shard):
            with zipfile.ZipFile(shard) as content:
                try:
                    damaged = content.testzip()
                except (zipfile.BadZipFile, OSError) as error:
                    damaged = str(error)
            if damaged is not None:
                wrong.append(f"'{shard}' is damaged: the checksum of its part {damaged} is wrong")
        for expected, where in _checksums(shard):
            if file_digest(shard) != expected:
                wrong.append(f"'{shard}' has not the sha256 that '{where}' says ({expected[:12]}...)")
    return wrong


def _checksums(path: Path) -> Iterator[tuple[str, Path]]:
    """sha256 sums given for a file: FILE.sha256, SHA256SUMS and the like beside it, and what the hub's downloader leaves."""
    beside = [path.with_name(f"{path.name}.sha256"), *(path.with_name(name) for name in _SUMS)]
    for place in beside:
        if place.is_file():
            for line in place.read_text(encoding="utf-8", errors="replace").splitlines():
                if (found := _SHA256.match(line)) and (not found[2] or Path(found[2]).name == path.name):
                    yield found[1].lower(), place
    for root in path.parents[:4]:
        note = root / ".cache" / "huggingface" / "download" / f"{path.relative_to(root)}.metadata"
        if note.is_file():
            for line in note.read_text(encoding="utf-8", errors="replace").splitlines():
                if re.fullmatch(r"[0-9a-f]{64}", line.strip()):
                    yield line.strip(), note


def _vocabulary(folder: Path, architecture: Architecture) -> dict[str, str]:
    try:
        path = find_vocabulary(folder)
        words = read_vocabulary(path, architecture.text.vocabulary)
    except CalmrlError as error:
        return finding(
            "bad", error.message, "put vocab.txt of bert-base-uncased at bert/bert-base-uncased/vocab.txt in the weights folder"
        )
    return finding("ok", f"'{path}': {len(words)} words")


def _beats(path: Path | None, sizes: AudioSizes) -> dict[str, str]:
    if path is None:
        return finding(
            "note",
            f"BEATs' own settings are taken as max_distance {sizes.max_distance}, deep_norm {sizes.deep_norm}; its original file is not here to compare",
            f"optional: put it at {_BEATS_FILES[0]}",
        )
    try:
        settings = _beats_settings(path)
    except CalmrlError as error:
        return finding("bad", error.message, error.hint or "")
    expected = {name: getattr(sizes, field) for name, field in _BEATS_SETTINGS.items()} | dict(_BEATS_FIXED)
    wrong = [
        f"{name} is {settings[name]}, used here: {value}"
        for name, value in expected.items()
        if name in settings and settings[name] != value
    ]
    if wrong:
        return finding(
            "bad", f"'{path}' was made with other settings: {'; '.join(wrong)}", "write them to architecture.json, part audio"
        )
    return finding("ok", f"'{path}': its settings are the ones used here")


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


def finding(state: str, what: str, do: str = "") -> dict[str, str]:
    return {"state": state, "what": what, "do": do}
