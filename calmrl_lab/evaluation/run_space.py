"""Items under the heads of a run: what search, curves and classification work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from calmrl_lab.data.streaming_table import table_for
from calmrl_lab.data.table import FeatureTable, Table
from calmrl_lab.data.training_data import splits_of, training_items
from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers import imputers
from calmrl_lab.model.encode import encode, stack
from calmrl_lab.model.joined import AnyHeads
from calmrl_lab.model.similarity import OverlapAndCosine
from calmrl_lab.ppca.latent_maps import LatentMaps
from calmrl_lab.runs.run import IMPUTER, Run
from calmrl_lab.runtime import console
from calmrl_lab.runtime.devices import resolve
from calmrl_lab.scorers.base import Scorer, make_scorer
from calmrl_lab.training.online_imputer import OnlineImputer

if TYPE_CHECKING:
    from calmrl_lab.store import FeatureStore


@dataclass(frozen=True)
class Evidence:
    """What the same items say about the latent vector of the PPCA that a run started from, [N, k, q] and [R_j, q] float64 as in `Embeddings`.

    `weight` is that of a cosine beside the overlap; None if the run chose none.
    """

    maps: LatentMaps
    weight: float | None
    items: Float[Tensor, "n k q"]
    rows: tuple[Float[Tensor, "r q"], ...]


@dataclass(frozen=True)
class Embeddings:
    """N items of k modalities as unit-norm embeddings.

    `items` [N, k, d] is the first row of every modality, zero where `mask` [N, k] is False; `rows[j]` [R_j, d] are all rows of
    modality j, that of item i where `owners[j]` is i. `labels` are those of the store, a string an item. `evidence` is there where it was
    asked for and the run started from PPCA.
    """

    modalities: tuple[str, ...]
    ids: np.ndarray
    group: np.ndarray
    items: Float[Tensor, "n k d"]
    mask: Bool[Tensor, "n k"]
    rows: tuple[Float[Tensor, "r d"], ...]
    owners: tuple[Int[Tensor, " r"], ...]
    labels: dict[str, np.ndarray]
    evidence: Evidence | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def filled(self, imputer: Any, mask: Bool[Tensor, "n k"]) -> Float[Tensor, "n k d"]:
        """`items` with the gaps of `mask` imputed; what the mask hides is not looked at."""
        return stack(imputer.impute(list(self.items.unbind(dim=1)), mask)).to(self.items.dtype)


@torch.no_grad()
def embed(heads: AnyHeads, table: FeatureTable) -> Embeddings:
    """The items of `table`, under its mask, in the space of `heads`."""
    rows = tuple(heads.project(index, features) for index, features in enumerate(table.rows))
    owners = tuple(
        torch.repeat_interleave(torch.arange(len(table), device=offsets.device), offsets.diff()) for offsets in table.offsets
    )
    items = stack(encode(heads, table)).masked_fill(~table.mask.unsqueeze(-1), 0.0)
    return Embeddings(table.modalities, table.ids, table.group, items, table.mask, rows, owners, {})


@dataclass(frozen=True)
class RunSpace:
    """A finished run over a store: embeds any of its splits."""

    run: Run
    heads: AnyHeads
    table: Table
    store: FeatureStore
    splits: np.ndarray

    @classmethod
    def open(cls, run: Run | Path | str, store: FeatureStore | Path | str | None = None, device: str = "auto") -> RunSpace:
        """`run` over the store it was trained on, or over `store`. Raises CalmrlError for an unfinished run, a store that has changed
        since it was trained on, and one that does not fit its heads."""
        from calmrl_lab.store import FeatureStore

        run = run if isinstance(run, Run) else Run.open(run)
        # Reading the summary refuses a run that has not finished.
        config, summary = run.config, run.summary
        source = store if isinstance(store, FeatureStore) else FeatureStore.open(config.store if store is None else store)
        if store is None and source.digest != summary["store"]["digest"]:
            raise CalmrlError(
                f"store '{config.store}' has changed since run '{run.path}' was trained on it",
                hint="train the run again, or name the store with --store",
            )
        place = resolve(device)
        heads = run.load_heads().to(place)
        table = table_for(source, heads.dims, str(place), config.memory)
        return cls(run, heads, table, source, splits_of(source, config))

    def items_of(self, split: str | None) -> Int[np.ndarray, " n"]:
        """Positions of the items of one split (None: of all). Raises CalmrlError if there are none."""
        chosen = np.arange(len(self.table)) if split is None else np.flatnonzero(self.splits == split)
        if len(chosen) == 0:
            raise CalmrlError(
                f"store '{self.store.path}' has no items in split '{split}'",
                hint=f"it has: {', '.join(np.unique(self.splits))}",
            )
        return chosen

    def embed(self, split: str | None = "test", evidence: bool = False) -> Embeddings:
        """The items of one split (None: of all), with their `evidence` if asked for. Raises CalmrlError if there are none."""
        chosen = self.items_of(split)
        labels = {name: np.asarray(values)[chosen] for name, values in self.store.labels.items()}
        table = self.table.select(chosen).in_memory()
        return replace(embed(self.heads, table), labels=labels, evidence=self._evidence(table) if evidence else None)

    def _evidence(self, table: FeatureTable) -> Evidence | None:
        if not self.run.has_latent():
            return None
        maps = self.run.load_latent()
        first = [maps.information_vector(j, rows) for j, rows in enumerate(table.first_rows())]
        items = torch.stack(first, dim=1).masked_fill(~table.mask.unsqueeze(-1), 0.0)
        rows = tuple(maps.information_vector(j, rows) for j, rows in enumerate(table.rows))
        return Evidence(maps, self.run.summary.get("cosine_weight"), items, rows)

    def scorer(self, name: str, query: str, modalities: Sequence[str]) -> Scorer:
        """`make_scorer` with what this run has trained for it."""
        options = {"objective": self.run.load_objective()} if name == "fused" else {}
        return make_scorer(name, query, modalities, **options)

    def imputer(self, name: str | None = None) -> Any | None:
        """The run's own fitted imputer; with a name, that one fitted afterwards on the training embeddings as the run's scenario showed them.

        None if the run trained without one, or filled nothing, and no name is given.
        """
        config = self.run.config
        own = imputers.get(config.impute).fills and self.run.has(IMPUTER)
        if own and name in (None, config.impute):
            imputer = self.run.load_imputer()
        elif name is None:
            return None
        else:
            validation = self.table.select(np.flatnonzero(self.splits == "validation")).in_memory()
            filler = OnlineImputer(name, {}, self.heads.modalities, validation)
            filler.refresh(self.heads, training_items(self.table, self.splits, config), config.first_iterations)
            imputer = filler.tempered
        imputer.modalities = self.heads.modalities
        return imputer


def note_comparison(run: Path, what: str) -> None:
    """A note for runs that do not compare pairs by cosine, where a command does."""
    from calmrl_lab.config import SCORE_WORDS
    from calmrl_lab.runs.run import Run

    score = Run.open(run).config.score
    if score != "cosine":
        console.note(f"run '{run.name}' compares pairs by {SCORE_WORDS[score]}; {what}")


def pair_model(run: Run, heads: AnyHeads, score: str) -> LatentMaps | OverlapAndCosine:
    """What compares pairs by `score` 'overlap' or 'both' for a run with these `heads`.

    Raises CalmrlError for a run that did not start by PPCA, and for 'both' if it chose no weight.
    """
    maps, weight = run.load_latent(), run.summary.get("cosine_weight")
    if score == "overlap":
        return maps
    if weight is None:
        raise CalmrlError(
            f"run '{run.path}' chose no weight for score 'both'", hint="train with --score both, or score by overlap"
        )
    return OverlapAndCosine(maps, heads, weight)
