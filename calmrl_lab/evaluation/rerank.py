"""A second look at the best candidates: captions and whole items meet by similarity first, then a matching model re-scores the best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from calmrl_lab.data.missingness import pattern_names
from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.first_stage import JOINT, first_stage, joint_vectors
from calmrl_lab.evaluation.retrieval import Ranks, rank_both
from calmrl_lab.evaluation.run_space import RunSpace
from calmrl_lab.runs.run import Run

if TYPE_CHECKING:
    import pandas as pd

# (similarity [captions, items], the item of every caption row, the items of the columns, who asks: "captions" or "clips") -> new scores of the same
# shape, larger is better.
Match = Callable[[Float[np.ndarray, "captions items"], Sequence[str], Sequence[str], str], Float[np.ndarray, "captions items"]]
CAPTION = "caption"


def rerank_run(
    run: Run | Path | str, match: Match, label: str, split: str = "test", scorer: str | None = None, device: str = "auto"
) -> pd.DataFrame:
    """Ranks between captions and whole items of a split, by `scorer` and after `match`, written into the run as rerank.parquet.

    The first stage `scorer` is by default what the run's system takes (`first_stage`); `joint` are VAST's fused heads that the store brings.

    An item is what it shows of all modalities but the caption; items that show none of them, and their captions, are left out. Columns as in
    scores.parquet; `scorer` is the name given, or the name with `+label`. Raises CalmrlError for a run without captions or without anything
    else, and what `match` raises.
    """
    import pandas as pd

    space = RunSpace.open(run, device=device)
    embedded = space.embed(split)
    if CAPTION not in embedded.modalities or len(embedded.modalities) < 2:
        raise CalmrlError(
            f"re-ranking is between captions and other modalities; run '{space.run.path}' has {', '.join(embedded.modalities)}"
        )
    asking = embedded.modalities.index(CAPTION)
    others = [m for m in embedded.modalities if m != CAPTION]
    columns = [embedded.modalities.index(m) for m in others]
    mask = embedded.mask[:, columns]
    heads = space.store.heads
    scorer = scorer or first_stage(space.run.config.objective, others, heads, embedded.items.shape[2])
    if scorer == JOINT:
        rows = space.table.select(space.items_of(split)).in_memory().first_rows()
        features = {name: rows[column] for name, column in zip(others, columns, strict=True)}
        fused, serves = joint_vectors(features, dict(zip(others, mask.unbind(dim=1), strict=True)), heads)
        if fused.shape[1] != embedded.items.shape[2]:
            raise CalmrlError(
                f"the first stage 'joint' compares embeddings of {fused.shape[1]} dimensions, and those of run '{space.run.path}' have "
                f"{embedded.items.shape[2]}",
                hint="use --first-stage centroid",
            )
    else:
        maker = space.scorer(scorer, CAPTION, others)
        serves = maker.serves(mask)
    items = serves.nonzero().squeeze(1)
    kept = torch.isin(embedded.owners[asking], items)
    owners = embedded.owners[asking][kept]
    if len(owners) == 0:
        raise CalmrlError(f"no item of split '{split}' has a caption and something to be found by it")
    queries = embedded.rows[asking][kept]
    if scorer == JOINT:
        similarity = (queries.double() @ fused[items].T).cpu().numpy()
    else:
        similarity = maker.score(queries, embedded.items[items][:, columns], mask[items]).cpu().numpy()
    caption_items, names = embedded.ids[owners.cpu().numpy()].tolist(), embedded.ids[items.cpu().numpy()].tolist()
    patterns = np.asarray(pattern_names(mask.cpu().numpy(), others))
    again = {who: match(similarity, caption_items, names, who) for who in ("captions", "clips")}
    stages = [(scorer, similarity, similarity), (f"{scorer}+{label}", again["captions"], again["clips"])]
    parts = []
    for name, by_caption, by_item in stages:
        forward = _ranks(by_caption, owners, items)[0]
        backward = _ranks(by_item, owners, items)[1]
        joint = "+".join(others)
        for query, gallery, ranks, asked in ((CAPTION, joint, forward, owners), (joint, CAPTION, backward, items)):
            answered = np.asarray(ranks.positives) > 0
            place = asked.cpu().numpy()[answered]
            about = {"query": query, "gallery": gallery, "scorer": name, "gallery_scenario": "full"}
            ids = {"item": embedded.ids[place], "group": embedded.group[place], "pattern": patterns[place]}
            counts = {c: np.asarray(getattr(ranks, c))[answered] for c in ("greater", "equal", "candidates", "positives")}
            parts.append(pd.DataFrame({**about, **ids, **counts}))
    frame = pd.concat(parts, ignore_index=True)
    with space.run.writing():
        space.run.write_frame(space.run.RERANK, frame)
    return frame


def _ranks(scores: np.ndarray, owners: torch.Tensor, items: torch.Tensor) -> tuple[Ranks, Ranks]:
    """Ranks in both directions from a matrix of scores: the rows and columns stand for themselves."""
    table = torch.from_numpy(np.ascontiguousarray(scores, dtype=np.float64))
    rows, columns = (torch.arange(n, dtype=torch.float64).unsqueeze(1) for n in table.shape)

    def score(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return table[left.squeeze(1).long()][:, right.squeeze(1).long()]

    return rank_both(rows, columns, owners.cpu(), items.cpu(), score)


def rerank_table(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a direction and stage: query, gallery, scorer, recall_at_1/5/10 (percent) with the interval of the first, queries."""
    import pandas as pd

    from calmrl_lab.evaluation.retrieval import recall
    from calmrl_lab.evaluation.significance import interval

    rows = []
    for (query, gallery, scorer), part in frame.groupby(["query", "gallery", "scorer"], sort=False):
        hits = {k: 100 * recall(part["greater"].to_numpy(), part["equal"].to_numpy(), k) for k in (1, 5, 10)}
        found = interval(hits[1], np.random.default_rng(0), part["group"].to_numpy(), top=100)
        row = {
            "query": query,
            "gallery": gallery,
            "scorer": scorer,
            "recall_at_1": found.value,
            "low": found.low,
            "high": found.high,
        }
        rows.append({**row, **{f"recall_at_{k}": float(hits[k].mean()) for k in (5, 10)}, "queries": len(part)})
    return pd.DataFrame(rows)
