"""`calmrl-lab embed`: aligned embeddings of a store, as a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from calmrl_lab.runtime import console

if TYPE_CHECKING:
    from calmrl_lab.runs.embed_store import EmbeddedStore


def register(app: typer.Typer) -> None:
    app.command("embed")(embed)


def embed(
    run: Path = typer.Option(..., help="Finished run whose heads make the embeddings."),
    out: Path = typer.Option(..., help="File to write: .npz or .parquet (one row per item), or a store (.zarr, all rows)."),
    store: Path | None = typer.Option(None, help="Store to embed. (default: the run's own)"),
    split: str | None = typer.Option(None, help="Items to embed. (default: all)"),
    device: str = typer.Option("auto", help="cpu, cuda, cuda:1 or auto."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace what is at --out."),
    as_json: bool = typer.Option(False, "--json", help="Print what was written as JSON."),
) -> None:
    """Write the unit-norm embeddings of a store's items under a finished run.

    Example: calmrl-lab embed --run runs/demo/calmrl-ppca-s0 --out embeddings.npz
    """
    from dataclasses import asdict

    from calmrl_lab.evaluation.run_items import note_comparison
    from calmrl_lab.runs.embed_store import embed_store

    done = embed_store(run, out, store, split, device, overwrite)
    console.emit(asdict(done), as_json, lambda: _show(done))
    note_comparison(run, "embeddings are compared by their cosine")


def _show(done: EmbeddedStore) -> None:
    console.out.print(
        f"{done.items} items, {', '.join(done.modalities)}, dimension {done.dim}, written to {done.path}",
        markup=False,
        soft_wrap=True,
    )
    if done.first_rows_only:
        console.out.print(
            f"items have several rows of {', '.join(done.first_rows_only)}; the file holds the first of each, a .zarr holds all",
            markup=False,
            soft_wrap=True,
        )
