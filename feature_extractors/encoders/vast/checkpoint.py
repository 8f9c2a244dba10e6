"""A released VAST, GRAM or PMRL checkpoint: read without running code, renamed, and checked tensor by tensor."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from calmrl_lab.errors import CalmrlError
from calmrl_lab.runtime import console
from feature_extractors.encoders.vast.networks.architecture import (
    Architecture,
    Shape,
    checkpoint_shapes,
    optional_shapes,
)
from feature_extractors.encoders.vast.tensor_files import MappedFiles, read_tensors
from feature_extractors.encoders.vast.weights_folder import (
    contradictions,
    find_checkpoint,
    read_run_settings,
    run_folder,
    settings_file,
    shards_of,
    sizes_of,
)

if TYPE_CHECKING:
    import torch

PARTS = {"vision": "vision_encoder.visual.", "audio": "audio_encoder.", "text": "multimodal_encoder.bert.", "heads": ""}

# Held by released files, used by nothing here: the CLIP text tower, the masked-language head, old BERT buffers.
_UNUSED = re.compile(
    r"vision_encoder\.(text\.|logit_scale$)|multimodal_encoder\.cls\.|multimodal_encoder\.bert\.(embeddings\.position_ids$|pooler\.)"
)
# Inside the parts that are used: buffers that are computed, and what BEATs has for its own training. Anything else there changes what a part computes.
_HARMLESS = re.compile(
    r"(position_ids|num_batches_tracked|inv_freq|relative_position_index|token_type_ids|masked_bias|rope\.freqs_\w+|freqs_cos|freqs_sin)$"
    r"|^audio_encoder\.(predictor|predictor_dropout|mask_emb)\b|^vision_encoder\.visual\.(mask_token|lm_head)\b"
)
_POSITIONS = "relative_attention_bias.weight"
_WORDS = "multimodal_encoder.bert.embeddings.word_embeddings.weight"
_TIED_WORDS = "multimodal_encoder.cls.predictions.decoder.weight"
_SHOWN = 8
_told: set[Path] = set()


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one file by their released names (unused ones dropped), and the sizes they were checked against."""

    path: Path
    architecture: Architecture
    tensors: Mapping[str, torch.Tensor]
    files: MappedFiles

    def part(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of `vision`, `audio`, `text` (prefix removed) or `heads` (everything else), in float32.

        What was saved in another precision is widened here; float32 stays memory-mapped.
        """
        return {key: self._widened(value) for key, value in self._saved(name)}

    def digest(self, parts: Iterable[str]) -> str:
        """sha256 over names, shapes and values of these parts: the same weights give it whatever file they came in."""
        import torch

        total = hashlib.sha256()
        for part in sorted(parts):
            for name, saved in sorted(self._saved(part)):
                # One after the other: a file in half precision would need three times its size otherwise.
                tensor = saved.float()
                total.update(f"{part}/{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                total.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
                self.files.release(saved)
        return total.hexdigest()

    def _saved(self, part: str) -> Iterator[tuple[str, torch.Tensor]]:
        prefix = PARTS[part]
        others = tuple(filter(None, PARTS.values()))
        for key, value in self.tensors.items():
            if key.startswith(prefix) if prefix else not key.startswith(others):
                yield key.removeprefix(prefix), value

    def _widened(self, saved: torch.Tensor) -> torch.Tensor:
        wide = saved.float()
        if wide is not saved:
            self.files.release(saved)
        return wide


def load_checkpoint(weights: Path) -> Checkpoint:
    """Find, read, rename and check the checkpoint of a weights folder.

    Nothing in the file is executed and the tensors stay memory-mapped. Every missing, harmful or wrongly shaped tensor is
    named in one CalmrlError; `contra_head_d` (GRAM with depth) may be there or not. Further tensors that nothing here uses are told once and ignored.
    """
    path = find_checkpoint(weights)
    architecture = sizes_of(weights)
    if differing := contradictions(read_run_settings(run_folder(path)), architecture):
        raise CalmrlError(
            f"'{path}' was trained with other settings ({settings_file(run_folder(path))}): {'; '.join(differing)}",
            hint="sizes that differ can be given in architecture.json; other encoders are not supported",
        )
    tensors = released_names(read_tensors(path))
    problems = compare(tensors, architecture)
    if problems:
        raise CalmrlError(
            f"'{path}' is not a VAST checkpoint of the expected architecture: " + "; ".join(problems),
            hint=f"calmrl-lab weights check {weights}",
        )
    ignored = ignored_names(tensors, architecture)
    if ignored and path not in _told:
        _told.add(path)
        console.note(f"'{path}': {listed(ignored)} not used here, ignored")
    return Checkpoint(
        path,
        architecture,
        {k: v for k, v in tensors.items() if not _UNUSED.match(k) and k not in set(ignored)},
        MappedFiles(shards_of(path)),
    )


def released_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`module.` and `model.` removed, and the names of older releases brought up to date (video_* to vision_*, *clip_model)."""
    renamed = {}
    for key, value in tensors.items():
        name = key.removeprefix("module.").removeprefix("model.")
        name = re.sub(r"^(evaclip_model|clip_model)\.", "vision_encoder.", name)
        name = name.replace("video", "vision")
        renamed[name] = value
    # Files that hold shared tensors once: every layer of BEATs has the same table, and the masked-language head has BERT's words.
    table = next((value for key, value in renamed.items() if key.endswith(_POSITIONS)), None)
    layers = {key[: key.index(".self_attn.")] for key in renamed if key.startswith("audio_encoder.") and ".self_attn." in key}
    if table is not None:
        for layer in layers:
            renamed.setdefault(f"{layer}.self_attn.{_POSITIONS}", table)
    if _TIED_WORDS in renamed:
        renamed.setdefault(_WORDS, renamed[_TIED_WORDS])
    return renamed


def compare(tensors: Mapping[str, torch.Tensor], architecture: Architecture) -> list[str]:
    """What keeps these tensors from being this architecture, as clauses; empty if nothing does."""
    expected, optional = checkpoint_shapes(architecture), optional_shapes(architecture)
    used = {key: tuple(value.shape) for key, value in tensors.items() if not _UNUSED.match(key)}
    missing = [key for key in expected if key not in used]
    ignored = set(ignored_names(tensors, architecture))
    unexpected = [key for key in used if key not in expected and key not in optional and key not in ignored]
    wrong = [
        f"{key} {used[key]} instead of {shape}"
        for key, shape in {**expected, **optional}.items()
        if key in used and not _fits(used[key], shape)
    ]
    shared = [key for key in used if key.endswith(_POSITIONS)]
    quantised = [f"{key} {tensors[key].dtype}" for key in expected if key in used and not tensors[key].is_floating_point()]
    problems = []
    for label, found in (
        ("missing", missing),
        ("unexpected", unexpected),
        ("of another shape", wrong),
        ("not floating point", quantised),
    ):
        if found:
            problems.append(listed(found, label))
    if not problems and any(not tensors[key].equal(tensors[shared[0]]) for key in shared[1:]):
        problems.append("the audio layers hold different tables of relative positions, but BEATs shares one")
    return problems


def ignored_names(tensors: Mapping[str, torch.Tensor], architecture: Architecture) -> list[str]:
    """Tensors that a file has beyond those used here, and that change nothing of what is computed: further heads, losses, buffers.

    What stands inside a used encoder and is no known buffer (a further block, a bias) is not among them: that is another architecture.
    """
    known = checkpoint_shapes(architecture).keys() | optional_shapes(architecture).keys()
    parts = tuple(filter(None, PARTS.values()))
    return [
        key
        for key in tensors
        if key not in known and not _UNUSED.match(key) and (_HARMLESS.search(key) or not key.startswith(parts))
    ]


def listed(names: list[str], label: str = "tensors") -> str:
    """How many there are, and the first of them."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {label} ({', '.join(names[:_SHOWN])}{more})"


def _fits(got: Shape, expected: Shape) -> bool:
    return len(got) == len(expected) and all(e in (0, g) for g, e in zip(got, expected, strict=True))
