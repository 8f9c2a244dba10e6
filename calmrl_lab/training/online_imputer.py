"""The imputer during training: re-fitted on current embeddings every few epochs, filling the gaps of each batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calmrl_lab.anchors.gate import Gate
from calmrl_lab.data.patterns import Observations, observe
from calmrl_lab.data.table import BLOCK, FeatureTable, Table
from calmrl_lab.imputers import imputers
from calmrl_lab.imputers.base import Imputer
from calmrl_lab.imputers.ppca import PPCA
from calmrl_lab.model.encode import encode, stack
from calmrl_lab.model.projection import Projection
from calmrl_lab.ppca.distributed_statistics import agreed_shift, pooled
from calmrl_lab.ppca.noise_scale import floor_noise, scale_noise
from calmrl_lab.ppca.statistics import Statistics, observed_means
from calmrl_lab.runtime.distributed import first_says, processes, rank
from calmrl_lab.runtime.progress import progress, tracked

# Items that an imputer without statistics is fitted to, where not all are in memory.
SAMPLED = 50_000


class OnlineImputer:
    """Fills what a scenario hides, with an imputer that follows the moving heads.

    `held_out` are the validation items that decide how far to trust a generative imputer. `replay` are tables of complete items (a
    warm-up store) whose embeddings are encoded anew at every refresh and stay in the imputer's statistics; without them its parameters for
    modalities that training no longer shows go stale; without `sees_training` they are all that it is fitted on. Without `scale_noise` a generative
    imputer fills with the noise that it was fitted with. With a `gate`, items whose predicted gain is too small stay as they are.
    """

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any],
        modalities: Sequence[str],
        held_out: FeatureTable,
        replay: Sequence[FeatureTable] = (),
        gate: Gate | None = None,
        sees_training: bool = True,
        scale_noise: bool = True,
    ) -> None:
        self.name = name
        self.options = dict(options)
        self.modalities = tuple(modalities)
        self.held_out = held_out
        self.replay = list(replay)
        self.gate = gate
        self.sees_training = sees_training
        self.scale_noise = scale_noise
        self.imputer = self._make()
        # What fills: the fitted imputer, its noise scaled by what held-out items say. EM itself goes on from the fitted one.
        self.noise_scaled = self.imputer

    def _make(self) -> Any:
        imputer = imputers.create(self.name, **self.options)
        imputer.modalities = self.modalities
        return imputer

    @property
    def fills(self) -> bool:
        return bool(self.imputer.fills)

    def refresh(self, heads: Projection, table: Table, iterations: int) -> dict[str, float]:
        """Fit on the current embeddings of `table` (its mask) and the replay tables; returns what is worth logging.

        Where there are more items than a block holds, or several processes train together, PPCA is fitted on statistics that are summed block by
        block, each process its share; other imputers see a sample of the items.
        """
        if not self.fills:
            return {}
        logged = {}
        # Parameters go on from where they were: embeddings have moved a little, not everything is new.
        start = floor_noise(self.imputer) if self.imputer.fitted else None
        shown = [table] if self.sees_training else []
        count = sum(map(len, [*self.replay, *shown]))
        if getattr(self.imputer, "fits_on_statistics", False) and (processes() > 1 or count > BLOCK):
            statistics = summed_statistics(heads, [*self.replay, *shown], self.modalities)
            self.imputer.fit_statistics(statistics, iterations=iterations, start=start)
        else:
            tables = [*self.replay, *(part.sample(SAMPLED) for part in shown)]
            count = sum(map(len, tables))
            parts = [encode(heads, part) for part in tables]
            embeddings = [torch.cat([part[j] for part in parts]) for j in range(len(self.modalities))]
            mask = torch.cat([part.mask for part in tables])
            settings: dict[str, Any] = (
                {"groups": np.concatenate([part.group for part in tables])} if self.imputer.takes_groups else {}
            )
            if hasattr(self.imputer, "log_likelihoods"):
                settings |= {"iterations": iterations, "start": start}
            with progress(f"fitting {self.name} to {count} items"):
                self.imputer.fit(embeddings, mask, **settings)
        if hasattr(self.imputer, "log_likelihoods"):
            logged["imputer_log_likelihood"] = float(self.imputer.log_likelihoods[-1]) / max(count, 1)
        if processes() > 1:
            # Machines may round differently: all go on with the parameters of the first.
            self.imputer = self._restored(first_says(self.imputer.state()))
        return {**logged, **self.settle(heads, table)}

    def forget(self) -> None:
        """Fit from the beginning next time: the embeddings are others than those the parameters were fitted to."""
        self.imputer = self.noise_scaled = self._make()

    def mirror(self, signs: Sequence[int]) -> None:
        """Go on for embeddings that were multiplied by `signs` (+1 or -1 for each modality): PPCA's parameters are too, other imputers are forgotten."""
        if -1 not in signs:
            return
        if not isinstance(self.imputer, PPCA):
            self.forget()
        elif self.imputer.fitted:
            self.imputer = self.noise_scaled = self.imputer.mirrored(signs)

    def settle(self, heads: Projection, table: Table) -> dict[str, float]:
        """Make what fills out of the imputer as it is fitted, by held-out items under these `heads`; returns what is worth logging."""
        held_out = encode(heads, self.held_out)
        self.noise_scaled, logged = self.imputer, {"imputer_noise_scale": 1.0}
        if self.scale_noise:
            self.noise_scaled, logged["imputer_noise_scale"] = scale_noise(
                self.imputer, held_out, self.held_out.mask, table.mask
            )
        if self.gate is not None:
            logged |= self.gate.set_on(self.noise_scaled, held_out, self.held_out.mask, table.mask)
        return logged

    @torch.no_grad()
    def fill(
        self, embeddings: Float[Tensor, "b k d"], mask: Bool[Tensor, "b k"], host_mask: Bool[Tensor, "b k"] | None = None
    ) -> Float[Tensor, "b k d"]:
        """`embeddings` with the entries under a False mask imputed; no gradient flows through the result.

        Where the gate leaves an item uncalibrated these entries are NaN. With `host_mask`, the mask in host memory, embeddings are taken
        as they are (what is not finite shows in the loss), and PPCA does not make a GPU's host wait.
        """
        detached = embeddings.detach()
        columns = list(detached.unbind(dim=1))
        if host_mask is not None and getattr(type(self.noise_scaled), "impute", None) is Imputer.impute:
            parts = self.noise_scaled.completed(Observations(columns, mask, False, self.modalities, host_mask))
        else:
            parts = self.noise_scaled.impute(columns, mask)
        filled = stack(parts).to(detached.dtype)
        if self.gate is not None:
            shut = ~self.gate.opens(self.noise_scaled, detached, mask, filled)
            filled = torch.where(shut.view(-1, 1, 1) & ~mask.unsqueeze(2), torch.nan, filled)
        return filled

    @torch.no_grad()
    def gated(self, heads: Projection, table: Table) -> dict[str, int]:
        """How many items of `table` have gaps, and how many of those the gate leaves uncalibrated."""
        shut = 0
        for block in tracked(table.blocks(), "items that the gate leaves alone", -(-len(table) // BLOCK), "blocks"):
            filled = self.fill(stack(encode(heads, block)), block.mask)
            shut += int(filled.isnan().any(dim=2).any(dim=1).sum())
        return {"items_with_gaps": int((~table.mask.all(dim=1)).sum()), "left_uncalibrated": shut}

    def state(self) -> dict[str, np.ndarray]:
        """The parameters of the fitted imputer, of the one that fills and of the gate; nothing before the first fit."""
        if not self.fills or not self.imputer.fitted:
            return {}
        both = [("fitted", self.imputer), ("noise_scaled", self.noise_scaled), *([("gate", self.gate)] if self.gate else [])]
        return {f"{part}/{key}": np.asarray(value) for part, holder in both for key, value in holder.state().items()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from what `state` returned."""
        self.imputer, self.noise_scaled = (self._restored(_part(state, part)) for part in ("fitted", "noise_scaled"))
        if self.gate is not None:
            self.gate.load(_part(state, "gate"))

    def _restored(self, state: Mapping[str, np.ndarray]) -> Any:
        imputer = imputers.get(self.name).from_state(state)
        imputer.modalities = self.modalities
        return imputer


@torch.no_grad()
def summed_statistics(heads: Projection, tables: Sequence[Table], modalities: Sequence[str]) -> Statistics:
    """Per-pattern statistics of the embeddings of all items: each process takes its share of every block, and all sum up."""
    own: Statistics | None = None
    for table in tables:
        for block in tracked(table.blocks(), "statistics of embeddings", -(-len(table) // BLOCK), "blocks"):
            share = block.select(np.arange(rank(), len(block), processes())) if processes() > 1 else block
            data = observe(encode(heads, share), share.mask, modalities) if len(share) else None
            if own is None:
                shift = agreed_shift(None if data is None else observed_means(data))
                own = Statistics([heads.dim] * len(modalities), shift, block.mask.device)
            if data is not None:
                own.add(data)
    assert own is not None, "a table has items"
    return pooled(own)


def _part(state: Mapping[str, np.ndarray], part: str) -> dict[str, np.ndarray]:
    return {key.split("/", 1)[1]: value for key, value in state.items() if key.startswith(f"{part}/")}
