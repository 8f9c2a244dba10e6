"""Classification against plain formulations, with gaps, unknown classes and ties."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.classification import JOINT, KINDS, accuracy_table, class_table, classify, classify_run
from calmrl_lab.imputers.mean import Mean


def halves(data):
    """Even items to train on, odd ones to test."""

    def part(start):
        chosen = np.arange(start, len(data), 2)
        labels = {name: values[chosen] for name, values in data.labels.items()}
        rows = tuple(r[chosen] for r in data.rows)
        owners = (torch.arange(len(chosen)),) * len(rows)
        return replace(
            data, ids=data.ids[chosen], group=data.group[chosen], items=data.items[chosen], mask=data.mask[chosen],
            rows=rows, owners=owners, labels=labels,
        )  # fmt: skip

    return part(0), part(1)


def hiding(data, where):
    mask = data.mask & ~where
    return replace(data, mask=mask, items=data.items.masked_fill(~mask.unsqueeze(-1), 0))


def mixed(invented, **options):
    data = invented(**{"n": 160, "noise": (0.3, 0.5, 0.8), "classes": 7, **options})
    order = np.random.default_rng(0).permutation(len(data))
    labels = {name: values[order] for name, values in data.labels.items()}
    return halves(replace(data, items=data.items[order], rows=tuple(r[order] for r in data.rows), labels=labels))


def one(frame, kind, modality, calibrated=False):
    return frame[(frame["kind"] == kind) & (frame["modality"] == modality) & (frame["calibrated"] == calibrated)]


def test_every_kind_beats_the_majority_and_joint_is_best(invented):
    train, test = mixed(invented)
    table = accuracy_table(classify(train, test, "kind", text="a"), np.random.default_rng(0))
    assert (table["accuracy"] > table["majority"] + 10).all()
    assert (table["accuracy_at_5"] >= table["accuracy"]).all()
    assert ((table["low"] <= table["accuracy"]) & (table["accuracy"] <= table["high"])).all()
    linear = table[table["kind"] == "linear"].set_index("modality")["accuracy"]
    assert linear[JOINT] >= linear["c"]
    assert set(table.loc[table["kind"] == "captions", "modality"]) == {"b", "c", JOINT}
    assert set(table["kind"]) == set(KINDS) - {"zero-shot"}


def test_plain_loops_say_the_same(invented):
    train, test = mixed(invented)
    frame = classify(train, test, "kind", text="a")
    truth, classes = train.labels["kind"], np.unique(train.labels["kind"])
    mean = {c: train.items[torch.from_numpy(truth == c), 1].double().mean(dim=0) for c in classes}
    text = {c: train.items[torch.from_numpy(truth == c), 0].double().mean(dim=0) for c in classes}
    for index, (centroid, zero, near) in enumerate(
        zip(
            one(frame, "centroid", "b")["predicted"],
            one(frame, "captions", "b")["predicted"],
            one(frame, "knn", "b")["predicted"],
            strict=True,
        )
    ):
        z = test.items[index, 1].double()
        assert centroid == max(classes, key=lambda c: float(z @ mean[c] / mean[c].norm()))
        assert zero == max(classes, key=lambda c: float(z @ text[c] / text[c].norm()))
        cosines = (train.items[:, 1].double() @ z).numpy()
        votes = dict.fromkeys(classes, 0.0)
        for neighbour in np.argsort(-cosines)[:10]:
            votes[truth[neighbour]] += np.exp(cosines[neighbour] / 0.07)
        assert near == max(votes, key=votes.get)


def test_top_five_is_the_fifth_best(invented):
    train, test = mixed(invented)
    row = one(classify(train, test, "kind", kinds=["centroid"]), "centroid", "c")
    classes = np.unique(train.labels["kind"])
    mean = torch.stack([train.items[torch.from_numpy(train.labels["kind"] == c), 2].double().mean(dim=0) for c in classes])
    best = (test.items[:, 2].double() @ torch.nn.functional.normalize(mean, dim=1).T).topk(5, dim=1).indices.numpy()
    expected = [test.labels["kind"][i] in classes[best[i]] for i in range(len(test))]
    assert row["correct_at_5"].astype(bool).tolist() == expected


def test_gaps_leave_items_out_of_a_modality_but_not_of_joint(invented):
    train, test = mixed(invented)
    generator = torch.Generator().manual_seed(0)
    where = torch.rand(80, 3, generator=generator) < 0.4
    where[3] = True
    train, test = hiding(train, torch.rand(80, 3, generator=generator) < 0.4), hiding(test, where)
    imputer = Mean().fit(list(train.items.unbind(1)), train.mask)
    frame = classify(train, test, "kind", text="a", imputer=imputer)
    for index, name in enumerate("abc"):
        assert set(one(frame, "knn", name)["item"]) == set(test.ids[test.mask[:, index].numpy()])
    for calibrated in (False, True):
        assert set(one(frame, "linear", JOINT, calibrated)["item"]) == set(test.ids[test.mask.any(1).numpy()])
    # Captions are text a, so their joint needs b or c.
    assert set(one(frame, "captions", JOINT)["item"]) == set(test.ids[test.mask[:, 1:].any(1).numpy()])
    spoiled = replace(test, items=test.items.masked_fill(~test.mask.unsqueeze(-1), float("nan")))
    again = classify(train, spoiled, "kind", kinds=["knn"], imputer=imputer)
    assert again["predicted"].tolist() == classify(train, test, "kind", kinds=["knn"], imputer=imputer)["predicted"].tolist()


def test_a_class_that_training_lacks_is_wrong_and_counted(invented):
    train, test = mixed(invented)
    labels = test.labels["kind"].astype(object)
    labels[:4] = "new"
    labels[4] = ""
    test = replace(test, labels={"kind": labels.astype(str)})
    frame = classify(train, test, "kind", kinds=["centroid"])
    row = one(frame, "centroid", "a")
    assert len(row) == 79
    assert row["known"].tolist() == [False] * 4 + [True] * 75
    assert not row["correct"][:4].any()
    table = accuracy_table(frame, np.random.default_rng(0))
    assert (table["unknown_class"] == 4).all()
    classes = class_table(frame)
    assert (classes.loc[classes["label"] == "new", "accuracy"] == 0).all()


def test_zero_shot_compares_with_given_class_texts(invented):
    train, test = mixed(invented)
    names = np.unique(train.labels["kind"])
    vectors = torch.stack([train.items[torch.from_numpy(train.labels["kind"] == c), 0].mean(dim=0) for c in names])
    given = classify(train, test, "kind", ["zero-shot"], class_vectors=(names, vectors))
    mean = classify(train, test, "kind", ["captions"], text="a")
    assert one(given, "zero-shot", "b")["predicted"].tolist() == one(mean, "captions", "b")["predicted"].tolist()
    with pytest.raises(CalmrlError, match="class texts must be"):
        classify(train, test, "kind", ["zero-shot"], class_vectors=(names, vectors[:, :3]))


def test_one_text_a_class_is_a_class_text_and_several_are_not(invented):
    train, test = mixed(invented)
    with pytest.raises(
        CalmrlError, match="zero-shot needs one text per class, and items of class 'class [0-9]' have different"
    ):
        classify(train, test, "kind", ["zero-shot"], text="a")
    names = np.unique(train.labels["kind"])
    named = torch.nn.functional.normalize(torch.randn(len(names), 16, generator=torch.Generator().manual_seed(0)), dim=1)
    items = train.items.clone()
    items[:, 0] = named[torch.from_numpy(np.searchsorted(names, train.labels["kind"]))]
    frame = classify(replace(train, items=items), test, "kind", text="a")
    assert "captions" not in set(frame["kind"])
    best = (test.items[:, 1] @ named.T).argmax(dim=1).numpy()
    assert one(frame, "zero-shot", "b")["predicted"].tolist() == names[best].tolist()


@pytest.mark.parametrize("kind", ["zero-shot", "captions"])
def test_texts_that_there_are_not_cannot_be_compared_with(invented, kind):
    train, test = mixed(invented)
    with pytest.raises(CalmrlError, match="no modality of texts is named"):
        classify(train, test, "kind", [kind])
    hidden = torch.zeros(80, 3, dtype=torch.bool)
    hidden[:, 0] = True
    with pytest.raises(CalmrlError, match="no training item with label 'kind' shows 'a'"):
        classify(hiding(train, hidden), test, "kind", [kind], text="a")
    assert set(classify(train, test, "kind")["kind"]) == {"centroid", "knn", "linear"}


def test_a_kind_that_is_asked_twice_counts_once(invented):
    train, test = mixed(invented)
    assert len(classify(train, test, "kind", ["knn", "knn"])) == len(classify(train, test, "kind", ["knn"]))


def test_an_embedding_that_says_nothing_predicts_nothing(invented):
    train, test = mixed(invented)
    flat = replace(test, items=torch.zeros_like(test.items))
    assert not classify(train, flat, "kind", ["centroid"])["correct"].any()


def test_macro_counts_classes_alike(invented):
    train, test = mixed(invented)
    frame = one(classify(train, test, "kind", ["knn"]), "knn", "a")
    table = accuracy_table(frame, np.random.default_rng(0))
    per_class = [frame.loc[frame["label"] == c, "correct"].mean() for c in frame["label"].unique()]
    assert table["macro"][0] == pytest.approx(100 * np.mean(per_class))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"label": "knid"}, "no label 'knid'; did you mean 'kind'?"),
        ({"kinds": ["liner"]}, "did you mean 'linear'?"),
        ({"text": "z"}, "no text modality 'z'"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(invented, arguments, said):
    train, test = mixed(invented)
    with pytest.raises(CalmrlError, match=said.replace("?", r"\?")):
        classify(train, test, **{"label": "kind", **arguments})


def test_one_class_is_no_classification(invented):
    train, test = mixed(invented, classes=1)
    with pytest.raises(CalmrlError, match="1 class in training"):
        classify(train, test, "kind")


def test_a_run_writes_its_classification(trained):
    frame = classify_run(trained, "category", kinds=["captions", "knn"])
    assert len(trained.read_frame("classification.parquet")) == len(frame)
    assert "caption" not in set(frame.loc[frame["kind"] == "captions", "modality"])
    assert one(frame, "knn", JOINT)["correct"].mean() > 0.2
    assert not one(frame, "knn", JOINT, True).empty
