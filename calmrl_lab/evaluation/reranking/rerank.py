"""Re-ranking of captions against whole items: the best candidates by similarity are scored again by a matching model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from calmrl_lab.data.missingness import pattern_names
from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.reranking.first_stage import JOINT, first_stage, joint_vectors
from calmrl_lab.evaluation.retrieval import Ranks, rank_both
from calmrl_lab.evaluation.run_items import open_run
from calmrl_lab.evaluation.score_rows import recall_table, score_rows
from calmrl_lab.runs.run import Run, writes_into_run

if TYPE_CHECKING:
    import pandas as pd

    from calmrl_lab.model.alignment_model import AlignmentModel

# (similarity [captions, items], the item of every caption row, the items of the columns, what the queries are: "captions" or "clips") -> new scores of the same
# shape, larger is better.
Match = Callable[[Float[np.ndarray, "captions items"], Sequence[str], Sequence[str], str], Float[np.ndarray, "captions items"]]
CAPTION = "caption"


@writes_into_run
def rerank_run(
    run: Run | Path | str, match: Match, label: str, split: str = "test", scorer: str | None = None, device: str = "auto"
) -> pd.DataFrame:
    """Ranks between captions and whole items of a split, by `scorer` and after `match`, written into the run as rerank.parquet.

    The first stage `scorer` is by default what the run's system takes (`first_stage`); `joint` are VAST's fused heads that the store brings.

    An item is what it shows of all modalities but the caption; items that show none of them, and their captions, are left out. The rows
    are score rows; `scorer` is the name given, or the name with `+label`. Raises CalmrlError for a run without captions or without anything
    else, and what `match` raises.
    """
    import pandas as pd

    run, model, found = open_run(run, device=device)
    embedded = model.embed(found.of(split))
    if CAPTION not in embedded.modalities or len(embedded.modalities) < 2:
        raise CalmrlError(
            f"re-ranking is between captions and other modalities; run '{run.path}' has {', '.join(embedded.modalities)}"
        )
    asking = embedded.modalities.index(CAPTION)
    others = [m for m in embedded.modalities if m != CAPTION]
    columns = [embedded.modalities.index(m) for m in others]
    mask = embedded.mask[:, columns]
    heads = found.store.heads
    scorer = scorer or first_stage(run.config.objective, heads, embedded.items.shape[2])
    if scorer == JOINT:
        rows = found.of(split).first_rows()
        features = {name: rows[column] for name, column in zip(others, columns, strict=True)}
        fused, serves = joint_vectors(features, dict(zip(others, mask.unbind(dim=1), strict=True)), heads)
        if fused.shape[1] != embedded.items.shape[2]:
            raise CalmrlError(
                f"the first stage 'joint' compares embeddings of {fused.shape[1]} dimensions, and those of run '{run.path}' have "
                f"{embedded.items.shape[2]}",
                hint="use --first-stage centroid",
            )
    else:
        seen = [others.index(name) for name in _seen(scorer, model, others)]
        maker = model.scorer(scorer, CAPTION, [others[place] for place in seen])
        serves = maker.serves(mask[:, seen])
    items = serves.nonzero().squeeze(1)
    kept = torch.isin(embedded.owners[asking], items)
    owners = embedded.owners[asking][kept]
    if len(owners) == 0:
        raise CalmrlError(f"no item of split '{split}' has a caption and something to be found by it")
    queries = embedded.rows[asking][kept]
    if scorer == JOINT:
        similarity = (queries.double() @ fused[items].T).cpu().numpy()
    else:
        places = [columns[place] for place in seen]
        similarity = maker.score(queries, embedded.items[items][:, places], mask[items][:, seen]).cpu().numpy()
    caption_items, names = embedded.ids[owners.cpu().numpy()].tolist(), embedded.ids[items.cpu().numpy()].tolist()
    patterns, joint = np.asarray(pattern_names(mask.cpu().numpy(), others)), "+".join(others)
    again = {who: match(similarity, caption_items, names, who) for who in ("captions", "clips")}
    stages = [(scorer, similarity, similarity), (f"{scorer}+{label}", again["captions"], again["clips"])]
    parts = []
    for name, by_caption, by_item in stages:
        forward, backward = _ranks(by_caption, owners, items)[0], _ranks(by_item, owners, items)[1]
        for query, gallery, ranks, owner in ((CAPTION, joint, forward, owners), (joint, CAPTION, backward, items)):
            about = {"query": query, "gallery": gallery, "scorer": name}
            parts.append(score_rows(ranks, owner, embedded.ids, embedded.group, patterns, **about))
    frame = pd.concat(parts, ignore_index=True)
    run.write_frame(run.RERANK, frame)
    return frame


def _seen(scorer: str, model: AlignmentModel, others: Sequence[str]) -> list[str]:
    """The modalities of an item that the first stage looks at: a triangle has the corners that it was trained with, all else sees everything."""
    aligned = getattr(model.trained_objective(), "aligned", others) if scorer == "area" and model.objective else others
    return [name for name in others if name in aligned]


def _ranks(scores: np.ndarray, owners: torch.Tensor, items: torch.Tensor) -> tuple[Ranks, Ranks]:
    """Ranks in both directions from a matrix of scores: the rows and columns stand for themselves."""
    table = torch.from_numpy(np.ascontiguousarray(scores, dtype=np.float64))
    rows, columns = (torch.arange(n, dtype=torch.float64).unsqueeze(1) for n in table.shape)

    def score(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return table[left.squeeze(1).long()][:, right.squeeze(1).long()]

    return rank_both(rows, columns, owners.cpu(), items.cpu(), score)


def rerank_table(frame: pd.DataFrame) -> pd.DataFrame:
    """`recall_table` with one row per direction and stage."""
    return recall_table(frame, ("query", "gallery", "scorer"))
