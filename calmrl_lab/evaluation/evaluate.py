"""Evaluation of a run: ranks in every direction, imputation errors and anchor shifts, one row per query or item, never only a mean."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
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
from calmrl_lab.data.table import BLOCK, FeatureTable, Table, joined
from calmrl_lab.data.training_data import VALIDATION_ITEMS, open_data, training_items
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
        train_table, validation, replay = _seen(items, config, device)
        if not bool(train_table.mask.all()):
            imputation, anchors = _calibration(
                run, model, train_table.sample(CALIBRATED_TRAINING), validation, held_out, split, replay
            )
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
        shown = pattern_names(train_table.mask.cpu().numpy(), model.modalities)
        coverage["gate"] = achieved(anchors, Counter(shown), config.risk_level)
    run.write_evaluation({run.SCORES: scores, run.IMPUTATION: imputation, run.ANCHORS: anchors}, coverage)
    return Evaluation(run, scores, imputation, anchors, coverage)


def _seen(items: RunItems, config: TrainConfig, device: str) -> tuple[Table, FeatureTable, list[FeatureTable]]:
    """The training items as the run was shown them, those of a mix included, the validation items, and those of a warm-up."""
    if config.mix or config.warm_up:
        data = open_data(config, str(resolve(device)))
        return data.train, data.validation, [] if data.warm_up is None else [data.warm_up]
    validation = items.table.select(np.flatnonzero(items.splits == "validation")).sample(VALIDATION_ITEMS)
    return training_items(items.table, items.splits, config), validation, []


def _directions(modalities: Sequence[str], asked: Sequence[tuple[str, str]] | None) -> list[tuple[str, str]]:
    if asked is None:
        return list(itertools.permutations(modalities, 2))
    for query, gallery in asked:
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
    seen = joined([*replay, train_table], [""] * (len(replay) + 1))
    seen_embeddings, validation_embeddings = model.encode(seen), model.encode(validation)
    errors, shifts = [], []
    for name in tracked(names, "imputation errors", unit="imputers"):
        imputer = _fitted(config, model, name, seen_embeddings, seen.mask)
        own = name == config.impute
        expected = held_out_errors(imputer, validation_embeddings, validation.mask, train_table.mask)
        for place, table, mask in _masked(train_table, held_out, split):
            embeddings = model.encode(table)
            truth, known = stack(embeddings), table.natural_mask()
            filled = stack(imputer.impute(embeddings, mask))
            unknown = np.full(len(table.modalities), np.nan)
            predicted = np.stack([expected.get(tuple(row), unknown) for row in mask.tolist()])
            about = _about(table, mask, name, place)
            errors.append(_errors(about, truth, filled, known & ~mask, predicted, table.modalities))
            complete = known.all(dim=1)
            if own and place == split and bool(complete.any()):
                items = truth[complete], mask[complete], filled[complete]
                report = anchor_report(*items)
                if config.risk_control:
                    report = gated_columns(imputer, run.summary["gate"]["threshold"], report, *items)
                kept = about[complete.cpu().numpy()].reset_index(drop=True)
                shifts.append(kept.assign(**{column: value.cpu().numpy() for column, value in report.items()}))
    return pd.concat(errors, ignore_index=True), pd.concat(shifts, ignore_index=True) if shifts else pd.DataFrame()


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


def _masked(
    train_table: FeatureTable, held_out: FeatureTable, split: str
) -> Iterator[tuple[str, FeatureTable, Bool[Tensor, "n k"]]]:
    """(split, items, mask): training items as the scenario showed them; held-out complete items under each incomplete pattern of training."""
    yield "train", train_table, train_table.mask
    complete = held_out.select(np.flatnonzero(held_out.mask.all(dim=1).cpu().numpy())).sample(CALIBRATED)
    if len(complete):
        patterns = Patterns.of(train_table.mask).shown
        for pattern in patterns[~patterns.all(dim=1)]:
            yield split, complete, pattern.expand(len(complete), -1).clone()


def _about(table: FeatureTable, mask: Tensor, imputer: str, split: str) -> pd.DataFrame:
    import pandas as pd

    patterns = np.asarray(pattern_names(mask.cpu().numpy(), table.modalities))
    return pd.DataFrame({"imputer": imputer, "pattern": patterns, "split": split, "item": table.ids, "group": table.group})


def _errors(
    about: pd.DataFrame,
    truth: Float[Tensor, "n k d"],
    filled: Float[Tensor, "n k d"],
    hidden: Bool[Tensor, "n k"],
    predicted: Float[np.ndarray, "n k"],
    modalities: tuple[str, ...],
) -> pd.DataFrame:
    """A row a hidden entry whose truth is known: ||imputed - true||^2."""
    import pandas as pd

    parts = []
    for index, modality in enumerate(modalities):
        # A modality at a time: float64 copies of all would be several times what is compared.
        squared = (filled[:, index].double() - truth[:, index].double()).square().sum(dim=1).cpu().numpy()
        chosen = hidden[:, index].cpu().numpy()
        part = about[chosen].assign(modality=modality, squared_error=squared[chosen])
        parts.append(part.assign(predicted_error=predicted[chosen, index]))
    return pd.concat(parts, ignore_index=True)
