"""Tensors: safetensors, and what torch.save wrote."""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.convert.formats import formats
from calmrl_lab.store.convert.formats._folders import no_folder
from calmrl_lab.store.convert.reading.content import Content, Field, Kind, as_array, content_of
from calmrl_lab.store.convert.reading.foreign_files import remedy
from calmrl_lab.store.convert.reading.plain_pickle import STAND_INS, resolved


@formats.register("safetensors")
class Safetensors:
    """safetensors (.safetensors): tensors beside each other (ids as a JSON list in the metadata), or one tensor an item"""

    endings: ClassVar[tuple[str, ...]] = (".safetensors",)
    is_folder = staticmethod(no_folder)

    @staticmethod
    def read(path: Path) -> Content:
        from safetensors import SafetensorError, safe_open

        fields: dict[str, Field] = {}
        try:
            # It stays open as long as a field may be loaded: to open it again for each of many thousand items reads its header as often.
            file = safe_open(path, framework="pt")
            for name in file.keys():  # noqa: SIM118 - not a mapping
                part = file.get_slice(name)
                kind: Kind = "flags" if part.get_dtype() == "BOOL" else "numbers"
                fields[name] = Field(name, tuple(part.get_shape()), kind, partial(_tensor, file, name))
            listed = {name: text for name, text in (file.metadata() or {}).items() if text.startswith("[")}
        except SafetensorError as error:
            raise CalmrlError(
                f"'{path}' cannot be read as safetensors: {error}", hint=remedy(path) or "write it again, or download it again"
            ) from None
        for name, text in listed.items():
            values = json.loads(text)
            if all(isinstance(value, (str, int)) for value in values) and values and name not in fields:
                fields[name] = Field.of(name, np.array([str(value) for value in values], dtype=np.str_))
        return Content(path, fields, ordered=False)


def _tensor(file: Any, name: str) -> np.ndarray:
    return as_array(file.get_tensor(name))


@formats.register("torch")
class Torch:
    """torch.save (.pt, .pth): a tensor, a dict of tensors beside each other, or {id: tensor, array or list}"""

    endings: ClassVar[tuple[str, ...]] = (".pt", ".pth", ".bin")
    is_folder = staticmethod(no_folder)

    @staticmethod
    def read(path: Path) -> Content:
        import torch

        with warnings.catch_warnings():
            # A foreign pickle is refused in one sentence; its protocol number is no news beside that.
            warnings.simplefilter("ignore")
            with torch.serialization.safe_globals(list(STAND_INS)):
                loaded = torch.load(path, map_location="cpu", weights_only=True)
        return content_of(path, resolved(path, loaded, path.stat().st_size))
