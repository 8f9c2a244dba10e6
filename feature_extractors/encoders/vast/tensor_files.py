"""Files of tensors read without running code: PyTorch's own format and safetensors, memory-mapped, whole or refused in one sentence."""

from __future__ import annotations

import ctypes
import mmap
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calmrl_lab.errors import CalmrlError
from feature_extractors.encoders.vast.weights_folder import LAYOUT, shards_of

if TYPE_CHECKING:
    import torch

_AGAIN = "download the file again and compare its size with the published one"
_WRAPPERS = ("model", "state_dict", "model_state_dict", "module")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The state dict of a file (and of the other shards beside it), memory-mapped, with no code run.

    Raises CalmrlError, one sentence each, for a missing, empty, truncated or foreign file and for a pickle that holds code.
    """
    tensors: dict[str, torch.Tensor] = {}
    for shard in shards_of(path):
        tensors |= _read_one(shard)
    return tensors


class MappedFiles:
    """Where in memory some files are mapped, so that pages that were read once can be given back to the system (Linux; elsewhere nothing is)."""

    def __init__(self, paths: Sequence[Path]) -> None:
        names = {str(path.resolve()) for path in paths}
        self._ranges: list[tuple[int, int]] = []
        with suppress(OSError):
            for line in Path("/proc/self/maps").read_text().splitlines():
                place, *_, name = line.split(maxsplit=5)
                if name in names:
                    begin, end = place.split("-")
                    self._ranges.append((int(begin, 16), int(end, 16)))

    def release(self, tensor: torch.Tensor) -> None:
        """Give back the memory of a mapped tensor that nobody has written to; it is read from the file again when it is needed."""
        page = mmap.PAGESIZE
        begin = -(-tensor.data_ptr() // page) * page
        end = (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // page * page
        if end > begin and any(low <= begin and end <= high for low, high in self._ranges):
            ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)


def _read_one(path: Path) -> dict[str, torch.Tensor]:
    import torch

    if not path.is_file():
        raise CalmrlError(f"the checkpoint '{path}' does not exist", hint=LAYOUT)
    size = path.stat().st_size
    if size == 0:
        raise CalmrlError(f"the checkpoint '{path}' is empty", hint=_AGAIN)
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise CalmrlError(f"the checkpoint '{path}' cannot be read: {(error.strerror or 'input error').lower()}") from None
    if path.suffix == ".safetensors":
        return _read_safetensors(path, size)
    if start[:2] == b"PK" and not zipfile.is_zipfile(path):
        raise CalmrlError(
            f"the checkpoint '{path}' is truncated: its table of contents is missing after {size} bytes", hint=_AGAIN
        )
    if start.lstrip()[:1] in (b"<", b"{") or start.startswith(b"version https://git-lfs"):
        raise CalmrlError(
            f"'{path}' is a text file ({size} bytes), not a checkpoint; downloads that failed look like this", hint=_AGAIN
        )
    try:
        # Files of before PyTorch 1.6 are plain pickles and cannot be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=start[:2] == b"PK")
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
        what = f"it wants to run '{named.group(1)}'" if named else "it holds more than tensors"
        raise CalmrlError(
            f"'{path}' is refused because {what}, and reading it could execute code",
            hint="save its state_dict alone (torch.save(model.state_dict(), FILE)) on a machine you trust with it",
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:160]
        raise CalmrlError(f"the checkpoint '{path}' ({size} bytes) cannot be read: {reason}", hint=_AGAIN) from None
    return _state_dict(content, path)


def _read_safetensors(path: Path, size: int) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            # save_model keeps one name of tensors that are shared, and says which other names it dropped.
            shared = {name: kept for name, kept in (file.metadata() or {}).items() if name not in tensors and kept in tensors}
            return tensors | {name: tensors[kept] for name, kept in shared.items()}
    except SafetensorError as error:
        raise CalmrlError(
            f"the checkpoint '{path}' ({size} bytes) is truncated or no safetensors file: {error}", hint=_AGAIN
        ) from None


def _state_dict(content: object, path: Path) -> dict[str, torch.Tensor]:
    import torch

    if isinstance(content, Mapping):
        content = next((content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)), content)
    if not isinstance(content, Mapping) or not content:
        raise CalmrlError(f"'{path}' holds {type(content).__name__}, not a state dict", hint=LAYOUT)
    tensors = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    strays = [str(key) for key, value in content.items() if not isinstance(value, torch.Tensor) and not _is_note(value)]
    if strays or not tensors:
        stray = strays[0] if strays else str(next(iter(content)))
        raise CalmrlError(f"'{path}' is no state dict: its entry '{stray}' is no tensor", hint=LAYOUT)
    return tensors


def _is_note(value: Any) -> bool:
    """A number or a text beside the tensors: the step, the version of a library."""
    return isinstance(value, int | float | str | None)
