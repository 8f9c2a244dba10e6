"""Items with gaps grouped by their observed modalities (`Patterns`), and checked embeddings of them (`Observations`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from calmrl_lab.errors import CalmrlError
from calmrl_lab.runtime.devices import send

Array: TypeAlias = np.ndarray | Tensor

# A pattern is held as one bit per modality in an int64.
_MOST_MODALITIES = 62


def modality_name(modalities: Sequence[str] | None, index: int) -> str:
    """How messages call modality `index`: its name where names are known, its position otherwise."""
    return f"modality '{modalities[index]}'" if modalities else f"modality {index}"


@dataclass(frozen=True)
class Pattern:
    """The items that show exactly the modalities `observed`; `rows` are their positions, ascending."""

    observed: tuple[int, ...]
    missing: tuple[int, ...]
    rows: Int[Tensor, " n"]


@dataclass(frozen=True)
class Patterns:
    """The distinct rows of a mask [N, k], and which of them every item has.

    `shown` [p, k] bool are the patterns, ordered by their bits with modality 0 as the lowest, whatever the order of the items; item i shows
    `shown[which[i]]`; `counts` [p] says how many items show each. All are on the device of the mask.

    >>> found = Patterns.of(np.array([[True, True], [True, False], [True, True]]))
    >>> found.shown.tolist(), found.which.tolist(), found.counts.tolist()
    ([[True, False], [True, True]], [1, 0, 1], [1, 2])
    """

    shown: Bool[Tensor, "p k"]
    which: Int[Tensor, " n"]
    counts: Int[Tensor, " p"]

    @classmethod
    def of(cls, mask: Array) -> Patterns:
        """The patterns of `mask` [N, k] (bool, True = observed, NumPy or torch)."""
        columns = torch.as_tensor(mask)
        k = columns.shape[1]
        codes = torch.zeros(len(columns), dtype=torch.int64, device=columns.device)
        # Column by column: shifting the whole mask at once would take eight bytes per entry.
        for j in range(k):
            codes += columns[:, j].long() << j
        distinct, which, counts = torch.unique(codes, return_inverse=True, return_counts=True)
        shown = (distinct.unsqueeze(1) >> torch.arange(k, device=columns.device) & 1).bool()
        return cls(shown, which, counts)

    def __len__(self) -> int:
        return len(self.shown)

    def __iter__(self) -> Iterator[Pattern]:
        """The patterns with the positions of their items."""
        groups = torch.split(torch.argsort(self.which, stable=True), self.counts.tolist())
        for row, rows in zip(self.shown.tolist(), groups, strict=True):
            yield Pattern(places(row), places([not seen for seen in row]), rows)

    def names(self, modalities: Sequence[str]) -> list[str]:
        """The observed modalities of each pattern joined by '+', in the order given; 'none' for the pattern that shows nothing."""
        return ["+".join(modalities[j] for j in places(row)) or "none" for row in self.shown.tolist()]


def places(row: Sequence[bool]) -> tuple[int, ...]:
    """The positions at which `row` is True: the observed modalities of a pattern."""
    return tuple(j for j, seen in enumerate(row) if seen)


def require_hiding(shown: Bool[Tensor, "n k"], known: Bool[Tensor, "n k"], modalities: Sequence[str] | None = None) -> None:
    """CalmrlError if the mask `shown` shows anything that `known` does not: a mask may hide what is there and never un-hide what is not."""
    if shown.shape != known.shape:
        raise CalmrlError(f"the mask has shape {list(shown.shape)}, the items have {list(known.shape)}")
    wider = shown & ~known
    if bool(wider.any()):
        item, place = (int(index[0]) for index in wider.nonzero(as_tuple=True))
        raise CalmrlError(
            f"the mask shows {modality_name(modalities, place)} of item {item}, which that item does not have",
            hint="a mask may hide what is there, and never show what is not",
        )


@dataclass(frozen=True)
class Observations:
    """Checked embeddings: tensors on one device, every entry under a True mask finite.

    `values` are k of [N, d_m], floating point, not copied from the input; entries under a False mask may hold anything.
    `numpy` remembers whether results go back as NumPy arrays. `host_mask` is the mask in host memory, for who has it: a GPU then
    needs not be asked which patterns there are.
    """

    values: list[Float[Tensor, "n d"]]
    mask: Bool[Tensor, "n k"]
    numpy: bool
    modalities: tuple[str, ...] | None = None
    host_mask: Bool[Tensor, "n k"] | None = None

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(value.shape[1] for value in self.values)

    @property
    def device(self) -> torch.device:
        return self.mask.device

    def __len__(self) -> int:
        return self.mask.shape[0]

    def name(self, index: int) -> str:
        return modality_name(self.modalities, index)

    def patterns(self) -> list[Pattern]:
        """The patterns that occur, ordered by their bits (modality 0 is the lowest), whatever the order of the items."""
        found = Patterns.of(self.mask if self.host_mask is None else self.host_mask)
        return [Pattern(pattern.observed, pattern.missing, send(pattern.rows, self.device)) for pattern in found]

    def take(self, rows: Tensor) -> Observations:
        """The items at `rows`, in that order."""
        return Observations([value[rows] for value in self.values], self.mask[rows], self.numpy, self.modalities)

    def with_mask(self, mask: Bool[Tensor, "n k"]) -> Observations:
        """The same items showing less. Raises CalmrlError for a mask that shows what was hidden."""
        require_hiding(mask, self.mask, self.modalities)
        return Observations(self.values, mask, self.numpy, self.modalities)

    def returned(self, result: Tensor) -> Array:
        """`result` as the kind of array that came in."""
        return result.cpu().numpy() if self.numpy else result


def observe(
    embeddings: Sequence[Array],
    mask: Array,
    modalities: Sequence[str] | None = None,
    dims: Sequence[int] | None = None,
) -> Observations:
    """Check `embeddings` (k arrays [N, d_m], NumPy or torch, floating point) and `mask` ([N, k], bool, True = observed).

    Values under a False mask are never looked at. `dims`, if given, are the dimensions that an imputer was fitted on. Raises
    CalmrlError, with the modality's name where `modalities` gives it, for shapes that disagree, a mask or embeddings of the
    wrong dtype, and NaN or infinity at an observed entry (with the first row that has one).
    """
    numpy = not any(isinstance(value, Tensor) for value in embeddings)
    k = len(embeddings)
    if k == 0:
        raise CalmrlError("no embeddings were given (expected a list of k arrays [N, d_m], one per modality)")
    if k > _MOST_MODALITIES:
        raise CalmrlError(f"{k} modalities were given, at most {_MOST_MODALITIES} are possible")
    if modalities is not None and len(modalities) != k:
        raise CalmrlError(f"{k} arrays of embeddings were given for {len(modalities)} modalities ({', '.join(modalities)})")
    if dims is not None and len(dims) != k:
        raise CalmrlError(f"{k} arrays of embeddings were given, but the imputer was fitted on {len(dims)} modalities")
    values = [_tensor(value, modality_name(modalities, index)) for index, value in enumerate(embeddings)]
    device = values[0].device
    shown = torch.as_tensor(np.asarray(mask) if not isinstance(mask, Tensor) else mask)
    if shown.dtype != torch.bool:
        raise CalmrlError(
            f"the mask is {_dtype(shown)}, expected bool with True = observed", hint="mask.astype(bool) or mask.bool()"
        )
    if shown.ndim != 2 or shown.shape[1] != k:
        raise CalmrlError(f"the mask has shape {list(shown.shape)}, expected [N, {k}] for {k} arrays of embeddings")
    for index, value in enumerate(values):
        name = modality_name(modalities, index)
        if value.ndim != 2 or value.shape[0] != shown.shape[0] or value.shape[1] == 0:
            raise CalmrlError(
                f"embeddings of {name} have shape {list(value.shape)}, expected [{shown.shape[0]}, d] with d >= 1"
            )
        if dims is not None and value.shape[1] != dims[index]:
            raise CalmrlError(
                f"embeddings of {name} have dimension {value.shape[1]}, but the imputer was fitted on {dims[index]}"
            )
        if value.device != device:
            raise CalmrlError(
                f"embeddings of {name} are on {value.device}, those of {modality_name(modalities, 0)} on {device}"
            )
    shown = shown.to(device)
    for index, value in enumerate(values):
        _refuse_not_finite(value, shown[:, index], modality_name(modalities, index))
    return Observations(values, shown, numpy, tuple(modalities) if modalities else None)


def _tensor(value: Array, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        value = np.asarray(value)
        if value.dtype.kind != "f" or value.dtype.itemsize > 8:
            raise CalmrlError(f"embeddings of {name} are {value.dtype}, expected float16, float32 or float64")
        # Read-only, negative-stride and foreign-endian arrays cannot be shared with torch.
        value = value.astype(value.dtype.newbyteorder("="), copy=False)
        if not value.flags.writeable or any(stride < 0 for stride in value.strides):
            value = value.copy()
        value = torch.from_numpy(value)
    if not value.is_floating_point():
        raise CalmrlError(f"embeddings of {name} are {_dtype(value)}, expected a floating-point dtype")
    return value.detach()


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _refuse_not_finite(value: Float[Tensor, "n d"], shown: Bool[Tensor, " n"], name: str) -> None:
    # A row sum is finite only if every entry is, at a fraction of the memory of isfinite over all entries; it may also
    # overflow for finite rows, so rows that fail are looked at again.
    suspects = torch.nonzero(~torch.isfinite(value.sum(dim=1)) & shown).squeeze(1)
    if len(suspects) == 0:
        return
    bad = suspects[~torch.isfinite(value[suspects]).all(dim=1)]
    if len(bad) == 0:
        return
    first = int(bad[0])
    kind = "NaN" if bool(torch.isnan(value[first]).any()) else "infinite"
    raise CalmrlError(
        f"embeddings of {name} hold {kind} values at observed row {first} "
        f"({len(bad)} of {int(shown.sum())} observed rows are not finite)",
        hint="repair those rows, or set their mask to False so that they count as missing",
    )
