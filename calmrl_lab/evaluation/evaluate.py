"""Evaluation of a run: ranks in every direction, imputation errors and anchor shifts, one row per query or item, never only a mean."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calmrl_lab.anchors.bounds import anchor_report
from calmrl_lab.anchors.gate import achieved, gated_columns
from calmrl_lab.config import SimilarityName, TrainConfig
from calmrl_lab.data.missingness import pattern_names
from calmrl_lab.data.patterns import Patterns
from calmrl_lab.data.table import BLOCK, FeatureTable, sampled
from calmrl_lab.data.training_data import VALIDATION_ITEMS, open_data, training_positions
from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.feature_reference import beside_features, feature_rows
from calmrl_lab.evaluation.retrieval import Ranks, rank_both
from calmrl_lab.evaluation.run_items import RunItems, open_run
from calmrl_lab.evaluation.score_rows import recall_table, score_rows
from calmrl_lab.imputers import imputers
from calmrl_lab.model.alignment_model import AlignmentModel
from calmrl_lab.model.embeddings import owners_of
from calmrl_lab.model.encode import stack
from calmrl_lab.ppca.noise_scale import held_out_errors
from calmrl_lab.registry import known
from calmrl_lab.runs.run import Run, writes_into_run
from calmrl_lab.runtime.devices import resolve
from calmrl_lab.runtime.progress import tracked
from calmrl_lab.runtime.threads import limited

if TYPE_CHECKING:
    import pandas as pd

    from calmrl_lab.store import FeatureStore

# Imputers compared on the embeddings of every calibrated run, beside its own.
CONTROLS = ("mean", "random")
# Complete items of the split that are shown under every pattern of training, and training items whose hidden entries are looked at: of more,
# a sample. There is a row for each of them, each pattern, modality and imputer.
CALIBRATED, CALIBRATED_TRAINING = 5_000, 20_000
# Items whose float32 or float64 copies are made at once.
_ITEMS = 1_024


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` computed: one row per query (`scores`, see `score_rows`), per imputed entry (`imputation`) and per item (`anchors`).

    `coverage` says what was evaluated at all (as in evaluation.json): the `similarity` that pairs were compared by, the `store` (dataset and digest),
    `split`, `items` in it, `empty_items` that show no modality, `directions` with the number of `queries` that were ranked,
    `without_positive` that were left out and the `gallery_size`, and `unserved` directions, of which no item has both modalities. A gated
    run adds `gate`: how many items were scored, left uncalibrated and harmed, and the harm rate with patterns as frequent as in training.
    """

    run: Run
    scores: pd.DataFrame
    imputation: pd.DataFrame | None
    anchors: pd.DataFrame | None
    coverage: dict[str, Any]

    def table(self) -> pd.DataFrame:
        """`recall_table` of the scores, one row per direction; `without_positive` counts the query rows that were left out because their item
        lacks the gallery's modality."""
        left_out = {(row["query"], row["gallery"]): row["without_positive"] for row in self.coverage["directions"]}
        table = recall_table(self.scores)
        return table.assign(without_positive=[left_out[pair] for pair in zip(table["query"], table["gallery"], strict=True)])


@limited()
@writes_into_run
def evaluate(
    run: Run | str | Path,
    directions: Sequence[tuple[str, str]] | None = None,
    store: FeatureStore | str | Path | None = None,
    split: str = "test",
    device: str = "auto",
    similarity: SimilarityName | None = None,
) -> Evaluation:
    """Score a finished run on `split` of its store (or of `store`) and write scores.parquet, imputation.parquet, anchors.parquet,
    evaluation.json.

    `directions` are (query modality, gallery modality) pairs; default: all ordered pairs that some item can serve. The gallery of a direction is every row of
    its modality in the split; a query whose item has no row there has no positive and is left out. Nothing is hidden from the gallery.
    `similarity` is cosine, likelihood-ratio (for runs that started by PPCA) or sum (for runs that chose its weight); default: what the run was
    trained for.
    Raises CalmrlError for an unfinished run, an unknown modality, a store that is not the one the run was trained on (unless given),
    a direction that was named and that no item can serve, or no direction at all.

    >>> import numpy as np
    >>> from calmrl_lab import FeatureStore, evaluate, train_heads
    >>> vision, text = np.random.default_rng(0).normal(size=(2, 60, 8))
    >>> store = FeatureStore.from_arrays({"vision": vision, "text": text})
    >>> run = train_heads(store, "clip", epochs=1, dim=4, device="cpu", run="runs/first")
    >>> found = evaluate(run, split="test")
    >>> list(found.table()["query"])
    ['vision', 'text']
    """
    run, model, items = open_run(run, store, device)
    config, model = run.config, model.compared_by(similarity)
    held_out = items.of(split)
    asked = _directions(model.modalities, directions)
    served, unserved = _served(held_out, asked, optional=directions is None)
    served, incomparable = _comparable(model, held_out, served, optional=directions is None)
    scores = rank_directions(model, held_out, served)
    beside = beside_features(scores, feature_rows(held_out, served))
    imputation = anchors = None
    # An ensemble has no imputer of its own, whatever its members were trained with.
    if store is None and imputers.get(run.summary["imputer"]).fills:
        mask, train_table, validation, replay = _seen(items, config, device)
        if not bool(mask.all()):
            imputation, anchors = _calibration(run, model, train_table, validation, held_out, split, replay)
    scored_on = {"dataset": items.store.dataset, "digest": items.store.digest}
    name = similarity or config.similarity
    coverage = {
        "similarity": name,
        "features": beside,
        "incomparable": incomparable,
        "store": scored_on,
        **_coverage(held_out, split, served, unserved),
    }
    if config.risk_control and anchors is not None and len(anchors):
        shown = pattern_names(mask, model.modalities)
        coverage["gate"] = achieved(anchors, Counter(shown), config.risk_level)
    run.write_evaluation({run.SCORES: scores, run.IMPUTATION: imputation, run.ANCHORS: anchors}, coverage)
    return Evaluation(run, scores, imputation, anchors, coverage)


def _seen(
    items: RunItems, config: TrainConfig, device: str
) -> tuple[Bool[np.ndarray, "n k"], FeatureTable, FeatureTable, list[FeatureTable]]:
    """The mask of the training items as the run was shown them, those of a mix included; at most `CALIBRATED_TRAINING` of these items, the validation
    items, and the items of a warm-up."""
    if config.mix or config.warm_up:
        data = open_data(config, str(resolve(device)))
        train = data.train.sample(CALIBRATED_TRAINING)
        return data.train.mask.cpu().numpy(), train, data.validation, [] if data.warm_up is None else [data.warm_up]
    validation = items.table.select(np.flatnonzero(items.splits == "validation")).sample(VALIDATION_ITEMS)
    positions, mask = training_positions(items.table, items.splits, config)
    # Sampled before rows are copied.
    few = sampled(len(positions), CALIBRATED_TRAINING)
    return mask, items.table.select(positions[few]).with_mask(mask[few]).in_memory(), validation, []


def _directions(modalities: Sequence[str], asked: Sequence[tuple[str, str]] | None) -> list[tuple[str, str]]:
    if asked is None:
        return list(itertools.permutations(modalities, 2))
    for pair in asked:
        if isinstance(pair, str) or len(pair) != 2:
            raise CalmrlError(
                f"direction {pair!r} is no pair of modalities",
                hint='directions=[("text", "vision")]: first the query, then the gallery',
            )
        query, gallery = pair
        for name in (query, gallery):
            known(name, modalities, f"direction {query}->{gallery}: the run has no modality")
        if query == gallery:
            raise CalmrlError(f"direction {query}->{gallery} compares a modality with itself")
    # Asked for twice, a direction is still one: its queries must not count twice.
    return list(dict.fromkeys((query, gallery) for query, gallery in asked))


def _served(
    table: FeatureTable, directions: Sequence[tuple[str, str]], optional: bool
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The directions that at least one item can serve, and the others; CalmrlError for one of those that is not optional."""
    owned = table.natural_mask()
    served: list[tuple[str, str]] = []
    unserved: list[tuple[str, str]] = []
    for query, gallery in directions:
        a, b = table.modalities.index(query), table.modalities.index(gallery)
        able = bool((owned[:, a] & owned[:, b]).any())
        if not able and not optional:
            raise CalmrlError(
                f"direction {query}->{gallery}: no item of the split has both modalities", hint="leave this direction out"
            )
        (served if able else unserved).append((query, gallery))
    if not served:
        raise CalmrlError(
            f"no two of the modalities {', '.join(table.modalities)} are ever observed in one item of the split",
            hint="evaluate another split or store; calmrl-lab store info shows who is observed with whom",
        )
    return served, unserved


@torch.no_grad()
def _comparable(
    model: AlignmentModel, table: FeatureTable, directions: Sequence[tuple[str, str]], optional: bool
) -> tuple[list[tuple[str, str]], list[dict[str, str]]]:
    """The directions in which the model compares at all, and the others: features that are not projected have a cosine only with others of
    their dimension. CalmrlError for a direction of the second kind that is not optional, or if there are none of the first."""
    few = {name: rows[:50] for name, rows in zip(table.modalities, table.rows, strict=True)}
    found: list[tuple[str, str]] = []
    others: list[tuple[str, str]] = []
    for query, gallery in directions:
        left, right = model.pair_vectors(query, gallery, few[query], few[gallery])
        able = bool(((left != 0).any(dim=0) & (right != 0).any(dim=0)).any())
        if not able and not optional:
            raise CalmrlError(
                f"direction {query}->{gallery}: the run does not compare these two modalities",
                hint="leave this direction out, or train a method that aligns them",
            )
        (found if able else others).append((query, gallery))
    if not found:
        still = [name for name, rows in zip(table.modalities, table.rows, strict=True) if not bool((rows != rows[:1]).any())]
        raise CalmrlError(
            f"the run compares no two of the modalities {', '.join(table.modalities)}",
            hint=f"features of {', '.join(still)} are the same for every item, so that nothing tells items apart"
            if still
            else "features as they come have a cosine only with features of the same dimension; leave out --method to train",
        )
    return found, [{"query": query, "gallery": gallery} for query, gallery in others]


def _coverage(
    table: FeatureTable, split: str, directions: Sequence[tuple[str, str]], unserved: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    owned = table.natural_mask()
    counts = torch.stack([offsets.diff() for offsets in table.offsets], dim=1)
    rows = []
    for query, gallery in directions:
        a, b = table.modalities.index(query), table.modalities.index(gallery)
        ranked = int(counts[owned[:, b], a].sum())
        row = {"query": query, "gallery": gallery, "queries": ranked}
        rows.append({**row, "without_positive": int(counts[:, a].sum()) - ranked, "gallery_size": int(counts[:, b].sum())})
    return {
        "split": split,
        "items": len(table),
        "empty_items": int((~owned.any(dim=1)).sum()),
        "directions": rows,
        "unserved": [{"query": query, "gallery": gallery} for query, gallery in unserved],
    }


@torch.no_grad()
def rank_directions(model: AlignmentModel, table: FeatureTable, directions: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Score rows of every query row with a positive, in (query, gallery) directions between single modalities, nothing hidden."""
    import pandas as pd

    similarity = model.similarity
    places = {name: model.modalities.index(name) for direction in directions for name in direction}
    owners = {name: owners_of(table.offsets[place]) for name, place in places.items()}
    patterns = np.asarray(pattern_names(table.mask.cpu().numpy(), table.modalities))
    done: dict[tuple[str, str], Ranks] = {}
    for query, gallery in tracked(directions, "ranking", unit="directions"):
        if (query, gallery) not in done:
            left, right = _pair_vectors(model, query, gallery, table.rows[places[query]], table.rows[places[gallery]])
            done[query, gallery], back = rank_both(left, right, owners[query], owners[gallery])
            if similarity.symmetric:
                done[gallery, query] = back
    parts = [
        score_rows(
            done[query, gallery],
            owners[query],
            table.ids,
            table.group,
            patterns,
            query=query,
            gallery=gallery,
            scorer=similarity.name,
        )
        for query, gallery in directions
    ]
    return pd.concat(parts, ignore_index=True)


def _calibration(
    run: Run,
    model: AlignmentModel,
    train_table: FeatureTable,
    validation: FeatureTable,
    held_out: FeatureTable,
    split: str,
    replay: Sequence[FeatureTable] = (),
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Imputation error and anchor shift where the truth is known: hidden training entries, and held-out items under every pattern.

    Imputers that the run did not keep are fitted to the training items and those of `replay`. The predicted error of an entry is the mean error of its pattern and modality on the validation items.
    """
    import pandas as pd

    config = run.config
    names = [config.impute, *(name for name in CONTROLS if name != config.impute)]
    shown = _Shown.of("train", model, train_table)
    replayed = [_embedded(model, table) for table in replay]
    seen = [torch.cat(parts) for parts in zip(*replayed, shown.embeddings, strict=True)] if replay else shown.embeddings
    seen_mask = torch.cat([*(table.mask for table in replay), train_table.mask])
    validation_embeddings = _embedded(model, validation)
    complete = held_out.select(np.flatnonzero(held_out.mask.all(dim=1).cpu().numpy())).sample(CALIBRATED)
    whole = _Shown.of(split, model, complete)
    patterns = Patterns.of(train_table.mask).shown
    hidden = [pattern.expand(len(complete), -1).clone() for pattern in patterns[~patterns.all(dim=1)] if len(complete)]
    errors, shifts = [], []
    for name in tracked(names, "imputation errors", unit="imputers"):
        imputer = _fitted(config, model, name, seen, seen_mask)
        expected = held_out_errors(imputer, validation_embeddings, validation.mask, train_table.mask)
        for items, mask in [(shown, train_table.mask), *((whole, mask) for mask in hidden)]:
            filled = imputer.impute(items.embeddings, mask)
            about = items.about(mask, name)
            errors.append(items.errors(about, filled, mask, expected))
            if name == config.impute and items.split == split and bool(items.known.all(dim=1).any()):
                threshold = run.summary["gate"]["threshold"] if config.risk_control else None
                shifts.append(items.shifts(about, filled, mask, imputer, threshold))
    return pd.concat(errors, ignore_index=True), pd.concat(shifts, ignore_index=True) if shifts else pd.DataFrame()


@torch.no_grad()
def _embedded(model: AlignmentModel, table: FeatureTable) -> list[Float[Tensor, "n d"]]:
    """`model.encode` of a block of items at a time: feature maps and heads make float32 copies of all that they see."""
    parts = [model.encode(block) for block in table.blocks(_ITEMS)]
    return [torch.cat(columns) for columns in zip(*parts, strict=True)]


@dataclass(frozen=True)
class _Shown:
    """Items of a split whose truth is known where they own a row: `embeddings`, k of [n, d], and `known` [n, k]."""

    split: str
    modalities: tuple[str, ...]
    ids: np.ndarray
    group: np.ndarray
    embeddings: list[Tensor]
    known: Bool[Tensor, "n k"]

    @classmethod
    def of(cls, split: str, model: AlignmentModel, table: FeatureTable) -> _Shown:
        # Names as objects: every frame then holds the same strings instead of copies.
        ids, group = table.ids.astype(object), table.group.astype(object)
        return cls(split, table.modalities, ids, group, _embedded(model, table), table.natural_mask())

    def about(self, mask: Bool[Tensor, "n k"], imputer: str) -> pd.DataFrame:
        """A row per item: imputer, pattern, split, item and group."""
        import pandas as pd

        patterns = np.asarray(pattern_names(mask.cpu().numpy(), self.modalities), dtype=object)
        return pd.DataFrame(
            {"imputer": imputer, "pattern": patterns, "split": self.split, "item": self.ids, "group": self.group}
        )

    def errors(
        self,
        about: pd.DataFrame,
        filled: Sequence[Float[Tensor, "n d"]],
        mask: Bool[Tensor, "n k"],
        expected: Mapping[tuple[bool, ...], Float[np.ndarray, " k"]],
    ) -> pd.DataFrame:
        """A row per hidden entry whose truth is known: ||imputed - true||^2, and the error that `expected` has for its pattern."""
        import pandas as pd

        unknown = np.full(len(self.modalities), np.nan)
        predicted = np.stack([expected.get(tuple(row), unknown) for row in mask.tolist()])
        parts = []
        for index, modality in enumerate(self.modalities):
            chosen = (self.known[:, index] & ~mask[:, index]).nonzero().squeeze(1)
            # Float64 copies are of a block of items.
            squared = [
                (filled[index][rows].double() - self.embeddings[index][rows].double()).square().sum(dim=1)
                for rows in chosen.split(_ITEMS)
            ]
            place = chosen.cpu().numpy()
            part = about.iloc[place].assign(modality=modality, squared_error=torch.cat(squared).cpu().numpy())
            parts.append(part.assign(predicted_error=predicted[place, index]))
        return pd.concat(parts, ignore_index=True)

    def shifts(
        self,
        about: pd.DataFrame,
        filled: Sequence[Float[Tensor, "n d"]],
        mask: Bool[Tensor, "n k"],
        imputer: Any,
        threshold: float | None,
    ) -> pd.DataFrame:
        """`anchor_report` of the complete items, a row per item; with the `threshold` of a gate, what it did."""
        complete = self.known.all(dim=1).nonzero().squeeze(1)
        parts = []
        for rows in complete.split(_ITEMS):
            items = [stack([part[rows] for part in parts_of]) for parts_of in (self.embeddings, filled)]
            parts.append(anchor_report(items[0], mask[rows], items[1]))
        report = {column: torch.cat([part[column] for part in parts]) for column in parts[0]}
        if threshold is not None:
            truth, made = (stack([part[complete] for part in parts_of]) for parts_of in (self.embeddings, filled))
            report = gated_columns(imputer, threshold, report, truth, mask[complete], made)
        kept = about.iloc[complete.cpu().numpy()].reset_index(drop=True)
        return kept.assign(**{column: value.cpu().numpy() for column, value in report.items()})


def _fitted(config: TrainConfig, model: AlignmentModel, name: str, embeddings: list[Tensor], mask: Tensor) -> Any:
    if name == config.impute and model.imputer is not None:
        return model.imputer
    imputer = imputers.get(name)(**(config.impute_options if name == config.impute else {}))
    imputer.modalities = model.modalities
    return imputer.fit(embeddings, mask)


def _pair_vectors(
    model: AlignmentModel, query: str, gallery: str, queries: Tensor, candidates: Tensor
) -> tuple[Float[Tensor, "q s"], Float[Tensor, "g s"]]:
    """The pair vectors of all rows of two modalities, a block at a time: what feature maps and similarities for other pairs make of all rows at
    once is several times larger."""
    left = [model.pair_vectors(query, gallery, block, candidates[:1])[0] for block in queries.split(BLOCK)]
    right = [model.pair_vectors(query, gallery, queries[:1], block)[1] for block in candidates.split(BLOCK)]
    return torch.cat(left), torch.cat(right)
