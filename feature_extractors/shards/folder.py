"""The folder of finished parts beside a store in the making: locked by one run, bound to one plan, resumed where it stopped."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from calmrl_lab.errors import CalmrlError
from calmrl_lab.runtime.atomic_folders import writing_errors

# Raised when parts of an earlier version can no longer be joined.
PART_FORMAT = "2"
PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class Plan:
    """What parts depend on: two runs may share parts only if everything here is equal.

    `settings`: name -> value, as shown to the user when they differ. `items`: (id, digest of what the manifest says of it).
    """

    settings: Mapping[str, str]
    items: Sequence[tuple[str, str]]

    def difference(self, before: Plan) -> str | None:
        """What was another thing `before`, in words; None if nothing was."""
        for name in dict.fromkeys([*before.settings, *self.settings]):
            old, new = before.settings.get(name), self.settings.get(name)
            if old != new:
                return f"{name} was '{old}', is '{new}'"
        if list(before.items) == list(self.items):
            return None
        old_items, new_items = dict(before.items), dict(self.items)
        for name, digest in self.items:
            if name not in old_items:
                return f"the manifest was of {len(old_items)} items, is of {len(new_items)}; item {name!r} is new"
            if old_items[name] != digest:
                return f"the manifest was another one: item {name!r} has changed"
        gone = next((name for name in old_items if name not in new_items), None)
        if gone is not None:
            return f"the manifest was of {len(old_items)} items, is of {len(new_items)}; item {gone!r} is gone"
        return "the manifest was in another order"


class PartsFolder:
    """The folder `<store>.parts`, while this run holds its lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "workers.log"

    def part(self, number: int) -> Path:
        return self.folder / f"{number:06d}.part"

    def plan(self) -> Plan | None:
        """The plan of the parts that are there; None before the first run."""
        try:
            read = json.loads((self.folder / PLAN_FILE).read_text(encoding="utf-8"))
            return Plan(read["settings"], [(name, digest) for name, digest in read["items"]])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            raise CalmrlError(
                f"'{self.folder / PLAN_FILE}' is damaged, so nobody knows what the parts beside it are",
                hint="remove that folder to start again",
            ) from None

    def claim(self, plan: Plan) -> None:
        """Go on with the parts that are there, or begin. CalmrlError naming the difference if they belong to another plan."""
        for left in self.folder.glob(".*.tmp"):
            left.unlink(missing_ok=True)  # of a process that was killed while writing
        before = self.plan()
        if before is None:
            _write_whole(self.folder / PLAN_FILE, {"settings": dict(plan.settings), "items": list(plan.items)})
            return
        difference = plan.difference(before)
        if difference is not None:
            raise CalmrlError(
                f"'{self.folder}' holds parts of another extraction: {difference}",
                hint="choose another --out, or remove that folder to start again",
            )

    def remove(self) -> None:
        """Everything, the plan last: without a plan a folder is empty."""
        for entry in sorted(self.folder.iterdir(), key=lambda path: path.name == PLAN_FILE):
            entry.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def parts_folder(out: Path) -> Path:
    """Where the parts of the store `out` are while it is being made."""
    return out.with_name(out.name + ".parts")


@contextmanager
def locked_parts(out: Path) -> Iterator[PartsFolder]:
    """The folder of finished parts of the store `out`, locked against other runs. Nothing is left behind if nothing was recorded."""
    folder = parts_folder(out)
    lock_path = out.with_name(out.name + ".lock")
    with writing_errors(folder):
        created = [path for path in folder.parents if not path.exists()]
        folder.parent.mkdir(parents=True, exist_ok=True)
    lock = None
    try:
        with writing_errors(folder):
            lock = _locked(lock_path, out)
            folder.mkdir(exist_ok=True)
        yield PartsFolder(folder)
    finally:
        if lock is not None:
            # A plan without parts is worth nothing; a log is, even without parts.
            if folder.is_dir() and all(entry.name == PLAN_FILE for entry in folder.iterdir()):
                (folder / PLAN_FILE).unlink(missing_ok=True)
                folder.rmdir()
            lock_path.unlink(missing_ok=True)
            os.close(lock)
        for path in created:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def _locked(path: Path, out: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
            os.close(handle)
            raise CalmrlError(
                f"another extraction is writing '{out}'{f' ({holder})' if holder else ''}",
                hint="wait for it, or choose another --out",
            ) from None
        except OSError as error:
            os.close(handle)
            path.unlink(missing_ok=True)
            raise CalmrlError(
                f"'{path}' cannot be locked: {os.strerror(error.errno or 0).lower()}",
                hint="two runs could spoil each other there; choose --out on a disk that has locks, and copy the store afterwards",
            ) from None
        try:
            same = os.path.samestat(os.fstat(handle), os.stat(path))
        except FileNotFoundError:
            same = False
        if same:
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
            return handle
        # Whoever held the lock before removed the file after we had opened it.
        os.close(handle)


def _write_whole(path: Path, content: object) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with writing_errors(path):
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                json.dump(content, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
