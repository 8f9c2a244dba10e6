"""Classification over embeddings: zero-shot by class text, class means, nearest neighbours, linear probe; gaps allowed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from calmrl_lab.errors import CalmrlError
from calmrl_lab.evaluation.run_items import RunItems, open_run
from calmrl_lab.evaluation.significance import interval
from calmrl_lab.model.alignment_model import AlignmentModel
from calmrl_lab.model.embeddings import Embeddings
from calmrl_lab.registry import known
from calmrl_lab.runs.run import writes_into_run
from calmrl_lab.scorers.centroid import Centroid

if TYPE_CHECKING:
    import pandas as pd

    from calmrl_lab.runs.run import Run
    from calmrl_lab.store import FeatureStore

KINDS = ("zero-shot", "captions", "centroid", "knn", "linear")
# Kinds that compare with texts of the classes, in the modality of texts.
_BY_TEXT = ("zero-shot", "captions")
NEIGHBOURS = 10
# exp(cosine / 0.07) weights of neighbours, the temperature that contrastive papers use for this.
_TEMPERATURE = 0.07
_STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
_FOLDS = 3
# Cosines of the same text differ by less from 1, whatever the batch it was projected in.
_SAME = 1e-5
# A modality's key for all modalities of an item together.
JOINT = "joint"


def classify(
    train: Embeddings,
    test: Embeddings,
    label: str,
    kinds: Sequence[str] | None = None,
    text: str | None = None,
    class_vectors: tuple[Sequence[str], Float[Tensor, "c d"]] | None = None,
    imputer: Any | None = None,
) -> pd.DataFrame:
    """Predict `label` of the test items from each single modality and from all that an item shows ('joint', their centroid).

    zero-shot: the nearest class text, in cosine, which uses no item of the class; class texts are `class_vectors` (names, unit-norm
    embeddings), or else the embeddings in modality `text` where all items of a class have the same text. captions: the nearest mean of
    the embeddings in modality `text` of each class's training items. For these two no labels of another modality are used, and their
    'joint' leaves the text out. centroid: the nearest class mean of the same modality. knn: the ten nearest training items vote with weight
    exp(cosine / 0.07). linear: logistic regression, its strength chosen by three-fold cross-validation on training groups. Without `kinds`:
    all that the data allow. Training and test items that do not show a modality are left out of its rows. With an `imputer`, the joint
    embedding is computed a second time with gaps filled (`calibrated`). Items without a label take no part.

    A row per item, kind and modality: kind, modality, calibrated, item, group, pattern, label, predicted, correct, correct_at_5
    (NaN with five classes or fewer), known (False if no class that was compared with is the item's). Raises CalmrlError for an unknown label,
    kind or text modality, for zero-shot without class texts, and for training items of fewer than two classes.
    """
    import pandas as pd

    _check(train, test, label, kinds or KINDS, text)
    names = np.unique([name for name in train.labels[label].tolist() if name])
    if len(names) < 2:
        raise CalmrlError(f"label '{label}' has {len(names)} class in training, expected at least 2")
    texts = _class_texts(train, label, names, text, class_vectors, kinds)
    parts = []
    for modality, calibrated, view in _views(train, test, imputer):
        fitted = _Representation.of(train, view, label, names, training=True)
        asked = _Representation.of(test, view, label, names, training=False)
        for kind in dict.fromkeys(kinds or KINDS):
            if kind in _BY_TEXT:
                if kind not in texts or modality == text:
                    continue
                described = _Representation.of(test, view.without(text), label, names, training=False)
                if len(described.items):
                    scores = described.vectors @ texts[kind][1].T
                    parts.append(_rows(test, described, label, scores, texts[kind][0], kind, modality, calibrated))
                continue
            if len(asked.items) == 0 or len(np.unique(fitted.truth)) < 2:
                continue
            scores = _SCORES[kind](fitted, asked.vectors, len(names))
            parts.append(_rows(test, asked, label, scores, names, kind, modality, calibrated))
    if not parts:
        raise CalmrlError(f"no test item with label '{label}' shows a modality that could be classified")
    return pd.concat(parts, ignore_index=True)


@writes_into_run
def classify_run(
    run: Run | str,
    label: str | None = None,
    kinds: Sequence[str] | None = None,
    text: str | None = None,
    split: str = "test",
    device: str = "auto",
    encode: Callable[[FeatureStore, str, list[str]], Float[np.ndarray, "c d_m"]] | None = None,
    store: FeatureStore | str | Path | None = None,
) -> pd.DataFrame:
    """`classify` of a finished run, trained on the labels of its training split, written into it as classification.parquet.

    `store` is another one than that of the run to classify the items of. One that has test items only can be classified zero-shot: the texts of
    its classes are then those that its items have in modality `text`.

    `label` may be left out if the store has one label of at most 1,000 classes. `text` defaults to `caption` where that is a modality.
    `encode` makes features of modality `text` from the names of the classes, which are then the class texts of zero-shot; it is called with
    the store, the modality and the names.
    """
    run, model, items = open_run(run, store, device)
    # Zero-shot classification looks at no training item but for the text of its class.
    texts = split if list(kinds or ()) == ["zero-shot"] and not (items.splits == "train").any() else "train"
    test, train = (replace(model.embed(items.of(name)), labels=items.labels(name)) for name in (split, texts))
    label = label or _only_label(items)
    text = text or ("caption" if "caption" in test.modalities else None)
    _check(train, test, label, kinds or KINDS, text)
    vectors = None if encode is None else _encoded_classes(model, items.store, label, text, encode)
    frame = classify(train, test, label, kinds, text, vectors, model.imputer)
    run.write_frame(run.CLASSIFICATION, frame)
    return frame


def _only_label(items: RunItems) -> str:
    """The one label of the store that can be classified; CalmrlError if there is none or several."""
    classes = {name: len(np.unique(values)) for name, values in items.store.labels.items()}
    fitting = [name for name, count in classes.items() if 2 <= count <= min(1000, len(items.table) // 2)]
    if len(fitting) != 1:
        raise CalmrlError(
            f"store '{items.store.path}' has {len(fitting)} labels that could be classified",
            hint=f"it has: {', '.join(classes) or 'none'}",
        )
    return fitting[0]


@torch.no_grad()
def _encoded_classes(
    model: AlignmentModel,
    store: FeatureStore,
    label: str,
    text: str | None,
    encode: Callable[[FeatureStore, str, list[str]], Float[np.ndarray, "c d_m"]],
) -> tuple[list[str], Float[Tensor, "c d"]]:
    if text is None:
        raise CalmrlError("the names of classes are encoded as a modality of texts, and none is named", hint="--text NAME")
    classes = [str(name) for name in np.unique(store.labels[label]) if name]
    features = torch.from_numpy(np.asarray(encode(store, text, classes), dtype=np.float32))
    return classes, model.project(text, features.to(model.device))


def accuracy_table(frame: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """A row per kind and modality: accuracy (percent, interval over groups), accuracy at 5, macro average over classes, counts.

    `majority` is what always naming the most frequent class of these items would reach.
    """
    import pandas as pd

    table = []
    for (kind, modality, calibrated), part in frame.groupby(["kind", "modality", "calibrated"], sort=False):
        found = interval(100.0 * part["correct"].to_numpy(), generator, part["group"].to_numpy(), top=100)
        classes = part.groupby("label")["correct"]
        table.append(
            {
                "kind": kind, "modality": modality, "calibrated": calibrated, "accuracy": found.value, "low": found.low, "high": found.high,
                "accuracy_at_5": 100 * float(part["correct_at_5"].astype(float).mean()), "macro": 100 * float(classes.mean().mean()),
                "majority": 100 * float(classes.size().max() / len(part)), "items": len(part), "classes": classes.ngroups,
                "unknown_class": int((~part["known"]).sum()),
            }
        )  # fmt: skip
    return pd.DataFrame(table)


def class_table(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per kind, modality and class: accuracy in percent, items, and the class it is most often taken for instead."""
    import pandas as pd

    table = []
    for key, part in frame.groupby(["kind", "modality", "calibrated", "label"], sort=False):
        wrong = part.loc[~part["correct"], "predicted"]
        row = dict(zip(("kind", "modality", "calibrated", "label"), key, strict=True))
        mistaken = str(wrong.value_counts().index[0]) if len(wrong) else ""
        table.append({**row, "accuracy": 100 * float(part["correct"].mean()), "items": len(part), "mistaken_for": mistaken})
    return pd.DataFrame(table)


class _View:
    """One way to make vectors of items: a single modality, or the centroid of what is shown, gaps filled or not."""

    def __init__(self, modality: int | None, imputer: Any | None = None, left_out: str | None = None) -> None:
        self._modality, self._imputer, self._left_out = modality, imputer, left_out

    def without(self, modality: str | None) -> _View:
        """The same, blind to one modality."""
        return _View(self._modality, self._imputer, modality)

    def vectors(self, items: Embeddings) -> tuple[Float[Tensor, "n d"], np.ndarray]:
        """Unit-norm vectors [N, d] and which items have one [N]."""
        if self._modality is not None:
            return items.items[:, self._modality], items.mask[:, self._modality].cpu().numpy()
        columns = [j for j, name in enumerate(items.modalities) if name != self._left_out]
        seen = torch.zeros_like(items.mask)
        seen[:, columns] = items.mask[:, columns]
        shown, mask = items.items[:, columns], seen[:, columns]
        if self._imputer is not None:
            shown = items.filled(self._imputer, seen)[:, columns]
            mask = mask.any(dim=1, keepdim=True).expand_as(mask)
        return Centroid("", [items.modalities[j] for j in columns]).vectors(shown, mask), mask.any(dim=1).cpu().numpy()


def _views(train: Embeddings, test: Embeddings, imputer: Any | None) -> list[tuple[str, bool, _View]]:
    views = [(name, False, _View(index)) for index, name in enumerate(test.modalities)]
    views.append((JOINT, False, _View(None)))
    if imputer is not None and not (bool(test.mask.all()) and bool(train.mask.all())):
        views.append((JOINT, True, _View(None, imputer)))
    return views


class _Representation:
    """Labelled items that a view has vectors for: positions, vectors, class indices (-1: a class that training lacks), groups."""

    def __init__(self, items: np.ndarray, vectors: Tensor, truth: Int[np.ndarray, " n"], group: np.ndarray) -> None:
        self.items, self.vectors, self.truth, self.group = items, vectors, truth, group

    @classmethod
    def of(cls, embedded: Embeddings, view: _View, label: str, names: np.ndarray, training: bool) -> _Representation:
        vectors, present = view.vectors(embedded)
        labels = embedded.labels[label]
        items = np.flatnonzero(present & (labels != ""))
        place = np.searchsorted(names, labels[items]).clip(max=len(names) - 1)
        truth = np.where(names[place] == labels[items], place, -1)
        assert not training or (truth >= 0).all()
        return cls(items, vectors[torch.from_numpy(items).to(vectors.device)].double().cpu(), truth, embedded.group[items])


def _by_centroid(train: _Representation, vectors: Tensor, classes: int) -> Tensor:
    scores = vectors @ _class_means(train.vectors, train.truth, classes).T
    empty = np.setdiff1d(np.arange(classes), train.truth)
    return scores.index_fill(1, torch.from_numpy(empty), -torch.inf)


def _class_means(vectors: Tensor, truth: np.ndarray, classes: int) -> Float[Tensor, "c d"]:
    """Unit-norm class means; zeros for a class without items."""
    sums = torch.zeros(classes, vectors.shape[1], dtype=vectors.dtype).index_add_(0, torch.from_numpy(truth), vectors)
    return functional.normalize(sums, dim=1)


def _by_neighbours(train: _Representation, vectors: Tensor, classes: int) -> Tensor:
    k = min(NEIGHBOURS, len(train.vectors))
    votes = torch.zeros(len(vectors), classes, dtype=vectors.dtype)
    truth = torch.from_numpy(train.truth)
    for start in range(0, len(vectors), 1024):
        rows = slice(start, start + 1024)
        scores, near = (vectors[rows] @ train.vectors.T).topk(k, dim=1)
        votes[rows] = votes[rows].scatter_add_(1, truth[near], (scores / _TEMPERATURE).exp())
    return votes


def _by_regression(train: _Representation, vectors: Tensor, classes: int) -> Tensor:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    x, y = train.vectors.numpy(), train.truth
    strength = _STRENGTHS[len(_STRENGTHS) // 2]
    if len(np.unique(train.group)) >= _FOLDS:
        folds = [
            (inside, outside)
            for inside, outside in GroupKFold(_FOLDS).split(x, y, train.group)
            if len(np.unique(y[inside])) > 1
        ]
        hits = {
            c: sum(int((_regression(LogisticRegression, x[i], y[i], c).predict(x[o]) == y[o]).sum()) for i, o in folds)
            for c in _STRENGTHS
        }
        strength = max(_STRENGTHS, key=lambda c: hits[c])
    model = _regression(LogisticRegression, x, y, strength)
    decided = model.decision_function(vectors.numpy())
    if decided.ndim == 1:
        decided = np.stack([-decided, decided], axis=1)
    scores = np.full((len(vectors), classes), -np.inf)
    scores[:, model.classes_] = decided
    return torch.from_numpy(scores)


def _regression(kind: Any, x: np.ndarray, y: np.ndarray, strength: float) -> Any:
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # The last digits of a probe's loss do not move its predictions; lbfgs stops after enough steps.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return kind(C=strength, max_iter=200).fit(x, y)


_SCORES = {"centroid": _by_centroid, "knn": _by_neighbours, "linear": _by_regression}


def _class_texts(
    train: Embeddings,
    label: str,
    names: np.ndarray,
    text: str | None,
    given: tuple[Sequence[str], Tensor] | None,
    kinds: Sequence[str] | None,
) -> dict[str, tuple[np.ndarray, Float[Tensor, "c d"]]]:
    """Classes and unit-norm vectors by kind, of those kinds that compare with texts and are possible; CalmrlError for one that was named
    and is not."""
    found: dict[str, tuple[np.ndarray, Tensor]] = {}
    different: str | None = None
    if given is not None:
        classes, vectors = np.asarray(given[0], dtype=np.str_), given[1]
        if vectors.shape != (len(classes), train.items.shape[2]):
            raise CalmrlError(
                f"class texts must be [{len(classes)}, {train.items.shape[2]}] for {len(classes)} classes, got {list(vectors.shape)}"
            )
        found["zero-shot"] = (classes, functional.normalize(vectors.double().cpu(), dim=1))
    if text is not None:
        described = _Representation.of(train, _View(train.modalities.index(text)), label, names, training=True)
        present = np.unique(described.truth)
        means = _class_means(described.vectors, described.truth, len(names))
        apart = (described.vectors * means[torch.from_numpy(described.truth)]).sum(dim=1).numpy() < 1 - _SAME
        different = str(names[described.truth[apart.argmax()]]) if apart.any() else None
        if len(present):
            texts = (names[present], means[torch.from_numpy(present)])
            # One text per class is a class text; of several, only the mean can be had.
            if different is None:
                found.setdefault("zero-shot", texts)
            if different is not None or "captions" in (kinds or ()):
                found["captions"] = texts
    for kind in _BY_TEXT:
        if kind in (kinds or ()) and kind not in found:
            raise CalmrlError(*_no_class_texts(kind, label, text, different))
    return found


def _no_class_texts(kind: str, label: str, text: str | None, different: str | None) -> tuple[str, str]:
    if text is None:
        return f"{kind} compares with texts, and no modality of texts is named", "--text NAME, or another --classifier"
    if different is None:
        return f"{kind}: no training item with label '{label}' shows '{text}'", "--text NAME, or another --classifier"
    return (
        f"zero-shot needs one text per class, and items of class '{different}' have different ones in '{text}'",
        "--encode-classes encodes the names of the classes; --classifier captions compares with the mean of a class's texts",
    )


def _rows(
    test: Embeddings,
    asked: _Representation,
    label: str,
    scores: Float[Tensor, "n c"],
    candidates: np.ndarray,
    kind: str,
    modality: str,
    calibrated: bool,
) -> pd.DataFrame:
    import pandas as pd

    from calmrl_lab.data.missingness import pattern_names

    truth = test.labels[label][asked.items]
    ranked = scores.numpy()
    place = np.searchsorted(np.sort(candidates), truth).clip(max=len(candidates) - 1)
    own = np.argsort(candidates)[place]
    compared = candidates[own] == truth
    score = ranked[np.arange(len(ranked)), own][:, None]
    # Ties count against the true class: a vector that says nothing predicts nothing.
    above = (ranked >= score).sum(axis=1) - 1
    patterns = np.asarray(pattern_names(test.mask.cpu().numpy(), test.modalities))
    return pd.DataFrame(
        {
            "kind": kind,
            "modality": modality,
            "calibrated": calibrated,
            "item": test.ids[asked.items],
            "group": test.group[asked.items],
            "pattern": patterns[asked.items],
            "label": truth,
            "predicted": candidates[ranked.argmax(axis=1)],
            "correct": compared & (above == 0),
            "correct_at_5": (compared & (above < 5)).astype(np.float64) if len(candidates) > 5 else np.nan,
            "known": compared,
        }
    )


def _check(train: Embeddings, test: Embeddings, label: str, kinds: Sequence[str], text: str | None) -> None:
    for embedded in (train, test):
        known(label, list(embedded.labels), "there is no label")
    for kind in kinds:
        known(kind, KINDS, "unknown kind of classification")
    if text is not None:
        known(text, train.modalities, "there is no text modality")
