"""Folders of splits: train/, val/ and test/ with the features of each, or train.npz, val.npz, test.npz, or train-00000-of-00002.parquet, ..."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.convert.formats._folders import data_files, folders_in, is_junk, without_ending
from calmrl_lab.store.convert.reading.source import Source, StackedRows
from calmrl_lab.store.splits import FRACTIONS, split_named

_STEM = re.compile(r"([A-Za-z]+)(?:-\d+-of-\d+)?")


def split_folders(folder: Path, is_readable: Callable[[Path], bool]) -> dict[str, list[Path]]:
    """Split as the folder spells it, training first -> its folder, or its files; empty if the folder is not divided into two splits or more.

    is_readable: whether a folder holds features. Raises CalmrlError if one beside those of the splits does: which split it is, nobody says.
    """
    if not os.path.isdir(folder) or (folder / "dataset_dict.json").is_file():
        return {}
    if files := data_files(folder):
        found: dict[str, list[Path]] = {}
        for file in files:
            match = _STEM.fullmatch(without_ending(file.name))
            if match is None or split_named(match[1]) is None:
                return {}
            found.setdefault(match[1], []).append(file)
        return _in_order(found) if len(set(map(split_named, found))) > 1 else {}
    places = [place for place in folders_in(folder) if not is_junk(place.name) and not place.name.startswith((".", "_"))]
    # As Hive spells the folders of a column: split=train.
    inner = {place.name.removeprefix("split="): place for place in places}
    named = {name: [place] for name, place in inner.items() if split_named(name)}
    if len(set(map(split_named, named))) < 2:
        return {}
    named = _in_order({name: places for name, places in named.items() if is_readable(places[0])})
    others = [place.name for name, place in inner.items() if name not in named and is_readable(place)]
    if others and named:
        raise CalmrlError(
            f"'{folder}' has the splits {', '.join(named)}, and '{others[0]}', which holds features too and is no split",
            hint="move it out of the folder, or import the folders one by one and merge the stores",
        )
    return named


def _in_order(places: Mapping[str, list[Path]]) -> dict[str, list[Path]]:
    """Training, validation and test, whatever order their names have."""
    return {name: places[name] for name in sorted(places, key=lambda name: list(FRACTIONS).index(split_named(name) or "test"))}


def together(path: Path, parts: Mapping[str, Source]) -> Source:
    """The rows of all splits, one after the other, each with its split; an id of two splits becomes `split/id` in both.

    Raises CalmrlError if rows differ in length, or only some splits bring ids.
    """
    sources = list(parts.values())
    widths = {name: source.rows.shape[1] for name, source in parts.items()}
    if len(set(widths.values())) > 1:
        told = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise CalmrlError(
            f"the features of the splits in '{path}' have different lengths: {told}", hint="use one encoder for all splits"
        )
    if len({source.ids is None for source in sources}) > 1:
        without = next(name for name, source in parts.items() if source.ids is None)
        raise CalmrlError(
            f"the features of the split '{without}' in '{path}' bring no ids, and those of others do", hint="save them with ids"
        )
    given = [source.ids for source in sources if source.ids is not None]
    counted = Counter(item for ids in given for item in set(ids.tolist()))
    twice = {item for item, count in counted.items() if count > 1}
    ids = [
        np.array([f"{name}/{item}" if item in twice else item for item in source.ids.tolist()], dtype=np.str_)
        for name, source in parts.items()
        if source.ids is not None
    ]
    there = [np.ones(len(s.rows), dtype=bool) if s.observed is None else s.observed for s in sources]
    splits = [np.full(len(source.rows), name) if source.split is None else source.split for name, source in parts.items()]
    told = f"the splits {', '.join(f'{name} {list(source.rows.shape)}' for name, source in parts.items())}"
    told += f"; {len(twice)} ids stand in more than one split and are told apart as SPLIT/ID" if twice else ""
    return Source(
        path,
        StackedRows([source.rows for source in sources]),
        np.concatenate(ids) if ids else None,
        np.concatenate(there) if any(source.observed is not None for source in sources) else None,
        np.concatenate(splits),
        _unused(sources),
        sources[0].named,
        f"{told}; of each: {sources[0].told}",
    )


def _unused(sources: Sequence[Source]) -> Sequence[str]:
    return list(dict.fromkeys(name for source in sources for name in source.unused))
