"""`calmrl-lab evaluate`: the scores of one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import typer

from calmrl_lab.runtime import console

if TYPE_CHECKING:
    from calmrl_lab.evaluation.evaluate import Evaluation


def register(app: typer.Typer) -> None:
    app.command("evaluate")(evaluate)


def evaluate(
    run: Path = typer.Option(..., help="Run to score."),
    store: Path | None = typer.Option(None, help="Score on this store instead of the one it was trained on."),
    split: str = typer.Option("test", help="Items to score."),
    direction: list[str] = typer.Option(
        [], metavar="QUERY:GALLERY", help="Direction, as caption:vision; may be repeated. (default: all)"
    ),
    similarity: str | None = typer.Option(
        None, metavar="NAME", help="How pairs are compared. (default: as the run was trained for)"
    ),
    rerank: str | None = typer.Option(
        None,
        help="itm: captions against whole items, the best re-scored by VAST's matching head (extract --save-rerank-tokens).",
    ),
    weights: Path | None = typer.Option(None, help="Folder of VAST's weights, for --rerank."),
    first_stage: str | None = typer.Option(
        None,
        metavar="SCORER",
        help="Score that --rerank takes its candidates from, joint or a scorer. (default: that of the run's system)",
    ),
    top: int = typer.Option(50, min=1, help="Candidates of a query that --rerank re-scores."),
    device: str = typer.Option("auto", help="cpu, cuda, cuda:1 or auto."),
    as_json: bool = typer.Option(False, "--json", help="Print the table as JSON."),
) -> None:
    """Rank every query of a split in both directions and write the ranks, imputation errors and anchor shifts into the run.

    Example: calmrl-lab evaluate --run runs/demo/calmrl-ppca-s0 --direction caption:vision
    """
    from calmrl_lab.config import SimilarityName
    from calmrl_lab.errors import CalmrlError
    from calmrl_lab.evaluation.evaluate import evaluate as score
    from calmrl_lab.registry import known

    pairs = [text.partition(":")[::2] for text in direction]
    for text, pair in zip(direction, pairs, strict=True):
        if not all(pair) or ":" in pair[1]:
            raise CalmrlError(
                f"--direction '{text}' is not of the form query:gallery", hint="for example --direction caption:vision"
            )
    from calmrl_lab.evaluation.diagnostics import chance_warning
    from calmrl_lab.evaluation.feature_reference import below_features

    if rerank is not None:
        # What is wrong with the request shows before anything is ranked.
        match = _matching(run, rerank, store, weights, top, device)
    if similarity is not None:
        known(similarity, get_args(SimilarityName), "there is no similarity")
    scored = score(run, pairs or None, store=store, split=split, device=device, similarity=similarity)  # type: ignore[arg-type]
    table, warning = scored.table(), chance_warning(scored.scores)
    if rerank is None:
        console.emit(table.to_dict("records"), as_json, lambda: _print(scored))
    else:
        from calmrl_lab.evaluation.reranking.rerank import rerank_run, rerank_table

        again = rerank_table(rerank_run(run, match, rerank, split, first_stage, device))
        payload = {"directions": table.to_dict("records"), "rerank": again.to_dict("records")}
        console.emit(payload, as_json, lambda: _print(scored, again))
    for sentence in (warning, below_features(scored.coverage["features"])):
        if sentence:
            console.note(sentence)


def _matching(run: Path, rerank: str, store: Path | None, weights: Path | None, top: int, device: str) -> Any:
    from calmrl_lab.errors import CalmrlError
    from calmrl_lab.runs.run import Run
    from calmrl_lab.runtime.devices import resolve
    from calmrl_lab.store import FeatureStore

    # Like `extract`, this command is an edge: it alone brings encoders and cached features together.
    from feature_extractors.rerank_tokens import kept_matching

    if rerank != "itm":
        raise CalmrlError(f"unknown re-ranking '{rerank}'", hint="known: itm (VAST's image-text matching)")
    if weights is None:
        raise CalmrlError("re-ranking needs VAST's weights", hint="--weights DIR")
    if store is not None:
        raise CalmrlError("--rerank works on the store of the run, not on another --store")
    return kept_matching(FeatureStore.open(Run.open(run).config.store), weights, str(resolve(device)), top)


def _print_rerank(table: Any) -> None:
    shown = console.table(title="captions against whole items, before and after matching")
    for heading in ("query", "gallery", "scorer", "R@1 % (95 %)", "R@5 %", "R@10 %", "queries"):
        shown.add_column(heading, justify="left" if heading in ("query", "gallery", "scorer") else "right")
    for row in table.itertuples(index=False):
        later = (f"{row.recall_at_5:.1f}", f"{row.recall_at_10:.1f}", str(row.queries))
        shown.add_row(row.query, row.gallery, row.scorer, _with_interval(row.recall_at_1, row.low_1, row.high_1), *later)
    console.out.print()
    console.show(shown)


def _with_interval(value: float, low: float, high: float) -> str:
    return f"{value:.1f} ({low:.1f}, {high:.1f})"


def _recalls(row: dict[str, Any], features: str) -> tuple[str, ...]:
    first = _with_interval(row["recall_at_1"], row["low_1"], row["high_1"])
    return first, f"{row['chance_recall_at_1']:.2f}", features, f"{row['recall_at_5']:.1f}", f"{row['recall_at_10']:.1f}"


def _print(scored: Evaluation, again: Any | None = None) -> None:
    from calmrl_lab.config import SIMILARITY_WORDS
    from calmrl_lab.evaluation.score_rows import mean_recalls

    table, coverage = scored.table(), scored.coverage
    shown = console.table()
    for heading in ("query", "gallery", "R@1 % (95 %)", "chance", "features", "R@5 %", "R@10 %", "median"):
        shown.add_column(heading, justify="left" if heading in ("query", "gallery") else "right")
    features = {(row["query"], row["gallery"]): f"{row['feature_recall_at_1']:.1f}" for row in coverage["features"]}
    for row in table.to_dict("records"):
        names = row["query"], row["gallery"]
        shown.add_row(*names, *_recalls(row, features.get(names, "-")), f"{row['median_rank']:g}")
    if len(table) > 1:
        shown.add_row("mean", "", *_recalls(mean_recalls(scored.scores), ""), "")
    console.show(shown)
    console.out.print(
        f"pairs compared by {SIMILARITY_WORDS[coverage['similarity']]}; {coverage['split']} items of '{coverage['store']['dataset']}', nothing hidden "
        "from the gallery; ties count as expected under a random order; median is that of the ranks, chance is R@1 of a random order, "
        "features that of the cosine of the features themselves (- where their dimensions differ)",
        soft_wrap=True,
    )
    counts = sorted({int(count) for count in table["queries"]})
    console.out.print(
        f"{counts[0]}{f' to {counts[-1]}' if len(counts) > 1 else ''} queries per direction; --json has their numbers, mean ranks, MRR and nDCG "
        "too; the mean is over directions",
        soft_wrap=True,
    )
    if table["without_positive"].any():
        console.out.print(
            f"left out: {int(table['without_positive'].sum())} queries whose item lacks the modality of the gallery, so that no answer is right",
            soft_wrap=True,
        )
    for pair in coverage["unserved"]:
        console.out.print(f"{pair['query']}->{pair['gallery']} cannot be asked: no item has both modalities")
    for pair in coverage["incomparable"]:
        console.out.print(f"{pair['query']}->{pair['gallery']} is left out: the run does not compare these two modalities")
    if gate := coverage.get("gate"):
        console.out.print(
            f"risk control: {gate['left_uncalibrated']} of {gate['scored']} cases left uncalibrated; {100 * gate['harm_rate']:.1f} % harmed "
            f"by calibration (at most {100 * gate['level']:g} % allowed)"
        )
    if coverage["empty_items"]:
        console.out.print(f"{coverage['empty_items']} of {coverage['items']} items show no modality at all")
    if again is not None:
        _print_rerank(again)
