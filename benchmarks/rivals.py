"""Every imputer on the held-out items of real stores: error against mean imputation, predicted against real error, seconds.

    calmrl-lab bench rivals stores/openmoji.zarr stores/digits.zarr:standard        all imputers, 3 drawings: four hours of one core
    calmrl-lab bench rivals stores/digits.zarr:standard --imputers mean,ppca-auto --seeds 1
    calmrl-lab bench rivals stores/*.zarr --minutes 7                               a piece; the same command goes on from there
    calmrl-lab bench rivals stores/openmoji.zarr stores/digits.zarr:standard --write docs/imputation.md

Gaps are drawn in all items of a store at a rate of 25, 50 and 75 %, or in blocks (each item shows two neighbouring modalities, a
(k+1)-th of them everything). An imputer is fitted on the training split and scored on what was hidden in the test split. Every finished
piece is kept in --results, so that nothing is computed twice; `--write` puts the tables between the marks of a Markdown file, and
figures of predicted against real error beside it.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).parent))

import _marks
import _rival_tables
import _script

from calmrl_lab.config import override
from calmrl_lab.errors import CalmrlError
from calmrl_lab.imputers import imputers
from calmrl_lab.runtime import console
from calmrl_lab.runtime.atomic_files import write_atomically
from calmrl_lab.runtime.progress import progress
from calmrl_lab.store import FeatureStore

PATTERNS = ("25%", "50%", "75%", "blocks")
# Beside every imputer as it comes: PPCA and its relatives under one prior, so that what differs is the model.
SAME_PRIOR = ("ppca:ridge=300", "ppca-private:ridge=300", "ppca-student:ridge=300", "ppca-mixture:ridge=30")
# The default, fitted on the same training items with nothing hidden: what gaps in training cost.
ORACLE = "oracle"


@dataclass(frozen=True)
class Data:
    """Embeddings of a store (NaN where it has none) and who is fitted on and who is scored."""

    name: str
    modalities: tuple[str, ...]
    embeddings: list[np.ndarray]
    mask: np.ndarray
    train: np.ndarray
    test: np.ndarray
    group: np.ndarray
    ids: np.ndarray


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stores", nargs="+", metavar="STORE[:standard]", help="rows of unit norm, or standardised coordinates")
    parser.add_argument("--imputers", help="only these, by comma; options as ppca:ridge=300 (default: all)")
    parser.add_argument("--gaps", default=",".join(PATTERNS), help="only these, by comma")
    parser.add_argument("--seeds", type=int, default=3, help="drawings of the gaps")
    parser.add_argument("--minutes", type=float, help="stop after the piece that ends later than this")
    parser.add_argument("--results", type=Path, default=Path("reports/rivals"), help="where finished pieces are kept")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables between the marks of this Markdown file")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    names = options.imputers.split(",") if options.imputers else contenders()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        frame, left = compare(options.stores, options.gaps.split(","), names, options.seeds, options.results, options.minutes)
    if left:
        console.note(f"{left} pieces are left: the same command goes on with them")
        return
    tables = _rival_tables.tables(frame)
    if options.write:
        _marks.put(options.write, "rivals", _rival_tables.markdown(tables))
        _rival_tables.draw(frame, options.write.parent)
    console.emit(tables, options.json, lambda: _rival_tables.show(tables))


def contenders() -> list[str]:
    """Every imputer that fills, `SAME_PRIOR` and `ORACLE`."""
    return [*(name for name in imputers.names() if imputers.get(name).fills), *SAME_PRIOR, ORACLE]


def make(asked: str) -> Any:
    """An unfitted imputer from `name` or `name:option=value:...`."""
    name, *options = (_rival_tables.DEFAULT if asked == ORACLE else asked).split(":")
    return imputers.get(name)(**override({}, options))


def compare(
    stores: Sequence[str],
    patterns: Sequence[str],
    names: Sequence[str],
    seeds: int,
    results: Path,
    minutes: float | None = None,
) -> tuple[pd.DataFrame, int]:
    """A row a hidden held-out entry, pattern, imputer and drawing; and how many pieces there was no time for."""
    begun, left, frames = time.monotonic(), 0, []
    results.mkdir(parents=True, exist_ok=True)
    pieces = list(itertools.product(stores, range(seeds), patterns, names))
    data: dict[str, Data] = {}
    with progress("imputing", len(pieces), "pieces") as ticker:
        for store, seed, pattern, name in pieces:
            label = Path(store.partition(":")[0]).stem
            path = results / f"{label}-{pattern.rstrip('%')}-{seed}-{name.replace(':', '_')}.parquet"
            if not path.is_file():
                if minutes is not None and time.monotonic() - begun > 60 * minutes:
                    left += 1
                    continue
                if store not in data:
                    data = {store: prepared(store)}
                write_atomically(path, measure(data[store], pattern, name, seed).to_parquet(index=False))
            frames.append(pd.read_parquet(path).assign(store=label, gaps=pattern, imputer=name, seed=seed))
            ticker.advance(1, f"{label} {pattern} {name}")
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(), left


def prepared(asked: str) -> Data:
    """Rows of unit norm, or with `:standard` behind the path every coordinate of mean 0 and variance 1 on the training split."""
    path, _, how = asked.partition(":")
    if how not in ("", "standard", "unit"):
        raise CalmrlError(f"'{asked}': rows can be made 'unit' or 'standard'", hint="for example stores/digits.zarr:standard")
    store = FeatureStore.open(path)
    train = store.split == "train"
    embeddings = []
    for j, name in enumerate(store.modalities):
        shown = store.mask[:, j]
        rows = np.full((len(store), store.dims[name]), np.nan, dtype=np.float32)
        rows[shown] = store.features(name)[store.offsets(name)[:-1][shown]]
        if how == "standard":
            spread = rows[train & shown].std(axis=0)
            rows = (rows - rows[train & shown].mean(axis=0)) / np.where(spread > 0, spread, 1)
        else:
            norm = np.linalg.norm(rows, axis=1, keepdims=True)
            rows = rows / np.where(norm > 0, norm, 1)
        embeddings.append(rows)
    test = store.split == "test"
    return Data(Path(path).stem, store.modalities, embeddings, store.mask, train, test, store.group, store.ids)


def gaps(mask: np.ndarray, pattern: str, seed: int) -> np.ndarray:
    """`mask` with more hidden: every entry with the same chance, or by blocks of which each shows two neighbouring
    modalities."""
    rng = np.random.default_rng(seed)
    n, k = mask.shape
    if pattern == "blocks":
        block = rng.integers(k + 1, size=n)
        pairs = np.array([np.isin(np.arange(k), (b, (b + 1) % k)) for b in range(k)] + [np.ones(k, dtype=bool)])
        shown = mask & pairs[block]
    else:
        shown = mask & (rng.random(mask.shape) >= float(pattern.rstrip("%")) / 100)
    for i in np.flatnonzero(~shown.any(axis=1) & mask.any(axis=1)):
        shown[i, rng.choice(np.flatnonzero(mask[i]))] = True
    return shown


def measure(data: Data, pattern: str, name: str, seed: int) -> pd.DataFrame:
    """A row a hidden entry of the test split: its squared error, that of the mean, the predicted one; and the processor seconds of
    it all."""
    shown = gaps(data.mask, pattern, seed)
    train, test = data.train & shown.any(axis=1), data.test & shown.any(axis=1)
    imputer = make(name)
    imputer.modalities = data.modalities
    begun = time.process_time()
    groups = {"groups": data.group[train]} if imputer.takes_groups else {}
    imputer.fit([e[train] for e in data.embeddings], (data.mask if name == ORACLE else shown)[train], **groups)
    held_out = [e[test] for e in data.embeddings]
    filled = imputer.impute(held_out, shown[test])
    seconds = time.process_time() - begun
    predicted = imputer.predicted_error(held_out, shown[test]) if hasattr(imputer, "predicted_error") else None
    parts = []
    for j, rows in enumerate(hidden(data, shown, test)):
        mean = data.embeddings[j][train & shown[:, j]].mean(axis=0, dtype=np.float64)
        columns = {
            "modality": data.modalities[j],
            "item": data.ids[test][rows],
            "group": data.group[test][rows],
            "squared_error": np.square(filled[j][rows] - held_out[j][rows]).sum(axis=1, dtype=np.float64),
            "mean_error": np.square(mean - held_out[j][rows]).sum(axis=1),
            "predicted_error": np.nan if predicted is None else predicted[rows, j],
            "seconds": seconds,
        }
        parts.append(pd.DataFrame(columns, index=range(int(rows.sum()))))
    return pd.concat(parts, ignore_index=True)


def hidden(data: Data, shown: np.ndarray, test: np.ndarray) -> Iterator[np.ndarray]:
    """For every modality, which held-out items hide it though they have it."""
    for j in range(shown.shape[1]):
        yield (data.mask & ~shown)[test, j]


if __name__ == "__main__":
    _script.run(main)
