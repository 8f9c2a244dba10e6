"""`calmrl-lab train-heads`: heads, imputer and objective over cached features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from calmrl_lab.runtime import console

if TYPE_CHECKING:
    from calmrl_lab.runs.run import Run


def register(app: typer.Typer) -> None:
    app.command("train-heads")(train_heads)


def train_heads(
    store: Path | None = typer.Option(None, help="Feature store to train on. (default: the only one in stores/)"),
    method: str | None = typer.Option(
        None, help="Named set of settings (calmrl-lab list methods). (default: recommended; calmrl where --impute is named)"
    ),
    objective: str | None = typer.Option(
        None,
        help="Alignment objective (calmrl-lab list objectives), or none: heads as they start. (default: the method's; recommended: clip)",
    ),
    impute: str | None = typer.Option(
        None, help="Imputer of missing modalities (calmrl-lab list imputers). (default: the method's; recommended: none)"
    ),
    scenario: str | None = typer.Option(
        None, help="What training may see: full, complete-only, pairs:0.25, drop:audio,subtitle; chain with +. (default: full)"
    ),
    warm_up: Path | None = typer.Option(None, help="Store of complete data to train on first."),
    mix: list[str] = typer.Option(
        [], metavar="STORE[:WEIGHT]", help="Further store to train on at the same time; may be repeated."
    ),
    init: str | None = typer.Option(
        None,
        help="Start of the heads: random, stored (the store's own), or ppca (closed form). (default: the method's; recommended: ppca)",
    ),
    similarity: str | None = typer.Option(
        None,
        help="How pairs are compared: cosine; likelihood-ratio under the PPCA of --init ppca, with --objective none; sum of both. (default: the method's; recommended: stacked)",
    ),
    head: str | None = typer.Option(None, help="linear or mlp. (default: the method's; recommended: linear)"),
    modalities: str | None = typer.Option(None, help="Modalities to align, by comma. (default: all of the store)"),
    seed: int | None = typer.Option(None, help="Seed of masks, initialisation and order. (default: 0)"),
    seeds: str | None = typer.Option(None, metavar="FIRST-LAST", help="Several seeds, as 0-4 or 0,2,5: one run each."),
    epochs: int | None = typer.Option(None, help="Passes over the training items. (default: the method's; recommended: 30)"),
    risk_control: bool = typer.Option(
        False, "--risk-control", help="Calibrate only items whose predicted gain is worth the risk of harm."
    ),
    device: str | None = typer.Option(None, help="cpu, cuda, cuda:1 or auto. (default: auto)"),
    config: Path | None = typer.Option(None, help="YAML file with any of these settings."),
    assign: list[str] = typer.Option([], "--set", metavar="KEY=VALUE", help="Any other setting; may be repeated."),
    run: Path | None = typer.Option(None, "--run", help="Run directory to write. (default: runs/<what was asked>)"),
    resume: Path | None = typer.Option(None, help="Go on with this unfinished run."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace a finished run in the run directory."),
    keep_state: bool = typer.Option(False, "--keep-state", help="Keep the last checkpoint of the finished run."),
    as_json: bool = typer.Option(False, "--json", help="Print the summary as JSON."),
) -> None:
    """Train projection heads over the cached features of a store.

    --method names what is trained; every other setting that is given changes that setting of the method and nothing else. Without --method it is the
    method recommended, and with --impute ppca alone the paper's method with our settings, calmrl. What is trained and what was changed in it is always printed.

    Example: calmrl-lab train-heads --store stores/openmoji.zarr --impute ppca --scenario pairs:0.25

    Example: calmrl-lab train-heads stores/openmoji.zarr --scenario pairs:0.25 --seeds 0-4
    """
    from calmrl_lab.errors import CalmrlError
    from calmrl_lab.methods.resolve import default_run_path, in_words, request
    from calmrl_lab.runs.run import Run
    from calmrl_lab.runtime.distributed import leads
    from calmrl_lab.training.train import train, train_seeds

    console.err.quiet = not leads()
    if seeds is not None and (seed is not None or resume is not None):
        raise CalmrlError(
            "--seeds makes a run for every seed, and cannot stand beside --seed or --resume", hint="leave one of them out"
        )
    if resume is not None:
        config_of_run = Run.open(resume).config
        console.note(in_words(config_of_run))
        finished = [train(config_of_run, resume, resume=True)]
    else:
        flags: dict[str, Any] = {
            "store": store and str(store), "method": method, "objective": objective, "impute": impute, "scenario": scenario, "head": head, "init": init,
            "similarity": similarity,
            "mix": _weights(mix) or None, "warm_up": warm_up and str(warm_up), "seed": seed, "epochs": epochs, "device": device,
            "risk_control": risk_control or None, "keep_state": keep_state or None, "modalities": modalities and [name.strip() for name in modalities.split(",")],
        }  # fmt: skip
        asked = request(config, flags, assign)
        console.note(in_words(asked))
        if seeds is not None:
            finished = train_seeds(asked, _numbers(seeds), run, overwrite)
        else:
            finished = [train(asked, run or default_run_path(asked), overwrite=overwrite)]
    if leads():
        summaries = [one.summary for one in finished]
        console.emit(summaries[0] if seeds is None else summaries, as_json, lambda: _print_all(finished))


def _numbers(text: str) -> list[int]:
    """`0-4` or `0,2,5` or both -> the numbers, in order."""
    from calmrl_lab.errors import CalmrlError

    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise CalmrlError(f"--seeds '{text}' is no list of seeds", hint="for example 0-4, or 0,2,5")
        found += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(found))


def _weights(mix: list[str]) -> dict[str, float]:
    """STORE or STORE:WEIGHT -> weight by store."""
    found = {}
    for text in mix:
        path, colon, weight = text.rpartition(":")
        try:
            found[path if colon else text] = float(weight) if colon else 1.0
        except ValueError:
            found[text] = 1.0
    return found


def _print_all(runs: list[Run]) -> None:
    for run in runs:
        _print(run)


def _print(run: Run) -> None:
    summary = run.summary
    counts = summary["counts"]
    console.out.print(
        f"[bold]{summary['method']}[/bold] on {counts['train_items']} items, {counts['complete']} of them complete"
    )
    console.out.print(
        f"  {summary['epochs']} epochs in {summary['seconds']} s, best after {summary['best_epoch']} on validation"
    )
    by = summary.get("selected_by", "cosine")
    console.out.print(f"  validation: mean reciprocal rank {summary['validation_mrr']:.3f}, ranked by {by}")
    if gate := summary.get("gate"):
        console.out.print(
            f"  risk control: {gate['left_uncalibrated']} of {gate['items_with_gaps']} items with gaps left uncalibrated, "
            f"{100 * gate['held_out_harm']:.1f} % of held-out items harmed (at most {100 * gate['level']:g} % allowed)"
        )
    console.out.print(f"  written to {run.path}", soft_wrap=True)
    console.out.print(f"  next: calmrl-lab evaluate --run {run.path}", soft_wrap=True)
