"""What `calmrl-lab store export` wrote (HDF5, npz, Parquet) back to the same store, digest and all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.convert.export import HEADS_FILE, ITEMS_FILE, TEXTS, TEXTS_FILE
from calmrl_lab.store.convert.reading.reading_errors import reading_errors
from calmrl_lab.store.schema import RESERVED, parse_attributes
from calmrl_lab.store.writer import write_store

AGAIN = "export the store again with calmrl-lab store export"


def restore(source: str | Path, out: str | Path, overwrite: bool = False) -> Path:
    """Write the store that was exported to `source` at `out`, and return that path.

    Raises CalmrlError if `source` is no export of a store, is damaged, or its parts contradict each other.
    """
    source = Path(source)
    with reading_errors(source):
        if not source.exists():
            raise CalmrlError(f"'{source}' does not exist", hint="look at the path")
    if source.is_dir():
        return _from_parquet(source, out, overwrite)
    if source.suffix.lower() in (".h5", ".hdf5"):
        return _from_hdf5(source, out, overwrite)
    if source.suffix.lower() == ".npz":
        return _from_npz(source, out, overwrite)
    raise CalmrlError(f"'{source}' is not an exported store", hint=_HINT)


def nothing_beside(source: Path, *others: object) -> None:
    """CalmrlError if anything else was asked for together with restoring: a whole store takes no further parts."""
    if any(others):
        raise CalmrlError(
            f"'{source}' is restored as a whole, so --modality, --ids, --mask and --table have no place beside it",
            hint="to import it as a file of features, name it as --modality NAME=FILE:KEY",
        )


def _from_hdf5(source: Path, out: str | Path, overwrite: bool) -> Path:
    import h5py

    with reading_errors(source), h5py.File(source, "r") as file:
        texts = {name: file.attrs[name] for name in TEXTS if name in file.attrs}
        arrays: dict[str, Any] = {}

        def visit(name: str, node: Any) -> None:
            if isinstance(node, h5py.Dataset) and not node.external and not node.is_virtual:
                strings = h5py.check_string_dtype(node.dtype)
                # Features stay on the disk and are copied in chunks.
                arrays[name] = node.asstr()[:].tolist() if strings else node if name.startswith("features/") else node[()]

        file.visititems(visit)
        return _write(source, out, overwrite, texts, arrays)


def _from_npz(source: Path, out: str | Path, overwrite: bool) -> Path:
    with reading_errors(source), np.load(source, allow_pickle=False) as archive:
        texts = {name: str(archive[name]) for name in TEXTS if name in archive.files}
        return _write(source, out, overwrite, texts, {name: archive[name] for name in archive.files if name not in texts})


def _from_parquet(source: Path, out: str | Path, overwrite: bool) -> Path:
    import pyarrow.parquet as pq
    from safetensors.numpy import load_file

    if not (source / TEXTS_FILE).is_file() or not (source / ITEMS_FILE).is_file():
        raise CalmrlError(f"'{source}' is not an exported store: it has no {TEXTS_FILE} and {ITEMS_FILE}", hint=_HINT)
    with reading_errors(source / TEXTS_FILE):
        texts = {name: json.dumps(part) for name, part in json.loads((source / TEXTS_FILE).read_text("utf-8")).items()}
    with reading_errors(source / ITEMS_FILE):
        table = pq.read_table(source / ITEMS_FILE)
    arrays: dict[str, Any] = {name: table[name].to_pylist() for name in table.column_names if not name.startswith("reason/")}
    names = [spec.name for spec in _specs(source, texts)]
    if "ids" not in arrays or any(f"reason/{name}" not in table.column_names for name in names):
        raise CalmrlError(f"'{source / ITEMS_FILE}' lacks the ids or the reasons of a modality", hint=AGAIN)
    arrays["reason"] = np.stack([table[f"reason/{name}"].to_numpy() for name in names], axis=1)
    position = {item: number for number, item in enumerate(arrays["ids"])}
    for name in names:
        path = source / "features" / f"{name}.parquet"
        with reading_errors(path):
            owners = [position[item] for item in pq.read_table(path, columns=["id"])["id"].to_pylist()]
        if owners != sorted(owners):
            raise CalmrlError(f"'{path}' does not list its rows in the order of the items", hint=AGAIN)
        arrays[f"offsets/{name}"] = np.searchsorted(owners, np.arange(len(position) + 1)).astype(np.int64)
        arrays[f"features/{name}"] = _parquet_blocks(path)
    if (source / HEADS_FILE).is_file():
        with reading_errors(source / HEADS_FILE):
            arrays |= {f"heads/{name}": head for name, head in load_file(source / HEADS_FILE).items()}
    return _write(source, out, overwrite, texts, arrays)


def _parquet_blocks(path: Path) -> Iterator[np.ndarray]:
    import pyarrow.parquet as pq

    with reading_errors(path), pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            lists = file.read_row_group(group, columns=["features"])["features"].combine_chunks()
            yield lists.flatten().to_numpy(zero_copy_only=False).reshape(len(lists), -1)


def _specs(source: Path, texts: Mapping[str, str]) -> tuple[Any, ...]:
    if "attributes" not in texts:
        raise CalmrlError(f"'{source}' is not an exported store: it has no attributes", hint=_HINT)
    try:
        return parse_attributes(json.loads(texts["attributes"]), str(source))
    except ValueError:
        raise CalmrlError(f"'{source}': its attributes are not JSON", hint=AGAIN) from None


def _write(source: Path, out: str | Path, overwrite: bool, texts: Mapping[str, str], arrays: Mapping[str, Any]) -> Path:
    specs = _specs(source, texts)
    attributes = json.loads(texts["attributes"])

    def part(name: str) -> Any:
        if name not in arrays:
            raise CalmrlError(f"'{source}' is damaged: it lacks '{name}'", hint=AGAIN)
        return arrays[name]

    def members(group: str) -> dict[str, Any]:
        return {name.removeprefix(f"{group}/"): array for name, array in arrays.items() if name.startswith(f"{group}/")}

    return write_store(
        out,
        dataset=attributes["dataset"],
        modalities=specs,
        ids=part("ids"),
        split=part("split"),
        group=part("group"),
        labels=members("label"),
        features={spec.name: part(f"features/{spec.name}") for spec in specs},
        offsets={spec.name: part(f"offsets/{spec.name}") for spec in specs},
        reason=part("reason"),
        licence=attributes["licence"],
        attribution=attributes.get("attribution", ""),
        provenance=json.loads(texts.get("provenance", "{}")),
        heads=members("heads"),
        failures=json.loads(texts.get("failures", "[]")),
        attributes={name: value for name, value in attributes.items() if name not in RESERVED},
        overwrite=overwrite,
    )


_HINT = "single files of features are imported as --modality NAME=FILE"
