"""Pickles of arrays, numbers, strings and containers, and of nothing else: no class of a file is ever looked up, no function of it called.

A pickle is a program. Here its instructions are read first (which of them, how much memory they claim), and then run by an unpickler that knows a
dozen names, each bound to a function of this module. Whatever else a file names, it is refused with that name.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.convert.reading.foreign_files import remedy
from calmrl_lab.store.convert.reading.reading_errors import SAVE_PLAIN

# What a pickle of plain data is made of; everything that could reach for more (persistent ids, extensions, buffers from outside) is not in it.
_REFUSED = {
    "PERSID",
    "BINPERSID",
    "EXT1",
    "EXT2",
    "EXT4",
    "INST",
    "OBJ",
    "NEXT_BUFFER",
    "READONLY_BUFFER",
}
_PUT = {"PUT", "BINPUT", "LONG_BINPUT"}
_PLAIN_KINDS = "biufSUO"
_DEEPEST = 8
_AGAIN = "write it again, or download it again"


def load_plain(path: Path, data: bytes) -> Any:
    """The object of the pickle `data`, which came from `path`: arrays, numbers, strings, bytes, None, lists, tuples, sets and dicts.

    Raises CalmrlError if it holds anything else, or claims more memory than it has bytes. Nothing of it is executed.

    >>> load_plain(Path("x.pkl"), pickle.dumps({"video0": [1.0, 2.0]}))
    {'video0': [1.0, 2.0]}
    """
    _check_instructions(path, data)
    stream = io.BytesIO(data)
    reader = _PlainUnpickler(stream, encoding="latin1")
    reader.path = path
    try:
        loaded = reader.load()
        behind = data[stream.tell() :]
    except CalmrlError:
        raise
    except RecursionError:
        raise CalmrlError(f"'{path}' cannot be read: its parts are nested too deep", hint=SAVE_PLAIN) from None
    except Exception as error:
        said = " ".join(str(error).split())[:120]
        raise CalmrlError(f"'{path}' is no pickle of plain arrays: {said}", hint=SAVE_PLAIN) from None
    if behind.strip(b"\0\n"):
        raise CalmrlError(
            f"'{path}' holds several objects one after the other, of which only the first would be read",
            hint="load them all (pickle.load until EOFError), and save them as one dict or list",
        )
    return resolved(path, loaded, len(data))


def _check_instructions(path: Path, data: bytes) -> None:
    """Reads the program without running it: no instruction that reaches outside, and none that claims more than the file has."""
    puts = 0
    try:
        for opcode, argument, position in pickletools.genops(data):
            if opcode.name in _REFUSED:
                raise _foreign(path, f"instruction {opcode.name}")
            puts += 1
            # The memo is an array as long as its highest number, and a frame is read whole.
            claim = int(argument or 0) if opcode.name in _PUT or opcode.name == "FRAME" else 0
            if claim > (len(data) - (position or 0) if opcode.name == "FRAME" else max(puts, 256)):
                raise CalmrlError(f"'{path}' is damaged: it claims more memory than it has bytes", hint=_AGAIN)
    except ValueError as error:
        raise CalmrlError(f"'{path}' is no whole pickle: {str(error)[:100]}", hint=remedy(path) or SAVE_PLAIN) from None


class _PlainUnpickler(pickle.Unpickler):
    path: Path

    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module.replace("numpy.core.", "numpy._core."), name))
        if known is None:
            raise _foreign(self.path, f"{module}.{name}")
        return known

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _foreign(self.path, "persistent id")


def _foreign(path: Path, what: str) -> CalmrlError:
    hint = SAVE_PLAIN
    if what.startswith(("torch.", "torch_")):
        hint = "it was pickled with tensors in it: save it with torch.save(...) as .pt, or .numpy() them first"
    elif what.startswith("pandas."):
        hint = "it is a pickled data frame: save it with frame.to_parquet(...) or frame.to_csv(...)"
    return CalmrlError(
        f"'{path}' holds Python objects besides arrays, numbers, strings and containers ({what[:60]}); it was not executed",
        hint=hint,
    )


class _Dtype:
    """A dtype under construction: numpy pickles its name first and its byte order afterwards."""

    def __init__(self, name: str) -> None:
        self.name, self.order = name, "|"

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, sub-array, names of fields, fields, size, alignment, flags)
        if not isinstance(state, tuple) or len(state) < 2 or any(part is not None for part in state[2:5]):
            raise ValueError("an array with named fields")
        self.order = state[1] if state[1] in ("<", ">", "|", "=") else "|"

    def made(self) -> np.dtype[Any]:
        return np.dtype(self.name if self.order == "|" else self.order + self.name)


class _Array:
    """An array under construction: its values come as bytes, or as a list if they are objects."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _Dtype):
            raise ValueError("an array whose state is none")
        self.value = _array_of(state[4], state[2].made(), state[1], "F" if state[3] else "C")


def _array_of(values: Any, dtype: np.dtype[Any], shape: Any, order: str) -> np.ndarray:
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape):
        raise ValueError("an array whose shape is none")
    count = math.prod(shape)
    if dtype.hasobject:
        if not isinstance(values, list) or len(values) != count:
            raise ValueError(f"an array of {count} objects with another number of values")
        array = np.empty(count, dtype=object)
        for position, value in enumerate(values):
            array[position] = value
        return array.reshape(shape, order="F" if order == "F" else "C")
    if isinstance(values, str):
        values = values.encode("latin1")
    if not isinstance(values, (bytes, bytearray)) or len(values) != count * dtype.itemsize:
        raise ValueError(f"an array {list(shape)} of {dtype} with another number of bytes")
    if count == 0:
        return np.empty(shape, dtype)
    return np.frombuffer(values, dtype).reshape(shape, order="F" if order == "F" else "C")


def _make_dtype(name: Any, *_: Any) -> _Dtype:
    name = name.decode("latin1") if isinstance(name, bytes) else name
    if not isinstance(name, str) or not name or name[0] not in _PLAIN_KINDS or not (name[1:].isdecimal() or name == "O"):
        raise ValueError(f"an array of {name!r}")
    if int(name[1:] or 1) > 1 << 20:
        raise ValueError("an array of texts longer than a million characters")
    return _Dtype(name)


def _make_array(*_: Any) -> _Array:
    return _Array()


def _make_scalar(dtype: Any, value: Any = b"") -> Any:
    if not isinstance(dtype, _Dtype) or dtype.made().hasobject:
        raise ValueError("a number of no type")
    return _array_of(value, dtype.made(), (), "C").item()


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    if not isinstance(dtype, _Dtype):
        raise ValueError("an array of no type")
    made = _Array()
    made.value = _array_of(bytes(buffer) if isinstance(buffer, bytearray) else buffer, dtype.made(), shape, order)
    return made


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8"):
        raise ValueError("bytes in an unknown encoding")
    return text.encode(encoding)


def _make_dict(*pairs: Any) -> dict[Any, Any]:
    # OrderedDict(pairs) and defaultdict(factory, pairs); the factory is never called.
    given = next((part for part in pairs if isinstance(part, (list, tuple, dict))), ())
    return dict(given)


def _container(kind: Callable[..., Any]) -> Callable[..., Any]:
    def make(*values: Any) -> Any:
        if len(values) > 1 or not all(isinstance(value, (list, tuple, set, dict, bytes)) for value in values):
            raise ValueError("a container of no values")
        return kind(*values)

    return make


def _factory(*_: Any) -> NoReturn:
    raise ValueError("a call of a built-in function")


_KNOWN: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _factory,
    ("numpy", "dtype"): _make_dtype,
    ("numpy._core.multiarray", "_reconstruct"): _make_array,
    ("numpy._core.multiarray", "scalar"): _make_scalar,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("collections", "OrderedDict"): _make_dict,
    ("collections", "defaultdict"): _make_dict,
    ("_codecs", "encode"): _encode,
    **{
        (module, name): _container(kind)
        for module in ("builtins", "__builtin__")
        for name, kind in (("list", list), ("tuple", tuple), ("set", set), ("frozenset", frozenset), ("dict", dict), ("bytearray", bytearray), ("bytes", bytes))
    },
    **{(module, name): _factory for module in ("builtins", "__builtin__") for name in ("int", "float", "str")},
}  # fmt: skip


# The same for torch.load(weights_only=True), which knows tensors, OrderedDict and plain containers, but neither numpy's arrays nor a defaultdict.
STAND_INS: Sequence[Any] = (
    _Array,
    _Dtype,
    *((function, f"{module}.{name}") for (module, name), function in _KNOWN.items() if not module.startswith("numpy._core")),
    *(
        (function, f"numpy.{core}.{name}")
        for (module, name), function in _KNOWN.items()
        if module.startswith("numpy._core")
        for core in (f"core.{module.rpartition('.')[2]}", f"_core.{module.rpartition('.')[2]}")
    ),
)


def resolved(path: Path, loaded: Any, size: int) -> Any:
    """What was loaded with these stand-ins from a file of `size` bytes, with arrays in their place."""
    whole = _resolved(path, loaded, {}, 0)
    if _values(whole, {}) > 100 * size + 1_000_000:
        raise CalmrlError(
            f"'{path}' is damaged: it claims more numbers than it has bytes, by naming its parts again and again", hint=_AGAIN
        )
    return whole


def _values(value: Any, counted: dict[int, int]) -> int:
    """How many values there are if every shared part is written out wherever it is named."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.size
    if not isinstance(value, (dict, list, tuple, set, frozenset, np.ndarray)):
        return 1
    if id(value) not in counted:
        parts = (
            value.values() if isinstance(value, dict) else value.ravel().tolist() if isinstance(value, np.ndarray) else value
        )
        counted[id(value)] = sum(1 if type(part) in (float, int, str) else _values(part, counted) for part in parts)
    return counted[id(value)]


def _resolved(path: Path, value: Any, seen: dict[int, Any], depth: int) -> Any:
    """`value` with finished arrays in place of those under construction; shared parts are resolved once."""
    if depth > _DEEPEST:
        raise CalmrlError(f"'{path}' nests its parts more than {_DEEPEST} deep", hint=SAVE_PLAIN)
    if isinstance(value, _Array):
        if value.value is None:
            raise CalmrlError(f"'{path}' is no pickle of plain arrays: an array has no values", hint=SAVE_PLAIN)
        value = value.value
        if value.dtype != object:
            return value
    if isinstance(value, _Dtype) or callable(value):
        raise CalmrlError(
            f"'{path}' holds Python objects besides arrays, numbers, strings and containers; it was not executed",
            hint=SAVE_PLAIN,
        )
    if not isinstance(value, (dict, list, tuple, set, frozenset, np.ndarray)):
        return value
    if id(value) not in seen:
        # The value is kept beside the result, so that no other takes its place in memory, and its id, while this runs.
        seen[id(value)] = (value, _resolved_container(path, value, seen, depth))
    return seen[id(value)][1]


def _resolved_container(path: Path, value: Any, seen: dict[int, Any], depth: int) -> Any:
    if isinstance(value, np.ndarray):
        made = np.empty(value.size, dtype=object)
        for position, entry in enumerate(value.ravel()):
            made[position] = _resolved(path, entry, seen, depth + 1)
        return made.reshape(value.shape)
    if isinstance(value, dict):
        if not all(isinstance(key, (str, int, float, bytes, tuple, type(None))) for key in value):
            raise CalmrlError(f"'{path}' holds a dict whose keys are neither texts nor numbers", hint=SAVE_PLAIN)
        return {key: _resolved(path, entry, seen, depth + 1) for key, entry in value.items()}
    entries: Sequence[Any] = [_plain_or(path, entry, seen, depth) for entry in value]
    return entries if isinstance(value, list) else type(value)(entries)


def _plain_or(path: Path, entry: Any, seen: dict[int, Any], depth: int) -> Any:
    # Most lists are long and hold numbers.
    return entry if type(entry) in (float, int, str) else _resolved(path, entry, seen, depth + 1)
