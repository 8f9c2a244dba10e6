"""What libraries say about damaged and foreign files, as one sentence; and whether there is memory for what a file claims to hold."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from pickle import UnpicklingError

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.convert.reading.foreign_files import remedy

SAVE_PLAIN = (
    "save it again as plain arrays: np.save, np.savez (ids as strings), torch.save of a tensor or a dict of tensors, or a table"
)


@contextmanager
def reading_errors(path: Path) -> Iterator[None]:
    """Turns whatever a library says about a damaged or foreign file into one sentence."""
    try:
        yield
    except CalmrlError:
        raise
    except UnpicklingError:
        raise CalmrlError(
            f"'{path}' holds Python objects or code besides tensors; it was not executed", hint=remedy(path) or SAVE_PLAIN
        ) from None
    except MemoryError:
        raise CalmrlError(
            f"'{path}' needs more memory than there is", hint="the file is damaged, or import it in parts"
        ) from None
    except RecursionError:
        raise CalmrlError(f"'{path}' cannot be read: its parts are nested too deep", hint=SAVE_PLAIN) from None
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        RuntimeError,
        TypeError,
        IndexError,
        AttributeError,
        OverflowError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        if any(word in str(error).lower() for word in ("pickle", "python objects")):
            raise CalmrlError(
                f"'{path}' holds Python objects, which could be code; it was not loaded", hint=SAVE_PLAIN
            ) from None
        said = str(error).strip().split("\n")[0][:120] or type(error).__name__
        kind = path.suffix.lstrip(".") or ("a folder of features" if path.is_dir() else "a table")
        raise CalmrlError(
            f"'{path}' cannot be read as {kind}: {said}", hint=remedy(path) or "write it again, or download it again"
        ) from None


def check_memory(path: Path, bytes_needed: int) -> None:
    """CalmrlError if `path` claims to hold more numbers than fit into memory; a damaged or hostile header is found so before it does harm."""
    there = _memory()
    if bytes_needed > there:
        raise CalmrlError(
            f"'{path}' says that it holds {bytes_needed / 1e9:.1f} GB of numbers that must be read at once; there are {there / 1e9:.1f} GB of memory",
            hint="if that is true, save them uncompressed as .npy, which is read where it lies; otherwise the file is damaged",
        )


@cache
def _memory() -> int:
    """Bytes of memory of the machine, or of the container that this runs in."""
    total = 1 << 34
    with suppress(ValueError, OSError, AttributeError):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total
