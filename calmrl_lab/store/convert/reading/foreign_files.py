"""Files that are not read, or are not what their ending says: what they are by their first bytes, and what to do with them."""

from __future__ import annotations

import os
from pathlib import Path

from calmrl_lab.store.convert.reading.gzip_files import GZIPPED

# Endings of files that are not read -> what to do.
_ENDINGS = {
    (".gz", ".bz2", ".xz", ".zst", ".lz4"): "unpack it first (gunzip FILE, tar xf FILE), and import what comes out",
    (".zip", ".rar", ".7z"): "unpack it first, and import the folder or the file in it",
    (".xlsx", ".xls", ".ods"): "save it as CSV UTF-8 in the spreadsheet",
    (".joblib",): "joblib's files can hold code: load it where you trust it, and np.savez(path, features=..., ids=...)",
    (
        ".mdb",
        ".lmdb",
    ): "read its records with the package lmdb, and save them as one ID.npy for each, or np.savez(path, features=..., ids=...)",
    (
        ".vec",
        ".bin",
        ".idx",
        ".raw",
        ".dat",
        ".f32",
        ".fvecs",
        ".bvecs",
    ): "load it with the tool that wrote it, and np.savez(path, features=..., ids=...)",
    (".rds", ".rdata", ".rda"): "write it from R with write.csv or arrow::write_parquet",
    (".tfrecord", ".tfrecords"): "read it with TensorFlow, and np.savez(path, features=..., ids=...)",
    (".db", ".sqlite", ".sqlite3"): "export the table as CSV or Parquet",
    (".avro", ".orc"): "convert it to Parquet",
    (".index", ".faiss"): "index.reconstruct_n(0, index.ntotal) gives the vectors; np.savez(path, features=..., ids=...)",
}
# First bytes -> what such a file is, and the endings under which it is read.
_BEGINNINGS: tuple[tuple[bytes, str, tuple[str, ...]], ...] = (
    (b"\x93NUMPY", "an array of NumPy", (".npy",)),
    (b"PK\x03\x04", "a zip archive, as torch.save (.pt) and np.savez (.npz) write", (".npz", ".pt", ".pth", ".bin")),
    (b"\x89HDF\r\n", "an HDF5 file", (".h5", ".hdf5", ".hdf", ".he5", ".mat")),
    (b"PAR1", "a Parquet file", (".parquet", ".pq")),
    (b"ARROW1", "an Arrow file", (".feather", ".arrow")),
    (b"MATLAB", "a MATLAB file", (".mat",)),
    (b"\x80\x02", "a pickle", (".pkl", ".pickle", ".p", ".pt", ".pth")),
    (b"\x80\x03", "a pickle", (".pkl", ".pickle", ".p")),
    (b"\x80\x04", "a pickle", (".pkl", ".pickle", ".p")),
    (b"\x80\x05", "a pickle", (".pkl", ".pickle", ".p")),
)
_DOWNLOADS = (b"<!doctype", b"<html", b"<?xml")


def remedy(path: Path) -> str | None:
    """What to do with a file or folder that is not read: by what it is, else by its ending; None if neither says anything."""
    if os.path.isdir(path):  # False for what may not be looked at
        if os.path.isfile(path / "data.mdb"):
            return next(do for endings, do in _ENDINGS.items() if ".mdb" in endings)
        if any(os.path.isfile(path / name) for name in ("zarr.json", ".zarray", ".zgroup")):
            return "it is a Zarr array or group: np.save(path, zarr.open(FOLDER)[:]), or calmrl-lab store merge if it is a feature store"
        return None
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return None
    ending = path.suffix.lower()
    compressed = path.name.lower().endswith(GZIPPED)
    by_ending = next((do for endings, do in _ENDINGS.items() if ending in endings and not compressed), None)
    return _no_download(start) or by_ending or (None if compressed else _by_beginning(start, ending))


def _no_download(start: bytes) -> str | None:
    """What to do with a file that is none, but what a download that failed leaves."""
    if not start:
        return "it is empty: write it again, or download it again"
    if start.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer and not the file: git lfs pull"
    if start.lstrip().lower().startswith(_DOWNLOADS):
        return "it is a web page and not the file: download it again"
    return None


def _by_beginning(start: bytes, ending: str) -> str | None:
    """What to do with a file that is something else than its ending says."""
    if start.startswith(b"\x1f\x8b"):
        return "it is compressed: gunzip it first"
    for beginning, what, endings in _BEGINNINGS:
        if start.startswith(beginning) and ending not in endings:
            return f"it is {what}: give it the ending {' or '.join(endings[:2])}"
    return None
