"""What all objectives share: checks at the edge, full precision inside, one signature."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from calmrl_lab.errors import CalmrlError
from calmrl_lab.registry import known, nearest

# Modalities that speak for an item where a published system has text, an image or sound in that place.
TEXT = ("caption", "text")
IMAGE = ("vision", "image", "video")
AUDIO = ("audio", "sound")


class Objective(nn.Module, ABC):
    """An alignment objective over the embeddings of a batch: the base of all objectives here, and of those of other packages.

    A subclass sets `name`, which appears in messages, and writes `terms`; the checks of `forward` are done by then. `uses_imputed`
    says that it trains on imputed embeddings too (an imputer is fitted only for objectives that do), `takes_groups` that items of one group
    are never negatives of each other. `scorer` is the scorer by which its system compares a query with a whole item; None: by the cosine of pairs of
    modalities. `signs_matter` says that this score is another one if the embeddings of one modality are mirrored. An objective that draws random numbers keeps its own `generator`, so that runs repeat and checkpoints can save it.
    """

    name: str
    uses_imputed: ClassVar[bool] = False
    takes_groups: ClassVar[bool] = True
    scorer: ClassVar[str | None] = None
    signs_matter: ClassVar[bool] = False
    generator: torch.Generator | None = None
    # The option that says which modalities are aligned, for objectives that have one.
    aligned_option: ClassVar[str | None] = None

    def __init__(self, modalities: tuple[str, ...], dim: int) -> None:
        super().__init__()
        if len(modalities) < 2 or len(set(modalities)) < len(modalities):
            raise CalmrlError(
                f"objective '{self.name}' aligns at least two different modalities, got {', '.join(modalities) or 'none'}"
            )
        self.modalities = tuple(modalities)
        self.dim = dim

    def forward(
        self,
        embeddings: Float[Tensor, "b k d"],
        mask: Bool[Tensor, "b k"],
        imputed: Float[Tensor, "b k d"] | None = None,
        groups: Int[Tensor, " b"] | None = None,
    ) -> dict[str, Tensor]:
        """Named scalar terms; `loss` is what is minimised, `skipped` the number of items that no alignment term could use.

        Entries where `mask` is False are never read. `imputed` may stand in for them and receives no gradient; only calmrl looks at
        it. Items with equal `groups` (several captions of one clip, near duplicates) are never negatives of each other; where a term has positives, they
        are. A batch without a valid term has loss 0 with a gradient of 0. bfloat16 and float16 are computed in float32, also under autocast.
        Raises CalmrlError for shapes that do not fit together.
        """
        self._check(embeddings, mask, imputed, groups)
        wide = embeddings.dtype if embeddings.dtype in (torch.float32, torch.float64) else torch.float32
        filling = None if imputed is None else imputed.detach().to(wide)
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.terms(embeddings.to(wide), mask, filling, groups)

    @property
    def aligned(self) -> tuple[str, ...]:
        """The modalities that some term of alignment takes, in their order; all but where an option leaves some out."""
        return self.modalities

    @abstractmethod
    def terms(self, embeddings: Tensor, mask: Tensor, imputed: Tensor | None, groups: Tensor | None) -> dict[str, Tensor]:
        """What `forward` returns, for inputs that were checked and are float32 or float64."""

    def _check(self, embeddings: Tensor, mask: Tensor, imputed: Tensor | None, groups: Tensor | None) -> None:
        k, d = len(self.modalities), self.dim
        for what, given in (("embeddings", embeddings), ("mask", mask), ("imputed", imputed), ("groups", groups)):
            if given is not None and not isinstance(given, Tensor):
                raise CalmrlError(
                    f"objective '{self.name}' expects torch tensors, got {what} as {type(given).__name__}",
                    hint="torch.from_numpy(array)",
                )
        if embeddings.ndim != 3 or embeddings.shape[1:] != (k, d):
            raise CalmrlError(
                f"objective '{self.name}' expects embeddings [B, {k}, {d}] ({', '.join(self.modalities)}), got {list(embeddings.shape)}"
            )
        if mask.shape != embeddings.shape[:2] or mask.dtype != torch.bool:
            raise CalmrlError(
                f"objective '{self.name}' expects a bool mask {list(embeddings.shape[:2])}, got {mask.dtype} {list(mask.shape)}"
            )
        if imputed is not None and imputed.shape != embeddings.shape:
            raise CalmrlError(
                f"objective '{self.name}' expects imputed embeddings {list(embeddings.shape)}, got {list(imputed.shape)}"
            )
        if groups is not None and (groups.shape != mask.shape[:1] or groups.is_floating_point()):
            raise CalmrlError(
                f"objective '{self.name}' expects one group number per item [{len(mask)}], got {groups.dtype} {list(groups.shape)}"
            )


def without_hidden(embeddings: Float[Tensor, "b k d"], mask: Bool[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
    """`embeddings` with zeros in place of what is hidden: no NaN gets in, no gradient gets out. Zeros are not data; keep the mask."""
    return embeddings.masked_fill(~mask.unsqueeze(-1), 0.0)


def same_group(groups: Int[Tensor, " b"] | None) -> Bool[Tensor, "b b"] | None:
    """True where two items share a group, the diagonal included."""
    return None if groups is None else groups.unsqueeze(0) == groups.unsqueeze(1)


def skipped(used: Bool[Tensor, " b"], like: Tensor) -> Float[Tensor, ""]:
    """The number of items not used, as a number of the kind of `like`."""
    return (~used).sum().to(like.dtype)


# CLIP's limit: below this temperature float32 logits of unit vectors stop being trainable.
_COLDEST = 0.01


def positive(objective: str, option: str, value: float) -> float:
    """`value` if it is a finite number above zero; CalmrlError naming the option otherwise."""
    if not _number(value) or not math.isfinite(value) or value <= 0:
        raise CalmrlError(f"objective '{objective}': {option} must be a finite number above 0, got {value!r}")
    return float(value)


def not_negative(objective: str, option: str, value: float) -> float:
    """`value` if it is a finite number of at least zero; CalmrlError naming the option otherwise."""
    if not _number(value) or not math.isfinite(value) or value < 0:
        raise CalmrlError(f"objective '{objective}': {option} must not be negative, got {value!r}")
    return float(value)


def share(objective: str, option: str, value: float) -> float:
    """`value` if it lies in [0, 1); CalmrlError naming the option otherwise."""
    if not _number(value) or not 0 <= value < 1:
        raise CalmrlError(f"objective '{objective}': {option} must be at least 0 and below 1, got {value!r}")
    return float(value)


def whole(objective: str, option: str, value: int, least: int = 1) -> int:
    """`value` if it is a whole number of at least `least`; CalmrlError naming the option otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise CalmrlError(f"objective '{objective}': {option} must be a whole number of at least {least}, got {value!r}")
    return value


def flag(objective: str, option: str, value: bool) -> bool:
    """`value` if it is true or false; CalmrlError naming the option otherwise."""
    if not isinstance(value, bool):
        raise CalmrlError(f"objective '{objective}': {option} must be true or false, got {value!r}")
    return value


def one_of(objective: str, option: str, value: str, values: Sequence[str]) -> str:
    """`value` if it is among `values`; CalmrlError naming the nearest otherwise."""
    known(str(value), values, f"objective '{objective}': unknown {option}")
    return value


def modality_index(objective: str, modalities: Sequence[str], wanted: str | None, usual: Sequence[str]) -> int:
    """Place of `wanted` among `modalities`; without a wish, of the first of `usual` that is there, else 0."""
    if wanted is None:
        return next((modalities.index(name) for name in usual if name in modalities), 0)
    return known(str(wanted), modalities, f"objective '{objective}': there is no modality")


def modality_columns(
    objective: str, option: str, modalities: Sequence[str], wanted: Sequence[str] | None, least: int = 2
) -> list[int]:
    """Places among `modalities` of those that `option` names, in their order there; None: of all.

    A published name stands for what takes its place: "caption" for "text" where there is no caption, "vision" for "image" or "video", "audio" for "sound". A name that
    no modality has is left out, since a store may lack a modality that a published system has. Raises CalmrlError for a name that looks like a
    misspelt one, and where fewer than `least` are left.
    """
    if wanted is None:
        return list(range(len(modalities)))
    found = []
    for name in wanted:
        roles = next((names for names in (TEXT, IMAGE, AUDIO) if name in names), ())
        place = next((modalities.index(known) for known in (name, *roles) if known in modalities), None)
        if place is not None:
            found.append(place)
        elif close := nearest(str(name), list(modalities)):
            raise CalmrlError(
                f"objective '{objective}': {option} names '{name}', and there is no such modality{close}",
                hint=f"there are: {', '.join(modalities)}",
            )
    if len(set(found)) < least:
        raise CalmrlError(
            f"objective '{objective}': of {option} ({', '.join(map(str, wanted))}) fewer than {least} are among the modalities "
            f"{', '.join(modalities)}",
            hint=f"name at least {least} of them, or set objective_options.{option}=null for all",
        )
    return sorted(set(found))


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class LearnedTemperature(nn.Module):
    """1 / temperature, the factor that multiplies similarities; starts at `initial`, learned unless `fixed`, never below 0.01.

    `direct` trains the temperature itself, as VAST, GRAM and TRIANGLE do; otherwise the logarithm of its inverse, as CLIP does.
    """

    def __init__(self, initial: float, fixed: bool = False, direct: bool = False) -> None:
        super().__init__()
        self.direct = direct
        start = torch.tensor(initial if direct else -math.log(initial))
        if fixed:
            self.register_buffer("value", start)
        else:
            self.value = nn.Parameter(start)
        self.fixed = fixed

    def forward(self) -> Float[Tensor, ""]:
        if not self.fixed:
            # The parameter itself is held at the limit: clamping what is computed from it would end its gradient there for good.
            with torch.no_grad():
                self.value.clamp_(min=_COLDEST) if self.direct else self.value.clamp_(max=-math.log(_COLDEST))
        return 1 / self.value if self.direct else self.value.exp()
