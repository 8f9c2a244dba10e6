"""WebDataset tars: the files of a sample share a name up to its first dot (000001.npy, 000001.json), a shard is a tar, compressed by gzip or not."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.convert.formats import formats
from calmrl_lab.store.convert.formats._folders import files_in, is_junk
from calmrl_lab.store.convert.reading.content import Content, Field, content_of, kind_of
from calmrl_lab.store.convert.reading.foreign_files import remedy
from calmrl_lab.store.convert.reading.gzip_files import open_plain
from calmrl_lab.store.convert.reading.mapped_arrays import npy_header
from calmrl_lab.store.convert.reading.plain_pickle import load_plain
from calmrl_lab.store.convert.reading.reading_errors import reading_errors


@formats.register("webdataset")
class WebDataset:
    """WebDataset (.tar, or a folder of them): ID.npy per sample, or ID.vision.npy and ID.text.npy"""

    endings: ClassVar[tuple[str, ...]] = (".tar", ".tar.gz", ".tgz")

    @staticmethod
    def is_folder(path: Path) -> bool:
        return next(files_in(path, *WebDataset.endings), None) is not None

    @staticmethod
    def read(path: Path) -> Content:
        fields: dict[str, Field] = {}
        notes = set()
        folders = set()
        for part in files_in(path, *WebDataset.endings) if path.is_dir() else [path]:
            for key, ending, data in _members(part):
                folders.add(key.rpartition("/")[0])
                array = _decoded(part, f"{key}.{ending}", ending, data)
                if array is None:
                    notes.add(ending)
                    continue
                # 000001.vision.npy is the member `vision` of the sample 000001.
                inner = ending.rpartition(".")[0]
                name = f"{key}/{inner}" if inner else key
                if name in fields:
                    raise CalmrlError(
                        f"'{part}' holds the sample '{name}' a second time",
                        hint="every sample of a data set has a name of its own",
                    )
                fields[name] = Field.of(name, array)
        if not fields:
            raise CalmrlError(
                f"'{path}' holds no features: its samples have {', '.join(sorted(notes)) or 'no files'}",
                hint="features are read from .npy, .npz, .pth and .json",
            )
        if len(folders) == 1 and folders != {""}:
            # The folder that all samples lie in is no part of their names.
            short = {name: name.removeprefix(f"{next(iter(folders))}/") for name in fields}
            fields = {short[name]: replace(field, name=short[name]) for name, field in fields.items()}
        # Keys may hold folders; only samples of several members are groups.
        return Content(path, fields, nested=any("/" in name for name in fields) and _several(fields))


def _several(fields: dict[str, Field]) -> bool:
    groups = {name.rpartition("/")[0] for name in fields}
    return len(groups) > 1 or len(fields) == 1 or "" not in groups


def _members(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """(key, ending, bytes) of the ordinary files of a tar. Nothing is written to the disk, and links are not followed."""
    with reading_errors(path), open_plain(path) as file:
        # Compressed, a member cannot claim more than gzip unpacks.
        size = path.stat().st_size if file.seekable() else float("inf")
        try:
            with tarfile.open(fileobj=file, mode="r:" if file.seekable() else "r|") as archive:
                for member in archive:
                    folder, _, name = member.name.rpartition("/")
                    if not member.isfile() or is_junk(name) or "." not in name:
                        continue
                    if member.size > size:
                        raise CalmrlError(
                            f"'{path}' is damaged: '{member.name}' claims {member.size} bytes", hint="download the file again"
                        )
                    stem, _, ending = name.partition(".")
                    opened = archive.extractfile(member)
                    if opened is not None:
                        yield (f"{folder}/{stem}" if folder not in ("", ".") else stem), ending.lower(), opened.read()
        except tarfile.TarError as error:
            raise CalmrlError(
                f"'{path}' cannot be read as tar: {str(error)[:100]}",
                hint=remedy(path) or "write it again, or download it again",
            ) from None


def _decoded(path: Path, name: str, ending: str, data: bytes) -> np.ndarray | None:
    """The array of a member; None for members that hold no features (images, texts)."""
    kind = ending.rpartition(".")[2]
    with reading_errors(path):
        if kind == "npy":
            opened = io.BytesIO(data)
            shape, _, dtype = npy_header(opened)
            if dtype.hasobject:
                return _only(path, name, load_plain(path, opened.read()))
            if int(np.prod(shape, dtype=np.float64)) * dtype.itemsize > len(data):
                raise CalmrlError(
                    f"'{path}' is damaged: '{name}' claims more numbers than it has bytes", hint="download the file again"
                )
            return np.load(io.BytesIO(data), allow_pickle=False)
        if kind in ("pkl", "pyd", "pickle"):
            return _only(path, name, load_plain(path, data))
        if kind in ("pth", "pt", "ten"):
            import torch

            return _only(path, name, torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
        if kind == "json":
            document = json.loads(data)
            found = [v for v in document.values() if isinstance(v, list)] if isinstance(document, dict) else [document]
            arrays = [array for array in map(np.asarray, found) if kind_of(array.dtype) == "numbers" and array.ndim]
            return arrays[0].astype(np.float64) if len(arrays) == 1 else None
    return None


def _only(path: Path, name: str, loaded: Any) -> np.ndarray | None:
    fields = content_of(path, loaded).fields
    arrays = [f for f in fields.values() if f.kind == "numbers" and f.shape]
    return np.asarray(arrays[0].load()) if len(arrays) == 1 else None
