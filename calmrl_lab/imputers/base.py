"""The base class of imputers: fitted on embeddings with gaps, it fills the gaps and leaves observed entries unchanged."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from calmrl_lab.data.patterns import Array, Observations, Pattern, modality_name, observe
from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers._estimator import Estimator, Modalities, arranged


class Imputer(Estimator, ABC):
    """Base of the imputers: subclasses are dataclasses whose fields are their options.

    `fills` tells callers whether gaps are filled at all: an imputer with `fills = False` returns embeddings as they came, and
    the mask stays what it was. `modalities` (optional, settable) are names for messages. Subclasses give `_fit` and `_fill`,
    and `state` and `_restore` for saving.

    Imputers are estimators of scikit-learn (`fit`, `transform`, `clone`, `Pipeline`), on lists or dicts of arrays:

    >>> import numpy as np
    >>> from calmrl_lab.imputers import Ridge
    >>> vision = np.random.default_rng(0).normal(size=(50, 4))
    >>> text = vision @ np.ones((4, 3))
    >>> text[:10] = np.nan
    >>> filled = Ridge().fit_transform({"vision": vision, "text": text})
    >>> bool(np.abs(filled["text"][:10] - vision[:10] @ np.ones((4, 3))).max() < 0.05)
    True
    """

    name: ClassVar[str]
    fills: ClassVar[bool] = True
    # Whether `fit` takes `groups`, items that must not be told apart by holding some of them out.
    takes_groups: ClassVar[bool] = False
    modalities: Sequence[str] | None = None
    # Dimensions of the modalities that were fitted; None before.
    dims: tuple[int, ...] | None = None

    def options(self) -> dict[str, Any]:
        """The options this imputer was made with, so that `type(self)(**options)` is an unfitted twin."""
        return self.get_params()

    @property
    def fitted(self) -> bool:
        return self.dims is not None

    def fit(self, embeddings: Modalities, mask: Array | None = None) -> Self:
        """Learn from `embeddings` (k arrays [N, d_m], a list or by name) where `mask` [N, k] is True; the rest is never looked at.

        Without a mask, rows that are NaN throughout are gaps. The names of a dict become `modalities`.

        Raises CalmrlError for shapes that disagree, NaN or infinity at observed entries, and a modality that is never observed.
        """
        data = self._observe(embeddings, mask)
        refuse_unobserved(data, self.name)
        self._fit(data)
        self.dims = data.dims
        return self

    def impute(self, embeddings: Sequence[Array], mask: Array) -> list[Array]:
        """`embeddings` with the entries under a False mask filled: k arrays [N, d_m] of the kind, dtype and device that came
        in.

        Observed entries are returned bit for bit. Raises CalmrlError if unfitted, for other dimensions than the fitted ones,
        and for NaN or infinity at observed entries.
        """
        return self.completed(self._observe_fitted(embeddings, mask))

    def completed(self, data: Observations) -> list[Array]:
        """`impute` for observations that are known to be in order."""
        filled = [value.clone() for value in data.values]
        for pattern in data.patterns():
            if pattern.missing:
                for index, values in self._fill(data, pattern).items():
                    filled[index][pattern.rows] = values.to(filled[index].dtype)
        return [data.returned(value) for value in filled]

    def _observe(self, embeddings: Modalities, mask: Array | None) -> Observations:
        """What is fitted: checked, in the order in which it comes."""
        arrays, shown = arranged(embeddings, mask)
        if isinstance(embeddings, Mapping):
            self.modalities = tuple(embeddings)
        return observe(arrays, shown, self.modalities)

    def _observe_fitted(self, embeddings: Sequence[Array], mask: Array) -> Observations:
        if not self.fitted:
            raise CalmrlError(f"imputer '{self.name}' has not been fitted", hint="call fit(embeddings, mask) first")
        return observe(embeddings, mask, self.modalities, self.dims)

    @abstractmethod
    def _fit(self, data: Observations) -> None: ...

    @abstractmethod
    def _fill(self, data: Observations, pattern: Pattern) -> dict[int, Tensor]:
        """Values [n, d_m] for every missing modality of `pattern`, in the order of `pattern.rows`."""

    @abstractmethod
    def state(self) -> dict[str, np.ndarray]:
        """What `from_state` needs, as named arrays (for safetensors)."""

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Self:
        """The fitted imputer whose `state()` this was. Raises CalmrlError for a state of another kind."""
        imputer = cls()
        try:
            imputer._restore(state)
        except KeyError as error:
            raise CalmrlError(f"this is no saved state of imputer '{cls.name}': it has no array {error}") from None
        return imputer

    @abstractmethod
    def _restore(self, state: Mapping[str, np.ndarray]) -> None: ...


def refuse_unobserved(data: Observations, imputer: str) -> None:
    """CalmrlError naming the first modality that no item of `data` shows."""
    unseen = torch.nonzero(~data.mask.any(dim=0)).flatten().tolist()
    if unseen:
        raise CalmrlError(
            f"{data.name(unseen[0])} is never observed (0 of {len(data)} items), so imputer '{imputer}' cannot know it",
            hint="leave the modality out, or add items that show it",
        )


def co_observed(data: Observations) -> np.ndarray:
    """How many items show both of a pair of modalities [k, k]; `Statistics.co_observed` where there are statistics already."""
    shown = data.mask.cpu().double()
    return (shown.T @ shown).numpy()


def refuse_unconnected(counts: np.ndarray, imputer: str, modalities: Sequence[str] | None) -> None:
    """CalmrlError naming a modality that no item shows, or that no chain of modalities seen together connects with the others.

    `counts` [k, k] is the number of items that show both of a pair.
    """
    together = counts > 0
    for index in range(len(together)):
        if not together[index, index]:
            raise CalmrlError(
                f"{modality_name(modalities, index)} is never observed, so imputer '{imputer}' cannot know it",
                hint="leave the modality out, or add items that show it",
            )
    _, island = connected_components(together, directed=False)
    main = island == np.bincount(island).argmax()
    if not main.all():
        index = int(np.flatnonzero(~main)[0])
        others = ", ".join(modality_name(modalities, j).removeprefix("modality ") for j in np.flatnonzero(main).tolist())
        raise CalmrlError(
            f"{modality_name(modalities, index)} is never observed together with any of {others}, not even "
            f"through a chain of other modalities, so imputer '{imputer}' cannot relate it to them",
            hint="add items that show it together with another modality, or leave it out",
        )


def indexed(state: Mapping[str, np.ndarray], prefix: str) -> list[np.ndarray]:
    """The arrays `prefix.0`, `prefix.1`, ... of a state, in order. Raises KeyError if there is none."""
    count = sum(key.startswith(f"{prefix}.") for key in state)
    return [np.asarray(state[f"{prefix}.{index}"]) for index in range(max(count, 1))]


def whole(value: Any, name: str, least: int) -> int:
    """`value` as a whole number of at least `least`; 3.0 is one, True is none. Raises CalmrlError."""
    try:
        found = operator.index(value)
    except TypeError:
        found = int(value) if isinstance(value, float) and value.is_integer() else least - 1
    if isinstance(value, bool) or found < least:
        raise CalmrlError(f"{name} is {value!r}, expected a whole number of at least {least}")
    return found


def number(value: Any, name: str, unit: str = "", above: bool = False, below: float = float("inf")) -> float:
    """`value` as a finite number of at least 0 (above 0 with `above`) and less than `below`. Raises CalmrlError."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not known or not 0 <= value < below or (above and value == 0):
        least = "above 0" if above else "of at least 0"
        most = f" and below {below:g}" if below < float("inf") else ""
        raise CalmrlError(f"{name} is {value!r}, expected a number {unit}{least}{most}")
    return float(value)


def flag(value: Any, name: str) -> bool:
    """`value` as true or false. Raises CalmrlError."""
    if not isinstance(value, bool):
        raise CalmrlError(f"{name} is {value!r}, expected true or false")
    return value
