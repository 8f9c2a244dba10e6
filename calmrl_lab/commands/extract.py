"""`calmrl-lab extract`: frozen encoders, once, into a feature store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from calmrl_lab.runtime import console


def register(app: typer.Typer) -> None:
    app.command("extract")(extract)


def extract(
    dataset: str = typer.Option(..., help="Dataset (calmrl-lab list datasets)."),
    encoders: str | None = typer.Option(
        None, help="Preset of the dataset, or one per modality, as vision=NAME,text=NAME.", show_default="its first preset"
    ),
    out: Path | None = typer.Option(None, help="Store to write.", show_default="stores/DATASET.zarr"),
    media: Path | None = typer.Option(None, help="Folder of the media and annotations; files outside it are refused."),
    manifest: Path | None = typer.Option(None, help="Table of the items, for --dataset folder (CSV or JSONL)."),
    weights: Path | None = typer.Option(None, help="Folder of encoder weights."),
    workers: int | None = typer.Option(None, help="Worker processes.", show_default="one per core"),
    device: str = typer.Option("auto", help="cpu, cuda (all GPUs), cuda:1 or auto."),
    engine: str = typer.Option("local", help="local, or ray for a cluster."),
    precision: str | None = typer.Option(None, help="fp32 or bf16, for encoders that have the choice.", show_default="fp32"),
    save_rerank_tokens: bool = typer.Option(
        False,
        "--save-rerank-tokens",
        help="Also keep what VAST's matching head needs of the test split (evaluate --rerank itm).",
    ),
    gaps_as_silence: bool = typer.Option(
        False,
        "--gaps-as-silence",
        help="Encode silence and empty texts in place of missing sounds and subtitles, as released evaluations do.",
    ),
    retry_failed: bool = typer.Option(False, "--retry-failed", help="Try only what failed in the store again."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing store, once the new one is complete."),
    max_failures: float = typer.Option(
        0.05, min=0, max=1, help="Share of media that may fail before the run counts as failed."
    ),
    timeout: float = typer.Option(300.0, help="Seconds that reading one medium may take."),
    block_size: int = typer.Option(64, help="Items per block: what a killed run may have to do again."),
    assign: list[str] = typer.Option([], "--set", metavar="KEY=VALUE", help="Option of the dataset; may be repeated."),
    encoder_option: list[str] = typer.Option(
        [],
        "--encoder-option",
        metavar="MODALITY.KEY=VALUE",
        help="Option of an encoder, as vision.frames=4; may be repeated.",
    ),
    follow_links: list[Path] = typer.Option(
        [], metavar="FOLDER", help="Folder that links in the media folder may lead to; may be repeated."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would be read and what is missing, and decode nothing."),
    as_json: bool = typer.Option(False, "--json", help="Print the summary as JSON."),
) -> None:
    """Run frozen encoders over a dataset, once, and write a feature store. Killed runs go on where they stopped.

    Example: calmrl-lab extract --dataset openmoji --out stores/openmoji.zarr

    Example: calmrl-lab extract --dataset folder --media DIR --manifest items.csv --encoders vision=siglip/image,caption=siglip/text
    """
    from calmrl_lab.config import override
    from feature_extractors import extraction

    options = (
        override({}, assign)
        | ({"manifest": manifest} if manifest else {})
        | ({"follow_links": follow_links} if follow_links else {})
    )
    silence = {"gaps_as_silence": True} if gaps_as_silence else {}
    if dry_run:
        from feature_extractors.dry_run import dry_run as look

        found = look(dataset, encoders, media, options)
        console.emit(found, as_json, lambda: _print_dry_run(found))
        return
    target = out or Path("stores") / f"{dataset}.zarr"
    asked: dict[str, Any] = {
        "workers": workers, "device": device, "precision": precision,
        "options": options | silence, "encoder_options": override({}, encoder_option),
    }  # fmt: skip
    if save_rerank_tokens and target.exists() and not overwrite and not retry_failed:
        console.note(f"'{target}' is there; only its condition tokens are made")
    else:
        if save_rerank_tokens:
            from feature_extractors.rerank_tokens import check_request

            # Hours later would be too late to hear that it cannot be done.
            what = {name: asked[name] for name in ("options", "encoder_options", "precision")}
            check_request(dataset, encoders, media, weights, **what, completes=target if retry_failed else None)
        rules: dict[str, Any] = {"max_failures": max_failures, "overwrite": overwrite, "retry_failed": retry_failed}
        how: dict[str, Any] = {"engine": engine, "block_size": block_size, "timeout": timeout}
        done = extraction.extract(dataset, target, encoders, media, weights, **asked, **how, **rules)
        console.emit(done.payload(), as_json, lambda: _print(done))
    if save_rerank_tokens:
        from feature_extractors.rerank_tokens import keep_test_tokens

        # What could be had this time has tokens too.
        again = overwrite or retry_failed
        kept = keep_test_tokens(dataset, target, encoders, media, weights, **asked, overwrite=again)
        console.note(f"condition tokens of {kept['kept']} test items kept, {kept['left_out']} have none")


def _print_dry_run(found: dict[str, Any]) -> None:
    splits = ", ".join(f"{count} {name}" for name, count in found["splits"].items())
    console.out.print(
        f"{found['dataset']}: {found['items']} items ({splits}) in {found['groups']} groups", soft_wrap=True, markup=False
    )
    table = console.table()
    for heading in ("modality", "encoder", "items", "rows", "an item", "files", "missing", "empty"):
        table.add_column(heading, justify="left" if heading in ("modality", "encoder") else "right")
    for name, of in found["modalities"].items():
        least, mean, most = of["rows_an_item"]
        spread = f"{most:g}" if least == most else f"{least:g} to {most:g}, mean {mean:g}"
        counts = (of["items"], of["rows"], spread, of["files"], of["files_missing"], of["files_empty"])
        table.add_row(name, of["encoder"] or "", *map(str, counts))
    console.show(table)
    if found["without"]:
        chosen = ",".join(f"{name}={of['encoder']}" for name, of in found["modalities"].items())
        console.out.print(
            f"no item has {' or '.join(found['without'])}: choose --encoders {chosen}", soft_wrap=True, markup=False
        )
    for name, of in found["modalities"].items():
        if of["first_missing"]:
            console.out.print(f"{name}: not there: {', '.join(of['first_missing'])}", soft_wrap=True, markup=False)


def _print(summary: Any) -> None:
    gaps = [
        reason
        for reason in ("absent by nature", "failed", "not extracted")
        if any(of[reason] for of in summary.missing.values())
    ]
    table = console.table()
    for heading in ("modality", "rows", *gaps):
        table.add_column(heading, justify="left" if heading == "modality" else "right")
    for modality, rows in summary.rows.items():
        table.add_row(modality, str(rows), *(str(summary.missing[modality][reason]) for reason in gaps))
    console.show(table)
    for line in _lines(summary):
        console.out.print(line, soft_wrap=True, markup=False)


def _lines(summary: Any) -> list[str]:
    modalities = len(summary.modalities)
    resumed = f", {summary.resumed_blocks} blocks were there already" if summary.resumed_blocks else ""
    lines = [
        f"{summary.items} items, {modalities} modalities in {summary.seconds:.0f} s ({summary.items_per_second:.1f} items/s{resumed})"
    ]
    if summary.failed:
        listed = ", ".join(f"{count} {code}" for code, count in summary.failed.items())
        lines.append(f"{summary.failed_media} of {summary.media} media failed: {listed}")
    if summary.left_out:
        shown = ", ".join(summary.left_out[:3]) + (", ..." if len(summary.left_out) > 3 else "")
        lines.append(f"{len(summary.left_out)} items have none of the modalities and are left out: {shown}")
    if busiest := sorted(summary.busy.items(), key=lambda pair: -pair[1])[:3]:
        lines.append("most time went into: " + ", ".join(f"{what} ({seconds:.0f} s)" for what, seconds in busiest))
    if summary.waited is not None:
        advice = ": reading them is the slower side" if summary.waited > 0.5 else ""
        lines.append(f"encoders waited for media {summary.waited:.0%} of their time{advice}")
    return [*lines, f"written to {summary.store}"]
