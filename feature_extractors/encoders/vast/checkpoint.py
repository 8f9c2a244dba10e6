"""A released VAST, GRAM or PMRL checkpoint: found, read without running code, renamed, and checked tensor by tensor."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calmrl_lab.errors import CalmrlError
from feature_extractors.encoders.vast.networks.architecture import (
    FILE,
    Architecture,
    Shape,
    checkpoint_shapes,
    optional_shapes,
    read_architecture,
)

if TYPE_CHECKING:
    import torch

PARTS = {"vision": "vision_encoder.visual.", "audio": "audio_encoder.", "text": "multimodal_encoder.bert.", "heads": ""}
LAYOUT = (
    "expected in the weights folder: log/hps.json and ckpt/model_step_N.pt as VAST, GRAM and PMRL release them (or one .pt, .bin or "
    ".safetensors file), and bert/bert-base-uncased/vocab.txt"
)

# Held by released files, used by nothing here: the CLIP text tower, the masked-language head, old BERT buffers.
_UNUSED = re.compile(
    r"vision_encoder\.(text\.|logit_scale$)|multimodal_encoder\.cls\.|multimodal_encoder\.bert\.(embeddings\.position_ids$|pooler\.)"
)
_OTHER_FOLDERS = {"beats", "bert", "clip", "optimizer", "pretrained_weights"}
# Where several files of a pattern are one training run's steps, or one step's shards.
_STEPS = ("ckpt/model_step_*.pt", "checkpoint-*/pytorch_model*.bin")
_PATTERNS = (_STEPS[0], "ckpt/best_*.pt", _STEPS[1], "*.safetensors", "*.pt", "*.pth", "*.bin")
_SHOWN = 8


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one file by their released names (unused ones dropped), and the sizes they were checked against."""

    path: Path
    architecture: Architecture
    tensors: Mapping[str, torch.Tensor]

    def part(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of `vision`, `audio`, `text` (prefix removed) or `heads` (everything else), in float32.

        What was saved in another precision is widened here; float32 stays memory-mapped.
        """
        prefix = PARTS[name]
        if prefix:
            return {key.removeprefix(prefix): value.float() for key, value in self.tensors.items() if key.startswith(prefix)}
        others = tuple(filter(None, PARTS.values()))
        return {key: value.float() for key, value in self.tensors.items() if not key.startswith(others)}

    def digest(self, parts: Iterable[str]) -> str:
        """sha256 over names, shapes and values of these parts: the same weights give it whatever file they came in."""
        import torch

        total = hashlib.sha256()
        for part in sorted(parts):
            for name, tensor in sorted(self.part(part).items()):
                total.update(f"{part}/{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                total.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return total.hexdigest()


def find_checkpoint(folder: Path) -> Path:
    """The checkpoint in a weights folder (or `folder` itself if it is a file).

    Order: `ckpt/model_step_N.pt` with the highest N, `ckpt/best_*.pt`, `checkpoint-N/pytorch_model*.bin`, any single file at the
    top; the same in one folder further down. Raises CalmrlError if there is none, or several of equal standing: two such folders
    are two systems, and which one is meant is for the user to say.
    """
    if folder.is_file():
        return folder
    if not folder.is_dir():
        raise CalmrlError(f"the weights folder '{folder}' does not exist", hint=LAYOUT)
    inner = sorted(p for p in folder.iterdir() if p.is_dir() and p.name not in _OTHER_FOLDERS)
    for pattern in _PATTERNS:
        found = _matching(folder, pattern) or [path for place in inner for path in _matching(place, pattern)]
        if len(found) > 1:
            names = ", ".join(str(p.relative_to(folder)) for p in found[:4])
            raise CalmrlError(
                f"'{folder}' holds several checkpoints ({names}); one is expected",
                hint="give the file itself, or the folder above it: --weights PATH",
            )
        if found:
            return found[0]
    raise CalmrlError(f"no VAST checkpoint in '{folder}'", hint=LAYOUT)


def _matching(place: Path, pattern: str) -> list[Path]:
    """The checkpoints of one kind in a folder: the last step, or the first shard of the last step, stands for all of them."""
    found = sorted((p for p in place.glob(pattern) if not p.name.startswith("optimizer")), key=_step)
    if not found or pattern not in _STEPS:
        return found
    # Shards of one file: the reader adds the others of the same folder.
    return [next(p for p in found if p.parent == found[-1].parent) if pattern.startswith("checkpoint-") else found[-1]]


def find_vocabulary(weights: Path) -> Path:
    """`vocab.txt` of bert-base-uncased that belongs to some weights; CalmrlError naming the places looked at."""
    inner = ("bert/bert-base-uncased", "bert-base-uncased", "bert", ".")
    if (found := find_beside(weights, [f"{folder}/vocab.txt" for folder in inner])) is not None:
        return found
    roots = " or ".join(f"'{root}'" for root in roots_of(weights))
    looked = ", ".join(f"{folder}/vocab.txt" for folder in inner[:3])
    raise CalmrlError(f"no vocabulary of bert-base-uncased in {roots} (looked for {looked}, vocab.txt)", hint=LAYOUT)


def roots_of(weights: Path) -> list[Path]:
    """The folders that hold what belongs to a checkpoint (architecture.json, bert/, beats/): its run, then the weights folder."""
    top = weights.parent if weights.is_file() else weights
    try:
        return list(dict.fromkeys([run_folder(find_checkpoint(weights)), top]))
    except CalmrlError:
        return [top]


def find_beside(weights: Path, names: Sequence[str]) -> Path | None:
    """The first file of one of these names in `roots_of(weights)`, in a folder pretrained_weights/ there, or in one beside them."""
    for root in roots_of(weights):
        for place in (root, root / "pretrained_weights", root.parent / "pretrained_weights"):
            for name in names:
                if (place / name).is_file():
                    return place / name
    return None


def architecture_file(weights: Path) -> Path | None:
    """The architecture.json that says these weights are of other sizes than the published ones, if there is one."""
    return next((root / FILE for root in roots_of(weights) if (root / FILE).is_file()), None)


def sizes_of(weights: Path) -> Architecture:
    """The published sizes, or those of the architecture.json beside the checkpoint."""
    return read_architecture(architecture_file(weights))


def load_checkpoint(weights: Path) -> Checkpoint:
    """Find, read, rename and check the checkpoint of a weights folder.

    Nothing in the file is executed and the tensors stay memory-mapped. Every missing, unexpected or wrongly shaped tensor is
    named in one CalmrlError; `contra_head_d` (GRAM with depth) may be there or not.
    """
    path = find_checkpoint(weights)
    architecture = sizes_of(weights)
    if differing := contradictions(read_run_settings(run_folder(path)), architecture):
        raise CalmrlError(
            f"'{path}' was trained with other settings ({run_folder(path) / 'log' / 'hps.json'}): {'; '.join(differing)}",
            hint="sizes that differ can be given in architecture.json; other encoders are not supported",
        )
    tensors = released_names(read_tensors(path))
    problems = compare(tensors, architecture)
    if problems:
        raise CalmrlError(
            f"'{path}' is not a VAST checkpoint of the expected architecture: " + "; ".join(problems),
            hint=f"calmrl-lab weights check {weights}",
        )
    return Checkpoint(path, architecture, {k: v for k, v in tensors.items() if not _UNUSED.match(k)})


def read_run_settings(root: Path) -> dict[str, Any]:
    """`model_cfg` of the run's log/hps.json, or nothing if there is none. Raises CalmrlError for a file that cannot be read."""
    path = root / "log" / "hps.json"
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
        if not isinstance(settings, dict):
            raise TypeError(f"model_cfg is {type(settings).__name__}")
        return settings
    except (ValueError, KeyError, TypeError) as error:
        raise CalmrlError(
            f"the run settings '{path}' cannot be read: {error}", hint="restore the released file, or remove it"
        ) from None


def contradictions(settings: Mapping[str, Any], architecture: Architecture) -> list[str]:
    """Where a run's settings differ from what is built here, as clauses; settings that are not there contradict nothing.

    The number of mel bins and the length of a slice leave no trace in the shapes of the tensors, so only these settings tell.
    """
    sizes = architecture.audio
    built = {
        "vision_encoder_type": "evaclip01_giant",
        "audio_encoder_type": "beats",
        "audio_melbins": sizes.mel_bins,
        "audio_target_length": sizes.slice_frames,
        "vision_resolution": architecture.vision.resolution,
    }
    return [
        f"{key} is {settings[key]}, here {value}" for key, value in built.items() if key in settings and settings[key] != value
    ]


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The state dict of a file (and of the other shards beside it), memory-mapped, with no code run.

    Raises CalmrlError, one sentence each, for a missing, empty, truncated or foreign file and for a pickle that holds code.
    """
    shards = sorted(path.parent.glob("pytorch_model*.bin")) if path.name.startswith("pytorch_model") else [path]
    tensors: dict[str, torch.Tensor] = {}
    for shard in shards:
        tensors |= _read_one(shard)
    return tensors


def _read_one(path: Path) -> dict[str, torch.Tensor]:
    import torch

    if not path.is_file():
        raise CalmrlError(f"the checkpoint '{path}' does not exist", hint=LAYOUT)
    size = path.stat().st_size
    again = "download the file again and compare its size with the published one"
    if size == 0:
        raise CalmrlError(f"the checkpoint '{path}' is empty", hint=again)
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise CalmrlError(f"the checkpoint '{path}' cannot be read: {(error.strerror or 'input error').lower()}") from None
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise CalmrlError(
                f"the checkpoint '{path}' ({size} bytes) is truncated or no safetensors file: {error}", hint=again
            ) from None
    if start[:2] == b"PK" and not zipfile.is_zipfile(path):
        raise CalmrlError(
            f"the checkpoint '{path}' is truncated: its table of contents is missing after {size} bytes", hint=again
        )
    if start.lstrip()[:1] in (b"<", b"{") or start.startswith(b"version https://git-lfs"):
        raise CalmrlError(
            f"'{path}' is a text file ({size} bytes), not a checkpoint; downloads that failed look like this", hint=again
        )
    try:
        # Files of before PyTorch 1.6 are plain pickles and cannot be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=start[:2] == b"PK")
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
        what = f"it wants to run '{named.group(1)}'" if named else "it holds more than tensors"
        raise CalmrlError(
            f"'{path}' is refused because {what}, and reading it could execute code",
            hint="save its state_dict alone (torch.save(model.state_dict(), FILE)) on a machine you trust with it",
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:160]
        raise CalmrlError(f"the checkpoint '{path}' ({size} bytes) cannot be read: {reason}", hint=again) from None
    return _state_dict(content, path)


def _state_dict(content: object, path: Path) -> dict[str, torch.Tensor]:
    import torch

    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        raise CalmrlError(f"'{path}' holds {type(content).__name__}, not a state dict", hint=LAYOUT)
    strays = [key for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if strays:
        raise CalmrlError(f"'{path}' is no state dict: its entry '{strays[0]}' is no tensor", hint=LAYOUT)
    return {str(key): value for key, value in content.items()}


def released_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`module.` and `model.` removed, and the names of older releases brought up to date (video_* to vision_*, *clip_model)."""
    renamed = {}
    for key, value in tensors.items():
        name = key.removeprefix("module.").removeprefix("model.")
        name = re.sub(r"^(evaclip_model|clip_model)\.", "vision_encoder.", name)
        name = name.replace("video", "vision")
        renamed[name] = value
    return renamed


def compare(tensors: Mapping[str, torch.Tensor], architecture: Architecture) -> list[str]:
    """What keeps these tensors from being this architecture, as clauses; empty if nothing does."""
    expected, optional = checkpoint_shapes(architecture), optional_shapes(architecture)
    used = {key: tuple(value.shape) for key, value in tensors.items() if not _UNUSED.match(key)}
    missing = [key for key in expected if key not in used]
    unexpected = [key for key in used if key not in expected and key not in optional]
    wrong = [
        f"{key} {used[key]} instead of {shape}"
        for key, shape in {**expected, **optional}.items()
        if key in used and not _fits(used[key], shape)
    ]
    shared = [key for key in used if key.endswith("relative_attention_bias.weight")]
    quantised = [f"{key} {tensors[key].dtype}" for key in expected if key in used and not tensors[key].is_floating_point()]
    problems = []
    for label, found in (
        ("missing", missing),
        ("unexpected", unexpected),
        ("of another shape", wrong),
        ("not floating point", quantised),
    ):
        if found:
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            problems.append(f"{len(found)} {label} ({', '.join(found[:_SHOWN])}{more})")
    if not problems and any(not tensors[key].equal(tensors[shared[0]]) for key in shared[1:]):
        problems.append("the audio layers hold different tables of relative positions, but BEATs shares one")
    return problems


def run_folder(checkpoint: Path) -> Path:
    """The run that a checkpoint belongs to: the folder above ckpt/."""
    return checkpoint.parent.parent if checkpoint.parent.name == "ckpt" else checkpoint.parent


def _fits(got: Shape, expected: Shape) -> bool:
    return len(got) == len(expected) and all(e in (0, g) for g, e in zip(got, expected, strict=True))


def _step(path: Path) -> tuple[int, str]:
    """Shards and steps in numeric order: step 10000 comes after step 9999."""
    numbers = re.findall(r"\d+", f"{path.parent.name}/{path.stem}")
    return (int(numbers[-1]) if numbers else -1, str(path))
