"""`calmrl-lab index` and `calmrl-lab search`: a trained run as a search engine over a store."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from calmrl_lab.runtime import console

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from calmrl_lab.search.index_folder import Gallery


def register(app: typer.Typer) -> None:
    made = typer.Typer(help=index.__doc__)
    made.callback(invoke_without_command=True)(index)
    made.command("add")(add)
    made.command("remove")(remove)
    app.add_typer(made, name="index")
    app.command("search")(search)


def index(
    context: typer.Context,
    run: Path | None = typer.Option(None, help="Finished run whose heads make the vectors; needed for a new index."),
    out: Path | None = typer.Option(None, help="Index folder to write; needed for a new index."),
    store: Path | None = typer.Option(None, help="Store to index. (default: the run's own)"),
    split: str | None = typer.Option(None, help="Items to index. (default: all)"),
    modalities: str | None = typer.Option(None, metavar="NAME,NAME", help="What items are made of. (default: all they show)"),
    scorer: str | None = typer.Option(
        None,
        help="How items are compared: centroid, anchor, fused, cosine:MODALITY, likelihood-ratio or sum. (default: as the run compares pairs)",
    ),
    impute_gaps: bool = typer.Option(False, "--impute-gaps", help="Fill the gaps of items with the run's imputer first."),
    index_type: str = typer.Option("flat", help="flat (exact), ivf or hnsw (approximate)."),
    nlist: int | None = typer.Option(
        None, min=1, help="k-means cells of an ivf index. (default: the square root of the number of items)"
    ),
    m: int | None = typer.Option(None, "--m", min=1, help="Links of a vector in an hnsw index. (default: 32)"),
    ef_construction: int | None = typer.Option(
        None, min=1, help="Candidates looked at while an hnsw index is built. (default: 200)"
    ),
    gpus: int = typer.Option(0, min=0, help="GPUs to build a flat or ivf index on, which is the same afterwards."),
    device: str = typer.Option("auto", help="cpu, cuda, cuda:1 or auto."),
    as_json: bool = typer.Option(False, "--json", help="Print the facts of the index as JSON."),
) -> None:
    """Index the items of a store under the heads of a run; items may lack modalities.

    Example: calmrl-lab index --run runs/demo/calmrl-ppca-s0 --out indexes/emoji --modalities vision
    """
    if context.invoked_subcommand is not None:
        return
    from calmrl_lab.errors import CalmrlError
    from calmrl_lab.search.index_folder import build_gallery

    if run is None or out is None:
        raise CalmrlError("a new index needs a run and a folder", hint="calmrl-lab index --run RUN --out DIR")
    options = {"nlist": nlist, "m": m, "ef_construction": ef_construction}
    given = {name: value for name, value in options.items() if value is not None}
    names = None if modalities is None else [name.strip() for name in modalities.split(",") if name.strip()]
    built = build_gallery(
        run, out, store, split, names, scorer, impute_gaps, index_type, given, gpus, device  # type: ignore[arg-type]
    )  # fmt: skip
    _draw_recall(built)
    console.emit(built.facts, as_json, lambda: _print_facts(built))


def add(
    index: Path = typer.Option(..., help="Index folder."),
    store: Path = typer.Option(..., help="Store with the new items, of the same encoders."),
    split: str | None = typer.Option(None, help="Items to add. (default: all)"),
    as_json: bool = typer.Option(False, "--json", help="Print the facts of the index as JSON."),
) -> None:
    """Add the items of a store to an index.

    Example: calmrl-lab index add --index indexes/emoji --store stores/more.zarr
    """
    from calmrl_lab.search.changes import add_items

    changed = add_items(index, store, split)
    console.emit(changed.facts, as_json, lambda: _print_facts(changed))


def remove(
    index: Path = typer.Option(..., help="Index folder."),
    item: list[str] = typer.Option(..., metavar="ID", help="Id of an item to remove; may be repeated."),
    as_json: bool = typer.Option(False, "--json", help="Print the facts of the index as JSON."),
) -> None:
    """Remove items from an index by their ids.

    Example: calmrl-lab index remove --index indexes/emoji --item 1F600
    """
    from calmrl_lab.search.changes import remove_items

    changed = remove_items(index, item)
    console.emit(changed.facts, as_json, lambda: _print_facts(changed))


def search(
    index: Path = typer.Option(..., help="Index folder (calmrl-lab index)."),
    text: str | None = typer.Option(None, help="Words to search for."),
    item: str | None = typer.Option(None, help="Item of the indexed store that is the query."),
    features: Path | None = typer.Option(None, help="Features of queries: .npy, one query per row."),
    modality: str | None = typer.Option(None, help="Modality of the query. (default: caption)"),
    k: int = typer.Option(10, "-k", "--top", min=1, help="Items to show."),
    nprobe: int | None = typer.Option(None, min=1, help="Cells of an ivf index that are searched. (default: 16)"),
    ef_search: int | None = typer.Option(None, min=1, help="Candidates kept while an hnsw index is searched. (default: 128)"),
    store: Path | None = typer.Option(None, help="Where --item is looked up. (default: the indexed store)"),
    weights: Path | None = typer.Option(None, help="Folder of encoder weights, for --text."),
    label: list[str] = typer.Option([], metavar="NAME=VALUE", help="Only items with this label; may be repeated."),
    gpus: int = typer.Option(0, min=0, help="GPUs that share a flat or ivf index."),
    as_json: bool = typer.Option(False, "--json", help="Print the items as JSON."),
) -> None:
    """Find the items of an index that answer a text, an item or features; one of the three.

    Example: calmrl-lab search --index indexes/emoji --text "hot drink"
    """
    from calmrl_lab.errors import CalmrlError
    from calmrl_lab.search.index_folder import Gallery

    gallery = Gallery.open(index, gpus)
    if sum(source is not None for source in (text, item, features)) != 1:
        raise CalmrlError("a search needs one of --text, --item and --features", hint='for example --text "hot drink"')
    asked = modality or ("caption" if "caption" in gallery.modalities else gallery.modalities[0])
    effort = _effort(gallery, {"ivf": nprobe, "hnsw": ef_search})
    vectors = gallery.embed(asked, _query(gallery, asked, text, item, features, store, weights))
    found = gallery.search(vectors, k, effort, _labels(label))
    console.emit(found.to_dict("records"), as_json, lambda: _print_found(gallery, found))
    if _by_other_means(gallery.facts):
        console.note(f"found by {_score_of(gallery.facts)}, as the index was asked to; the run itself compares pairs otherwise")


def _effort(gallery: Gallery, given: dict[str, int | None]) -> int | None:
    """The search effort that was given for the type of this index. Raises CalmrlError if one was given for another type."""
    from calmrl_lab.errors import CalmrlError

    names, own = {"ivf": "--nprobe", "hnsw": "--ef-search"}, gallery.facts["kind"]
    for kind, value in given.items():
        if value is not None and kind != own:
            hint = f"use {names[own]}" if own in names else "leave it out: a flat index is exact"
            raise CalmrlError(f"{names[kind]} is for {kind} indexes, and '{gallery.path}' is of type {own}", hint=hint)
    return given.get(own)


def _labels(texts: list[str]) -> dict[str, str]:
    """NAME=VALUE texts as a mapping. CalmrlError for another form."""
    from calmrl_lab.errors import CalmrlError

    pairs = [text.partition("=") for text in texts]
    for text, (name, equals, _) in zip(texts, pairs, strict=True):
        if not equals or not name:
            raise CalmrlError(f"--label '{text}' is not of the form name=value", hint="for example --label category=food-drink")
    return {name: value for name, _, value in pairs}


def _query(
    gallery: Gallery,
    modality: str,
    text: str | None,
    item: str | None,
    features: Path | None,
    store: Path | None,
    weights: Path | None,
) -> np.ndarray:
    if text is not None:
        return _encoded(gallery, modality, text, weights)
    if item is not None:
        from calmrl_lab.search.item_features import ItemFeatures

        return ItemFeatures(gallery, store)(modality, item)
    import numpy as np

    from calmrl_lab.errors import CalmrlError

    assert features is not None
    try:
        return np.load(features, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CalmrlError(f"features '{features}' cannot be read: {error}", hint="an array saved with numpy.save") from None


def _encoded(gallery: Gallery, modality: str, text: str, weights: Path | None) -> np.ndarray:
    from calmrl_lab.registry import known

    # Like `extract`, this command is an edge: it alone brings encoders and cached features together.
    from feature_extractors.text_queries import encode_texts

    known(modality, gallery.modalities, f"index '{gallery.path}' has no modality")
    return encode_texts(gallery.facts["encoders"][modality], modality, [text], weights)


def _score_of(facts: dict[str, Any]) -> str:
    """What the scores of the index are."""
    kind, _, modality = facts["scorer"].partition(":")
    if not facts["parts"]:
        maker = modality if kind == "cosine" and modality else f"{kind} of {', '.join(facts['modalities'])}"
        return f"cosine with the {maker}"
    by_pair = [name.removesuffix(", weighted by pair") for name, _ in facts["parts"] if name.endswith(", weighted by pair")]
    if len(by_pair) == len(facts["parts"]):
        kinds = ", ".join(dict.fromkeys(by_pair))
        return f"sum of {kinds}, weighted by pair of modalities, with what an item shows of {', '.join(facts['modalities'])}"
    words = {"likelihood-ratio": "likelihood ratio (nats)"}
    parts = [("" if w == 1 else f"{w:g} times the ") + words.get(name, name) for name, w in facts["parts"]]
    return f"{' plus '.join(parts)} with what an item shows of {', '.join(facts['modalities'])}"


def _by_other_means(facts: dict[str, Any]) -> bool:
    """Whether the index compares otherwise than its run does."""
    from calmrl_lab.scorers._names import family

    return bool(facts["run_similarity"] != family(facts["scorer"]))


def _draw_recall(gallery: Gallery) -> None:
    """recall.svg beside the recall.csv of an approximate index."""
    import pandas as pd

    from calmrl_lab.reporting.content.ann_recall import effort_figure
    from calmrl_lab.search.index_folder import PROBED, IndexFolder

    folder = IndexFolder(gallery.path)
    if folder.has(folder.RECALL):
        facts, curve = gallery.facts, pd.read_csv(io.BytesIO(folder.read_bytes(folder.RECALL)))
        figure = effort_figure(curve, facts["kind"], facts["items"], facts["recall_queries"], PROBED)
        with folder.writing():
            folder.write_bytes(folder.FIGURE, figure.svg().encode())


def _print_facts(gallery: Gallery) -> None:
    from calmrl_lab.config import SIMILARITY_WORDS

    facts = gallery.facts
    console.out.print(
        f"{facts['items']} items, {facts['kind']} index of dimension {facts['dim']}: {_score_of(facts)}"
        + (", gaps filled" if facts["calibrated"] else ""),
        soft_wrap=True,
    )
    if _by_other_means(facts):
        console.out.print(f"the run itself compares pairs by {SIMILARITY_WORDS[facts['run_similarity']]}", soft_wrap=True)
    if facts["left_out"]:
        console.out.print(f"{facts['left_out']} items show none of these and were left out")
    if facts["recall_against_exact"] is not None:
        console.out.print(
            f"finds {100 * facts['recall_against_exact']:.1f} % of the true ten nearest items; {gallery.path / 'recall.svg'} shows more effort and less",
            soft_wrap=True,
        )
    console.out.print(f"written to {gallery.path}", soft_wrap=True)


def _print_found(gallery: Gallery, found: pd.DataFrame) -> None:
    labels = [name for name in found.columns if name.startswith("label.")]
    several = found["query"].nunique() > 1
    shown = console.table()
    for heading in [
        *(["query"] if several else []),
        "rank",
        "score",
        "item",
        *(name.removeprefix("label.") for name in labels),
        "lacks",
    ]:
        shown.add_column(heading, justify="right" if heading in ("query", "rank", "score") else "left")
    for row in found.to_dict("records"):
        cells: list[Any] = [row["query"]] if several else []
        lacking = [name for name in gallery.modalities if name not in row["pattern"].split("+")]
        cells += [row["rank"], f"{row['score']:.3f}", row["id"], *(row[name] for name in labels), ", ".join(lacking)]
        shown.add_row(*map(str, cells))
    console.show(shown)
