"""Ids of items in several files: how many they share, and which differ only in how they are spelled."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from jaxtyping import Shaped

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.convert.media_endings import without_ending

Ids = Shaped[np.ndarray, " rows"]
# What --normalise-ids takes away, in this order.
_STEPS: Mapping[str, Callable[[str], str]] = {
    "Unicode form": lambda name: unicodedata.normalize("NFC", name),
    "spaces": lambda name: " ".join(name.split()),
    "folders": lambda name: name.replace("\\", "/").rstrip("/").rpartition("/")[2] or name,
    "endings": without_ending,
    "case": str.lower,
}
_NUMBER = re.compile(r"0*(\d+)(?:\.0+)?")


def frame_index(arrays: Mapping[str, Any]) -> Ids | None:
    """The index that the data frames (or series) of pandas among `arrays` share, as strings: whose rows they hold.

    None where no index says so: there is no frame, the rows are only counted, or an entry of the index comes twice. Raises CalmrlError if two frames
    have different indexes, because their rows would be joined by position.
    """
    indexes = {name: values.index for name, values in arrays.items() if hasattr(values, "iloc")}
    # Rows that are only counted have no names that could differ.
    named = {name: index for name, index in indexes.items() if list(index) != list(range(len(index)))}
    for (one, first), (other, second) in pairwise(named.items()):
        if not first.equals(second):
            raise CalmrlError(
                f"the data frames '{one}' and '{other}' have different indexes, so their rows are not the same items in the same order",
                hint="bring them into one order with frame.reindex(index), or drop the index with frame.reset_index(drop=True)",
            )
    index = next(iter(named.values()), None)
    return None if index is None or not index.is_unique else np.array([str(name) for name in index], dtype=np.str_)


def normalised(ids: Mapping[str, Ids]) -> tuple[dict[str, Ids], list[str]]:
    """The same ids spelled alike: without folders and endings, in one Unicode form, without outer spaces, and whatever their case.

    `ids`: source -> [R] str. An id is spelled as the first source does that has it. A step that would make one item of two of the same
    source is left out, and said in the list of sentences that comes with the ids.

    >>> normalised({"v": np.array(["video0"]), "t": np.array(["clips/Video0.mp4"])})[0]["t"].tolist()
    ['video0']
    """
    mapping = {name: name for values in ids.values() for name in np.unique(values).tolist()}
    kept_apart = []
    for step, function in _STEPS.items():
        changed = {name: function(spelling) for name, spelling in mapping.items()}
        clash = next((pair for values in ids.values() if (pair := _joined(values, mapping, changed))), None)
        if clash is None:
            mapping = changed
        else:
            kept_apart.append(
                f"--normalise-ids keeps {step} apart: {quoted(clash[0])} and {quoted(clash[1])} are two items of one file"
            )
    spelled: dict[str, str] = {}
    for values in ids.values():
        for name in values.tolist():
            spelled.setdefault(mapping[name], name)
    result = {
        source: np.array([spelled[mapping[name]] for name in values.tolist()], dtype=np.str_) for source, values in ids.items()
    }
    return result, kept_apart


def _joined(values: Ids, before: Mapping[str, str], after: Mapping[str, str]) -> tuple[str, str] | None:
    """Two ids of one source that were different before a step and are equal afterwards."""
    first: dict[str, str] = {}
    for name in np.unique(values).tolist():
        other = first.setdefault(after[name], name)
        if before[other] != before[name]:
            return other, name
    return None


def check_meeting(ids: Mapping[str, Ids], least: float) -> list[str]:
    """Sentences on how many ids the modalities share; CalmrlError if some share less than `least` of theirs with all others.

    `ids`: modality -> [R] str. The share of two modalities is that of the smaller one's ids. Modalities may meet through a third.
    """
    sets = {name: set(values.tolist()) for name, values in ids.items()}
    linked: dict[str, set[str]] = {name: {name} for name in sets}
    said, apart = [], []
    for one, other in combinations(sets, 2):
        smaller = min(len(sets[one]), len(sets[other]))
        shared = len(sets[one] & sets[other])
        said.append(f"'{one}' and '{other}' share {shared} ids, of {len(sets[one])} and {len(sets[other])}")
        if smaller and shared >= least * smaller:
            together = linked[one] | linked[other]
            for name in together:
                linked[name] = together
        elif smaller:
            apart.append((one, other))
        if smaller and (note := _spelled_otherwise(ids, one, other)):
            said.append(note)
    for one, other in apart:
        if other not in linked[one]:
            raise _strangers(ids, one, other, len(sets[one] & sets[other]), min(len(sets[one]), len(sets[other])))
    return said


def _spelled_otherwise(ids: Mapping[str, Ids], one: str, other: str) -> str | None:
    """A sentence on ids of two modalities that differ only in their spelling; None if there are none."""
    first, second = (dict.fromkeys(ids[name].tolist()) for name in (one, other))
    spare = [name for name in second if name not in first]
    by_key = {_key(name): name for name in first if name not in second}
    pairs = [(by_key[_key(name)], name) for name in spare if _key(name) in by_key]
    if not pairs:
        return None
    return (
        f"{len(pairs)} ids of '{one}' and '{other}' differ only in how they are spelled, the first in {quoted(pairs[0][0])} and "
        f"{quoted(pairs[0][1])}; --normalise-ids makes one item of each two"
    )


def _key(name: str) -> str:
    for step in _STEPS.values():
        name = step(name)
    return name


def _strangers(ids: Mapping[str, Ids], one: str, other: str, shared: int, smaller: int) -> CalmrlError:
    after, _ = normalised({name: ids[name] for name in (one, other)})
    sets = [set(after[name].tolist()) for name in (one, other)]
    joined = len(sets[0] & sets[1])
    examples = "; ".join(f"'{name}' has {_examples(ids[name])}" for name in (one, other))
    message = f"'{one}' and '{other}' share only {shared} of {smaller} ids: {examples}"
    if joined > shared:
        spellings = ", ".join(quoted(name) for name in list(dict.fromkeys(_key(n) for n in ids[one].tolist()))[:3])
        return CalmrlError(message, hint=f"--normalise-ids spells them {spellings}: then they share {joined}")
    if numbers := _numbers_alike(ids[one].tolist(), ids[other].tolist()):
        return CalmrlError(
            message,
            hint=f"{quoted(numbers[0])} and {quoted(numbers[1])} are different ids here; write the numbers alike in both files",
        )
    return CalmrlError(
        message, hint="spell ids alike in all files; if these are different items, --min-shared 0 imports them as such"
    )


def _numbers_alike(first: Sequence[str], second: Sequence[str]) -> tuple[str, str] | None:
    """An id of each that is the same number, written otherwise: 1, 1.0 and 0001."""
    numbers = {match[1]: name for name in first if (match := _NUMBER.fullmatch(name))}
    pairs = ((numbers.get(match[1]), name) for name in second if (match := _NUMBER.fullmatch(name)))
    return next(((one, two) for one, two in pairs if one is not None and one != two), None)


def _examples(values: Iterable[Any]) -> str:
    return ", ".join(quoted(str(name)) for name in list(dict.fromkeys(np.asarray(values).tolist()))[:3])


def quoted(name: str) -> str:
    """An id in quotes, with whatever is not plain ASCII spelled out: two forms of an accent look alike."""
    return ascii(name)
