"""Imputers that keep their training rows: each missing modality is learned from the items that show what is needed, on
demand."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calmrl_lab.data.patterns import Observations, Pattern
from calmrl_lab.imputers.base import Imputer, indexed
from calmrl_lab.linalg.floating_range import constant
from calmrl_lab.ppca.held_out import Target


@dataclass(eq=False)
class TrainingRows(Imputer):
    """Keeps training rows centred on their observed means and scaled to unit total variance per modality, float64, on the CPU.

    Subclasses learn a model for a target (observed modalities, missing modality) from the rows that show all of them; it is
    learned when an item first needs it, and kept. A target that fewer than `least` rows can teach is filled with the mean.
    """

    least = 4

    means: list[Tensor] = field(init=False, repr=False, default_factory=list)
    scales: Tensor = field(init=False, repr=False, default_factory=lambda: torch.zeros(0))
    rows: list[Float[Tensor, "n d"]] = field(init=False, repr=False, default_factory=list)
    shown: Bool[Tensor, "n k"] = field(init=False, repr=False, default_factory=lambda: torch.zeros(0, 0, dtype=torch.bool))
    _models: dict[Target, Any] = field(init=False, repr=False, default_factory=dict)

    def _fit(self, data: Observations) -> None:
        self.shown = data.mask.cpu()
        self.means, self.rows, scales = [], [], []
        for j, value in enumerate(data.values):
            rows = value.cpu().double().masked_fill(~self.shown[:, j : j + 1], 0.0)
            same = constant(rows[self.shown[:, j]])
            mean = rows.sum(dim=0) / self.shown[:, j].sum()
            rows = (rows - mean).masked_fill(~self.shown[:, j : j + 1] | same, 0.0)
            scale = (rows.square().sum() / self.shown[:, j].sum()).sqrt()
            scales.append(scale if scale > 0 else torch.ones_like(scale))
            self.means.append(mean)
            self.rows.append(rows / scales[-1])
        self.scales = torch.stack(scales)
        self._models = {}

    def _scaled(self, data: Observations, index: int, rows: Tensor) -> Float[Tensor, "n d"]:
        """Observed values of modality `index` in the coordinates of the training rows."""
        return (data.values[index][rows].cpu().double() - self.means[index]) / self.scales[index]

    def _fill(self, data: Observations, pattern: Pattern) -> dict[int, Tensor]:
        filled = {}
        parts = [self._scaled(data, j, pattern.rows) for j in pattern.observed]
        for m in pattern.missing:
            values = self._predict(pattern.observed, m, parts) if parts else None
            if values is None:
                values = torch.zeros(len(pattern.rows), len(self.means[m]), dtype=torch.float64)
            filled[m] = (values * self.scales[m] + self.means[m]).to(data.device)
        return filled

    def _predict(self, observed: tuple[int, ...], missing: int, parts: list[Tensor]) -> Tensor | None:
        target = (observed, missing)
        if target not in self._models:
            teachers = self.shown[:, [*observed, missing]].all(dim=1)
            enough = int(teachers.sum()) >= self.least
            sources = torch.cat([self.rows[j][teachers] for j in observed], dim=1) if enough else None
            self._models[target] = self._learn(sources, self.rows[missing][teachers]) if sources is not None else None
        model = self._models[target]
        return None if model is None else self._apply(model, torch.cat(parts, dim=1))

    @abstractmethod
    def _learn(self, sources: Float[Tensor, "n a"], targets: Float[Tensor, "n b"]) -> Any:
        """A model of `targets` given `sources`, both centred and scaled."""

    @abstractmethod
    def _apply(self, model: Any, sources: Float[Tensor, "n a"]) -> Float[Tensor, "n b"]: ...

    def _numbers(self) -> Sequence[float]:
        """Options as numbers, for the saved state."""
        return [float(value) for value in self.options().values()]

    def state(self) -> dict[str, np.ndarray]:
        named = {f"rows.{j}": rows.numpy() for j, rows in enumerate(self.rows)}
        named |= {f"means.{j}": mean.numpy() for j, mean in enumerate(self.means)}
        options = np.array(self._numbers(), dtype=np.float64)
        return {**named, "scales": self.scales.numpy(), "shown": self.shown.numpy(), "options": options}

    def _restore(self, state: Mapping[str, np.ndarray]) -> None:
        for (name, default), value in zip(self.options().items(), np.asarray(state["options"]).tolist(), strict=True):
            setattr(self, name, type(default)(value))
        self.rows = [torch.from_numpy(np.array(rows)) for rows in indexed(state, "rows")]
        self.means = [torch.from_numpy(np.array(mean)) for mean in indexed(state, "means")]
        self.scales = torch.from_numpy(np.array(state["scales"]))
        self.shown = torch.from_numpy(np.array(state["shown"]).astype(bool))
        self.dims = tuple(len(mean) for mean in self.means)
        self._models = {}
