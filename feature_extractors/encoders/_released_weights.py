"""Released checkpoints of towers: read without running code, checked tensor by tensor, and put into a tower of `_towers`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from calmrl_lab.errors import CalmrlError
from feature_extractors.encoders.vast.tensor_files import MappedFiles, read_tensors
from feature_extractors.encoders.vast.weights_folder import shards_of

if TYPE_CHECKING:
    from torch import Tensor, nn

# The parameters of a tower, each with the released tensors that it is made of, end to end.
Names = Mapping[str, Sequence[str]]
_SHOWN = 6


@dataclass(frozen=True)
class ReleasedWeights:
    """The tensors of one file by their released names, memory-mapped."""

    path: Path
    tensors: Mapping[str, Tensor]
    files: MappedFiles

    @classmethod
    def read(cls, path: Path) -> ReleasedWeights:
        """The state dict of a file and its shards. Raises CalmrlError, one sentence each, for whatever is damaged or holds code."""
        return cls(path, read_tensors(path), MappedFiles(shards_of(path)))

    def problems(self, tower: nn.Module, names: Names) -> list[str]:
        """Clauses for tensors that are missing or of another shape than a tower (on the meta device) needs; empty if all fits."""
        missing, wrong = [], []
        for parameter, expected in tower.state_dict().items():
            rows = expected.shape[0] // len(names[parameter]) if expected.ndim else 1
            shape = (rows, *expected.shape[1:])
            for name in names[parameter]:
                if name not in self.tensors:
                    missing.append(name)
                elif self.tensors[name].numel() != expected.numel() // len(names[parameter]) or not _fits(
                    tuple(self.tensors[name].shape), shape
                ):
                    wrong.append(f"{name} is {list(self.tensors[name].shape)}, expected {list(shape)}")
        return ([f"missing: {_some(missing)}"] if missing else []) + ([f"of another shape: {_some(wrong)}"] if wrong else [])

    def fill(self, tower: nn.Module, names: Names, what: str) -> nn.Module:
        """The tower with these weights in float32, ready for inference. Raises CalmrlError, all problems in one sentence."""
        import torch

        if found := self.problems(tower, names):
            raise CalmrlError(
                f"'{self.path}' does not hold {what} as it was released: {'; '.join(found)}",
                hint=f"calmrl-lab weights check {self.path.parent}",
            )
        filled = {}
        for parameter, expected in tower.state_dict().items():
            parts = [self.tensors[name] for name in names[parameter]]
            joined = parts[0].float() if len(parts) == 1 else torch.cat([part.float() for part in parts])
            if len(parts) > 1 or joined is not parts[0]:
                for part in parts:
                    self.files.release(part)
            filled[parameter] = joined.reshape(expected.shape)
        tower.load_state_dict(filled, strict=True, assign=True)
        return tower.eval().requires_grad_(False)

    def digest(self, names: Names) -> str:
        """sha256 over names, shapes and float32 values of what a tower is made of: the same weights give it whatever file they came in."""
        import torch

        total = hashlib.sha256()
        for name in sorted({name for parts in names.values() for name in parts}):
            tensor = self.tensors[name].float()
            total.update(f"{name} {tuple(tensor.shape)}".encode())
            total.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            self.files.release(self.tensors[name])
        return total.hexdigest()

    def not_numbers(self, names: Names) -> list[str]:
        """Clauses for tensors that hold NaN or infinity."""
        wrong = []
        for name in sorted({name for parts in names.values() for name in parts} & set(self.tensors)):
            if not self.tensors[name].isfinite().all():
                wrong.append(name)
            self.files.release(self.tensors[name])
        return [f"NaN or infinity in {_some(wrong)}"] if wrong else []


def attention_names(ours: str, released: str) -> dict[str, list[str]]:
    """Names of an attention layer whose query, key and value are three released projections, as transformers has them."""
    return {
        f"{ours}.{part}.{tail}": [f"{released}.{name}.{tail}" for name in given]
        for part, given in (("qkv", ("q_proj", "k_proj", "v_proj")), ("out", ("out_proj",)))
        for tail in ("weight", "bias")
    }


def layer_names(pairs: Mapping[str, str]) -> dict[str, list[str]]:
    """Names of layers with weight and bias: ours -> released."""
    return {f"{ours}.{tail}": [f"{released}.{tail}"] for ours, released in pairs.items() for tail in ("weight", "bias")}


def _fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Equal but for axes of length one: class tokens and positions are released with some of these."""
    return [size for size in shape if size != 1] == [size for size in expected if size != 1]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
