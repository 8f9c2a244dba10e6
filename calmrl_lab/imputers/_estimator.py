"""What makes every imputer an estimator of scikit-learn: `fit`, `transform`, `fit_transform`, `get_params`, `set_params`, on lists or dicts of arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor

from calmrl_lab.data.patterns import Array
from calmrl_lab.errors import CalmrlError
from calmrl_lab.registry import known
from calmrl_lab.store.convert.arrays_in_memory import unmasked
from calmrl_lab.store.convert.item_ids import frame_index

# k arrays [N, d_m], in a list or by name; None where no item shows the modality.
Modalities: TypeAlias = Sequence[Array | None] | Mapping[str, Array | None]


class ParameterError(CalmrlError, ValueError):
    """A parameter that an estimator does not have or cannot take: a ValueError, as scikit-learn expects."""


class Estimator:
    """The methods by which scikit-learn knows a transformer; classes that use it are dataclasses whose fields are their parameters.

    Nothing of scikit-learn is imported before it is used: its base class would double the time that every command takes to start.
    """

    modalities: Sequence[str] | None = None
    dims: tuple[int, ...] | None = None

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The options this estimator was made with; `sklearn.base.clone` makes an unfitted twin of them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.init}  # type: ignore[arg-type]

    def set_params(self, **params: Any) -> Self:
        """Change options; what was fitted stays until the next `fit`. Raises ValueError (a CalmrlError too) for unknown or impossible ones."""
        options = self.get_params()
        try:
            for name in params:
                known(name, list(options), f"{type(self).__name__} has no parameter")
            twin = type(self)(**{**options, **params})
        except CalmrlError as error:
            raise ParameterError(error.message, error.hint) from None
        for name in params:
            setattr(self, name, getattr(twin, name))
        return self

    def transform(self, embeddings: Modalities, mask: Array | None = None) -> Any:
        """`embeddings` with their gaps filled, in the container, dtype and device that came in.

        A gap is a row that is NaN throughout or, with `mask` [N, k] (bool, True = observed, columns in the order of the arrays), an entry that
        is False. An imputer that was fitted on a dict takes dicts that lack a modality, as None or altogether: it is filled for every item.
        """
        if isinstance(embeddings, Mapping) and self.dims is not None and not self.modalities:
            raise CalmrlError("the imputer was fitted on a list, so it knows no names", hint="give a list in the same order")
        arrays, shown = arranged(embeddings, mask, self.modalities if self.dims else None, self.dims)
        filled = self.impute(arrays, shown)  # type: ignore[attr-defined]
        if not isinstance(embeddings, Mapping):
            return filled
        assert self.modalities is not None
        return dict(zip(self.modalities, filled, strict=True))

    def fit_transform(self, embeddings: Modalities, y: Any = None, mask: Array | None = None) -> Any:
        """`fit`, then `transform` of the same items; `y` is not looked at, as in every imputer of scikit-learn."""
        return self.fit(embeddings, mask).transform(embeddings, mask)  # type: ignore[attr-defined]

    def __sklearn_is_fitted__(self) -> bool:
        return self.dims is not None

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        gaps = InputTags(two_d_array=False, allow_nan=True)
        return Tags(
            estimator_type=None, target_tags=TargetTags(required=False), transformer_tags=TransformerTags(), input_tags=gaps
        )


def arranged(
    embeddings: Modalities, mask: Array | None, names: Sequence[str] | None = None, dims: Sequence[int] | None = None
) -> tuple[list[Array], Array]:
    """`embeddings` as a list, a dict in the order of `names` (default: its own), and the mask: the one given, or that of the rows that are
    not NaN throughout. With `dims`, modalities that are None or not there become gaps for every item.

    Raises CalmrlError for names that are not known, and for modalities without an array whose dimension is not known.
    """
    given: Sequence[Array | None]
    if getattr(embeddings, "ndim", 3) < 3:
        raise CalmrlError(
            f"one array {list(getattr(embeddings, 'shape', ()))} was given, expected a list (or dict) with one array [N, d] per modality",
            hint="an imputer has to know which columns belong to which modality: [table[:, :5], table[:, 5:]]",
        )
    if isinstance(embeddings, Mapping):
        frame_index(embeddings)
        order = list(embeddings) if names is None else list(names)
        for name in embeddings:
            known(name, order, "the imputer was not fitted on modality")
        if mask is not None and list(embeddings) != order:
            raise CalmrlError(
                f"a mask needs its columns in the order that was fitted: {', '.join(order)}; got {', '.join(embeddings)}",
                hint="give the modalities in that order, all of them, or mark gaps by NaN rows",
            )
        given = [embeddings.get(name) for name in order]
    else:
        given = list(embeddings)
        frame_index({f"number {number}": value for number, value in enumerate(given)})
    given = [unmasked(value) for value in given]
    there = [value for value in given if value is not None]
    if len(there) < len(given):
        if dims is None or not there or len(dims) != len(given):
            raise CalmrlError(
                "a modality is None, so its dimension is not known", hint="give an array with NaN rows, or leave it out"
            )
        there = [_gaps(there[0], dims[j]) if value is None else value for j, value in enumerate(given)]
    return there, _observed(there) if mask is None else mask


def _gaps(like: Array, dim: int) -> Array:
    """NaN rows for the items of `like`, of its kind."""
    if isinstance(like, Tensor):
        return torch.full((len(like), dim), torch.nan, dtype=like.dtype, device=like.device)
    return np.full((len(like), dim), np.nan, dtype=np.asarray(like).dtype)


def _observed(arrays: Sequence[Array]) -> Array:
    """[N, k]: True where a row is not NaN throughout."""
    columns: list[Tensor] = []
    for value in arrays:
        rows = value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
        if rows.ndim != 2 or (columns and len(rows) != len(columns[0])):
            found = ", ".join(str(list(np.shape(one))) for one in arrays)
            raise CalmrlError(
                f"the arrays have shapes {found}, expected [N, d] each, with one N",
                hint="a list (or dict) with one array per modality",
            )
        columns.append(~rows.isnan().all(dim=1) if rows.is_floating_point() else torch.ones(len(rows), dtype=torch.bool))
    if not columns:
        raise CalmrlError("no embeddings were given (expected a list of k arrays [N, d_m], one per modality)")
    return torch.stack([column.to(columns[0].device) for column in columns], dim=1)
