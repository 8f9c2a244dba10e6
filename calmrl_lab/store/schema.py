"""What a feature store consists of: names, reasons for gaps, one description a modality, and what may be written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from jaxtyping import Int, Int64

from calmrl_lab.errors import CalmrlError

FORMAT = "calmrl-features"
VERSION = 1
# 16,384 rows of 512 float16 are 16 MB: large enough to read at full speed, small enough to shuffle by.
CHUNK_ROWS = 16384
DIGEST_FILE = "digest.json"
PROVENANCE_FILE = "provenance.json"
FAILURES_FILE = "failures.jsonl"
SPLITS = ("train", "validation", "test")
DTYPES = ("float16", "float32", "float64")
MAX_STRING = 1024

# Root attributes that the format itself uses; extra attributes may not take these names.
RESERVED = ("format", "version", "dataset", "licence", "attribution", "modalities", "checksums")

# '+' joins the modalities of a pattern, ':' a direction, ',' a list on the command line: none of them may be part of a name.
_NAME = re.compile(r"(?!__)[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
# What rows of results over several modalities or patterns are called: a modality of that name would be added into them.
_TOTALS = ("all", "joint")
_LABEL = re.compile(r"(?!__)\w[\w .()-]{0,63}")


class Reason(IntEnum):
    """Why an item shows or lacks a modality."""

    OBSERVED = 0
    ABSENT = 1
    FAILED = 2
    NOT_EXTRACTED = 3

    @property
    def words(self) -> str:
        return ("observed", "absent by nature", "failed", "not extracted")[self]


@dataclass(frozen=True)
class ModalitySpec:
    """One modality of a store: which encoder made its features, and what they look like.

    `fingerprint` identifies weights and preprocessing: features of equal fingerprints are comparable. `dimension` is d_m;
    `dtype` is the stored type, float16 unless the values need more range or precision.
    """

    name: str
    encoder: str
    fingerprint: str
    dimension: int
    dtype: str = "float16"

    def __post_init__(self) -> None:
        check_name("modality", self.name)
        if isinstance(self.dimension, bool) or not isinstance(self.dimension, int) or self.dimension < 1:
            raise CalmrlError(f"modality '{self.name}' has dimension {self.dimension!r}; expected a positive whole number")
        if self.dtype not in DTYPES:
            raise CalmrlError(f"modality '{self.name}' has dtype '{self.dtype}'; expected one of {', '.join(DTYPES)}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_name(kind: str, name: str) -> str:
    """`name` if it may become a directory of the store (and part of a command line); CalmrlError otherwise.

    Modalities and heads: letters, digits, '_', '.', '-', and no modality is named all or joint. Labels may also have spaces, parentheses and letters
    of any script.
    """
    if kind == "modality" and name in _TOTALS:
        raise CalmrlError(
            f"a modality cannot be named '{name}': tables of results call what several modalities do together so",
            hint="give it another name",
        )
    allowed = _LABEL if kind == "label" else _NAME
    if not isinstance(name, str) or not allowed.fullmatch(name) or name.endswith((".", " ")):
        extra = ", spaces and parentheses" if kind == "label" else ""
        raise CalmrlError(
            f"{kind} name {name!r} cannot be stored",
            hint=f"use up to 64 letters, digits, '_', '.', '-'{extra}, not starting with '.' or '-' and not ending with '.'",
        )
    return name


def offsets_of(counts: Int[np.ndarray, " n"] | Sequence[int]) -> Int64[np.ndarray, " n_plus_1"]:
    """Row counts per item -> offsets: item i owns rows offsets[i]:offsets[i+1]. A bool mask counts as one row where True."""
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(np.asarray(counts), out=offsets[1:])
    return offsets


def root_attributes(
    dataset: str, modalities: Sequence[ModalitySpec], licence: str, attribution: str, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """The attributes of the root group, in their fixed order; CalmrlError if `extra` uses a reserved name."""
    taken = sorted(set(extra) & set(RESERVED))
    if taken:
        raise CalmrlError(
            f"the attribute name '{taken[0]}' belongs to the store format", hint=f"reserved: {', '.join(RESERVED)}"
        )
    return {
        "format": FORMAT,
        "version": VERSION,
        "dataset": dataset,
        "licence": licence,
        "attribution": attribution,
        "modalities": [spec.to_dict() for spec in modalities],
        "checksums": DIGEST_FILE,
        **dict(sorted(extra.items())),
    }


def parse_attributes(attributes: Any, where: str) -> tuple[ModalitySpec, ...]:
    """The modalities named in root attributes; CalmrlError if they are not those of a store this version can read."""
    if not isinstance(attributes, dict) or "format" not in attributes:
        raise CalmrlError(f"'{where}' is not a feature store: its zarr.json has no attribute 'format'", hint=_MAKE_ONE)
    if attributes["format"] != FORMAT:
        raise CalmrlError(f"'{where}' has format {attributes['format']!r}; expected '{FORMAT}'", hint=_MAKE_ONE)
    version = attributes.get("version")
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        raise CalmrlError(
            f"store '{where}' has version {version!r}; this calmrl-lab reads version {VERSION}",
            hint="install a newer calmrl-lab" if newer else "extract or import it again",
        )
    for name in ("dataset", "licence"):
        if not isinstance(attributes.get(name), str):
            raise CalmrlError(f"store '{where}': zarr.json: the attribute '{name}' is missing or not a text")
    if not isinstance(attributes.get("attribution", ""), str):
        raise CalmrlError(f"store '{where}': zarr.json: the attribute 'attribution' is not a text")
    described = attributes.get("modalities")
    if not isinstance(described, list) or not described:
        raise CalmrlError(f"store '{where}': zarr.json: the attribute 'modalities' is missing or empty")
    specs = []
    for entry in described:
        try:
            specs.append(ModalitySpec(**entry))
        except TypeError:
            fields = ", ".join(ModalitySpec.__dataclass_fields__)
            raise CalmrlError(f"store '{where}': zarr.json: a modality is described by {entry!r}; expected {fields}") from None
    names = [spec.name for spec in specs]
    if len(set(names)) != len(names):
        raise CalmrlError(f"store '{where}': zarr.json: a modality is named twice: {', '.join(names)}")
    return tuple(specs)


_MAKE_ONE = "make one with `calmrl-lab extract` or `calmrl-lab store import`"
