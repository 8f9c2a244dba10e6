"""A folder of results in which records, written last, carry the digests of the other files: nothing in it can change unnoticed."""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from calmrl_lab.errors import CalmrlError, WorkFailedError
from calmrl_lab.runtime.atomic_files import remove_temporaries, write_atomically, write_together
from calmrl_lab.runtime.atomic_folders import replaced_folder, writing_errors
from calmrl_lab.runtime.locks import only_writer

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


class ArtifactFolder:
    """A folder of results: named files, each written whole or not at all, and records with their digests.

    A record is a JSON file with the SHA-256 digests of the files it covers (`files`) and a checksum of itself. A file is read only
    if it is what its record says. While a record does not exist yet, its files are read unchecked by the process that writes them.

    Subclasses name their files, say which record covers which file, and how to make a damaged or absent file anew (`hint`).
    """

    kind: ClassVar[str] = "folder"
    RECORD: ClassVar[str] = "record.json"

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.path == self.path

    def __hash__(self) -> int:
        return hash(self.path)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    @property
    def name(self) -> str:
        return self.path.name

    def record_of(self, name: str) -> str:
        """The record that covers the file `name`."""
        return self.RECORD

    def hint(self, name: str) -> str:
        """What to do where the file `name` is absent or damaged."""
        return f"make the {self.kind} again"

    @classmethod
    @contextmanager
    def replacing(cls, path: Path | str) -> Iterator[Self]:
        """A new folder to fill, beside `path`, which takes the place of `path` when the block ends well and is removed when it does not.

        A reader finds the old folder or the new one. Raises CalmrlError if `path` holds what this kind of folder does not, or if another
        process writes into it; WorkFailedError if it cannot be written.
        """
        with replaced_folder(Path(path), cls.refuse_foreign) as partial:
            yield cls(partial)

    @classmethod
    def refuse_foreign(cls, path: Path) -> None:
        """CalmrlError if the folder `path` holds something that this kind of folder does not: it would be lost."""
        for name in sorted(entry.name for entry in path.iterdir()):
            if not name.startswith(".") and not cls.knows(name):
                raise CalmrlError(
                    f"'{path}' holds '{name}', which belongs to no {cls.kind}, so it is not replaced",
                    hint="move that away, or choose another folder",
                )

    @classmethod
    def knows(cls, name: str) -> bool:
        """Whether this kind of folder, of this or an earlier version, has a file or folder of this name."""
        names = {value for key, value in inspect.getmembers(cls) if key.isupper() and isinstance(value, str)}
        return name in names or name.endswith((".parquet", ".safetensors"))

    @contextmanager
    def writing(self) -> Iterator[Self]:
        """This folder with the lock on it held, and what killed writers left removed. Raises CalmrlError, which names the folder, if another
        process writes into it, and WorkFailedError if it may not be written."""
        if not os.access(self.path, os.W_OK):
            raise WorkFailedError(
                f"{self.kind} '{self.path}' cannot be written: you may not write into it, or its disk is read-only"
            )
        with only_writer(self.path):
            remove_temporaries(self.path)
            yield self

    # Bytes

    def has(self, name: str) -> bool:
        """Whether the file `name` exists and its record covers it."""
        recorded = self.digests(self.record_of(name))
        return (self.path / name).is_file() and (recorded is None or name in recorded)

    def whole(self, name: str) -> bool:
        """Whether the file `name` is there, and is what its record covers."""
        try:
            self.read_bytes(name)
        except CalmrlError:
            return False
        return self.has(name)

    def read_bytes(self, name: str) -> bytes:
        """The file `name`. Raises CalmrlError if it is absent, or is not what its record covers."""
        recorded = self.digests(self.record_of(name))
        if recorded is not None and name not in recorded:
            raise self.absent(name)
        data = self._read(name)
        if recorded is not None and digest(data) != recorded[name]:
            raise self.damaged(name, f"its digest is not the one in {self.record_of(name)}")
        return data

    def checked(self, name: str) -> Path:
        """The path of the file `name`, for what is too large for `read_bytes`. Raises CalmrlError as that does."""
        recorded = self.digests(self.record_of(name))
        if (recorded is not None and name not in recorded) or not (self.path / name).is_file():
            raise self.absent(name)
        if recorded is not None and file_digest(self.path / name) != recorded[name]:
            raise self.damaged(name, f"its digest is not the one in {self.record_of(name)}")
        return self.path / name

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write the file `name` whole; its record covers it once it is written."""
        write_atomically(self.path / name, data)

    def append(self, name: str, line: str) -> None:
        """Add one line to a log."""
        with writing_errors(self.path / name), open(self.path / name, "a", encoding="utf-8") as file:
            file.write(line.rstrip("\n") + "\n")

    def _read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise self.absent(name) from None
        except OSError as error:
            raise WorkFailedError(f"'{self.path / name}' cannot be read: {error.strerror or error}") from None

    # Records

    def digests(self, record: str) -> dict[str, str] | None:
        """Digest by name of the files that `record` covers; None if there is no such record."""
        values = self.read_record(record)
        return None if values is None else values["files"]

    def read_record(self, record: str) -> dict[str, Any] | None:
        """The values of a record, its digests (`files`) included; None if there is none. Raises CalmrlError if it is damaged."""
        if not (self.path / record).is_file():
            return None
        values = self._mapping(record, self._read(record))
        found = values.pop("checksum", None)
        files = values.get("files")
        if found != _checksum(values) or not isinstance(files, dict):
            raise self.damaged(record, "its checksum is not that of its content")
        return values

    def write_record(self, record: str, values: Mapping[str, Any], files: Mapping[str, bytes] | None = None) -> None:
        """Write `files` and the record that covers them, and for what `values["files"]` names already, all of them whole first."""
        files = files or {}
        digests = {**values.get("files", {}), **{name: digest(data) for name, data in files.items()}}
        content = {**values, "files": digests}
        content = {**content, "checksum": _checksum(content)}
        places = {self.path / name: data for name, data in files.items()}
        write_together({**places, self.path / record: _json_bytes(content)})

    # Kinds of files

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """A JSON file without digests."""
        self.write_bytes(name, _json_bytes(values))

    def read_json(self, name: str) -> dict[str, Any]:
        """The mapping in a JSON file. Raises CalmrlError if it is absent or damaged."""
        return self._mapping(name, self.read_bytes(name))

    def _mapping(self, name: str, data: bytes) -> dict[str, Any]:
        try:
            return dict(json.loads(data))
        except (ValueError, TypeError, RecursionError) as error:
            raise self.damaged(name, str(error)) from None

    def write_tensors(self, name: str, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
        """A safetensors file of arrays, with text metadata."""
        import numpy as np
        from safetensors.numpy import save

        data = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
        self.write_bytes(name, save(data, metadata=dict(metadata)))

    def read_tensors(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Arrays and metadata of a safetensors file. Raises CalmrlError if it is absent or damaged."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        data = self.read_bytes(name)
        try:
            tensors = load(data)
            length = int.from_bytes(data[:8], "little")
            metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
        except (SafetensorError, ValueError, KeyError, AttributeError) as error:
            raise self.damaged(name, str(error)) from None
        return tensors, metadata

    def read_frame(self, name: str, columns: list[str] | None = None) -> pd.DataFrame:
        """A Parquet table, or some of its columns. Raises CalmrlError if it is absent or damaged."""
        import pandas as pd

        data = self.read_bytes(name)
        try:
            return pd.read_parquet(io.BytesIO(data), columns=columns)
        except Exception as error:  # Arrow raises many kinds for a damaged file
            raise self.damaged(name, str(error).splitlines()[0]) from None

    # Errors

    def absent(self, name: str) -> CalmrlError:
        return CalmrlError(f"{self.kind} '{self.path}' has no {name}", hint=self.hint(name))

    def damaged(self, name: str, how: str) -> CalmrlError:
        return CalmrlError(f"'{self.path / name}' is damaged: {how}", hint=self.hint(name))


def digest(data: bytes) -> str:
    """The SHA-256 digest of a file, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """The SHA-256 digest of a file that need not fit into memory. Raises WorkFailedError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WorkFailedError(f"'{path}' cannot be read: {error.strerror or error}") from None


def parquet_bytes(frame: pd.DataFrame) -> bytes:
    """A table as a Parquet file."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _json_bytes(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False, sort_keys=False) + "\n").encode("utf-8", "backslashreplace")


def _checksum(values: Mapping[str, Any]) -> str:
    return digest(json.dumps(json.loads(json.dumps(values)), sort_keys=True, separators=(",", ":")).encode())
