"""Recall, MRR and nDCG are what ir-measures computes on the same scores."""

import numpy as np
import pytest
import torch

from calmrl_lab.evaluation.retrieval import discounted_gain, rank_both, recall, reciprocal_rank

ir_measures = pytest.importorskip("ir_measures", reason="ir-measures is part of the extra 'test'")


@pytest.mark.parametrize("captions", [1, 3])
def test_the_numbers_of_ir_measures(captions):
    generator = torch.Generator().manual_seed(captions)
    items = torch.nn.functional.normalize(torch.randn(60, 12, generator=generator), dim=1)
    texts = torch.nn.functional.normalize(
        items.repeat_interleave(captions, 0) + 0.4 * torch.randn(60 * captions, 12, generator=generator), dim=1
    )
    owner, text_owner = torch.arange(60), torch.arange(60).repeat_interleave(captions)
    from_item, from_text = rank_both(items, texts, owner, text_owner)
    # What trec tools call Success@k (at least one right answer among the first k) is what retrieval papers call Recall@k.
    names = {f"Success@{k}": (lambda ranks, k=k: recall(ranks, k)) for k in (1, 5, 10)}
    names["RR"] = lambda ranks: reciprocal_rank(ranks)
    if captions == 1:
        names["nDCG"] = lambda ranks: discounted_gain(ranks)
    directions = ((from_item, items, texts, owner, text_owner), (from_text, texts, items, text_owner, owner))
    for ranks, queries, gallery, asking, answering in directions:
        scores = (queries.double() @ gallery.double().T).numpy()
        run = {str(q): {f"g{g}": float(s) for g, s in enumerate(row)} for q, row in enumerate(scores)}
        truth = {str(q): {f"g{g}": 1 for g in np.flatnonzero(answering == asking[q])} for q in range(len(queries))}
        found = ir_measures.calc_aggregate([ir_measures.parse_measure(name) for name in names], truth, run)
        for measure, value in found.items():
            assert names[str(measure)](ranks).mean() == pytest.approx(value, abs=1e-9), str(measure)
