"""Scenarios: rules that hide observed modalities of items, and never un-hide one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool

from calmrl_lab.data.patterns import Patterns
from calmrl_lab.errors import CalmrlError
from calmrl_lab.registry import known, nearest

Mask = Bool[np.ndarray, "n k"]
_HELP = "known scenarios: full, complete-only, share:SHARE, rest:SHARE, pairs:SHARE, drop:NAME,NAME, drop:NAME@SHARE, random:RATE, pattern:A+B/A+C; chain with +"


def apply_scenario(
    spec: str, ids: Sequence[str] | np.ndarray, modalities: Sequence[str], mask: Mask, seed: int
) -> tuple[Mask, Bool[np.ndarray, " n"]]:
    """The mask [N, k] under scenario `spec`, and `keep` [N]: which items take part at all.

    full: nothing is hidden. complete-only: only items that show all modalities, after what stands before it in the chain. share:0.25: only that
    share of the items; rest:0.25: only the others, so that a warm-up and the training after it have no item in common. pairs:0.25: that
    share of the items shows everything it has (default 0.25), the others two random modalities. drop:audio,subtitle: these
    are hidden everywhere; drop:audio@0.5 from that share of the items. random:0.5: every observed modality is hidden with that rate; masks of a higher
    rate are contained in those of a lower one, and one modality always stays. pattern:vision+caption/audio+caption: every item shows
    one of these patterns. Parts are chained with `+` and applied from left to right.

    Every decision is a hash of seed and item id: it depends on no other item and on no order. Raises CalmrlError for an unknown scenario or modality, or
    a share outside 0..1.
    """
    ids = np.asarray(ids, dtype=np.str_)
    names = tuple(modalities)
    result = np.array(mask, dtype=bool)
    keep = np.ones(len(ids), dtype=bool)
    for part in _parts(spec, names):
        name, _, argument = part.partition(":")
        if name == "complete-only":
            _no_argument(spec, name, argument)
            keep &= result.all(axis=1)
        elif name in ("share", "rest"):
            keep &= (uniform(seed, ids, "share") < _share(spec, argument)) == (name == "share")
        elif name == "full":
            _no_argument(spec, name, argument)
        elif name in _RULES:
            result &= _RULES[name](spec, argument, ids, names, result, seed)
        else:
            raise CalmrlError(
                f"unknown scenario '{part}'{nearest(name, [*_RULES, 'full', 'complete-only', 'share', 'rest'])}", hint=_HELP
            )
    return result, keep


def pattern_names(mask: Mask, modalities: Sequence[str]) -> list[str]:
    """The observed modalities of every item joined by '+', in the order given; 'none' for an item that shows nothing."""
    patterns = Patterns.of(np.asarray(mask, dtype=bool))
    names = patterns.names(modalities)
    return [names[index] for index in patterns.which.tolist()]


def named_modalities(spec: str, modalities: Sequence[str]) -> set[str]:
    """Those of `modalities` that scenario `spec` names: what it drops, or what its patterns consist of.

    >>> sorted(named_modalities("drop:audio,text@0.5+random:0.5", ["audio", "text", "vision"]))
    ['audio', 'text']
    """
    found: set[str] = set()
    for part in _parts(spec, tuple(modalities)):
        name, _, argument = part.partition(":")
        if name in ("drop", "pattern"):
            found |= {word.strip() for word in re.split("[,+/]", argument.partition("@")[0])}
    return found & set(modalities)


def uniform(seed: int, ids: np.ndarray, purpose: str) -> np.ndarray:
    """A number in [0, 1) an item, from MD5 of seed, purpose and id."""
    digests = (hashlib.md5(f"{seed}|{purpose}|{item}".encode()).digest()[:7] for item in ids.tolist())
    return np.fromiter((int.from_bytes(d, "big") / 2**56 for d in digests), dtype=np.float64, count=len(ids))


def _parts(spec: str, modalities: tuple[str, ...]) -> list[str]:
    """Split at '+', but not inside a pattern, which joins modalities with '+' itself."""
    parts: list[str] = []
    for piece in spec.split("+"):
        if parts and parts[-1].startswith("pattern:") and piece.split("/")[0] in modalities:
            parts[-1] += "+" + piece
        else:
            parts.append(piece.strip())
    return parts


def _no_argument(spec: str, name: str, argument: str) -> None:
    if argument:
        raise CalmrlError(f"scenario '{spec}': '{name}' takes no argument, got '{argument}'")


def _share(spec: str, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = np.nan
    if not 0 <= share <= 1:
        raise CalmrlError(f"scenario '{spec}': '{text}' is not a share between 0 and 1", hint=_HELP)
    return share


def _named(spec: str, names: Sequence[str], modalities: tuple[str, ...]) -> Bool[np.ndarray, " k"]:
    for name in names:
        known(name, modalities, f"scenario '{spec}': unknown modality")
    return np.array([m in names for m in modalities])


def _pairs(spec: str, argument: str, ids: np.ndarray, modalities: tuple[str, ...], mask: Mask, seed: int) -> Mask:
    complete = uniform(seed, ids, "complete") < _share(spec, argument or "0.25")
    # The two observed modalities with the smallest numbers: every pair is equally likely.
    draws = np.stack([uniform(seed, ids, f"pair|{m}") for m in modalities], axis=1)
    order = np.where(mask, draws, np.inf).argsort(axis=1, kind="stable")
    shown = np.zeros_like(mask)
    np.put_along_axis(shown, order[:, :2], True, axis=1)
    return complete[:, None] | shown


def _drop(spec: str, argument: str, ids: np.ndarray, modalities: tuple[str, ...], mask: Mask, seed: int) -> Mask:
    listed, _, share = argument.partition("@")
    names = [name.strip() for name in listed.split(",") if name.strip()]
    if not names:
        raise CalmrlError(f"scenario '{spec}': 'drop' names no modality", hint="for example drop:audio,subtitle")
    chosen = uniform(seed, ids, f"drop|{','.join(sorted(names))}") < (_share(spec, share) if share else 1.0)
    return ~(chosen[:, None] & _named(spec, names, modalities))


def _random(spec: str, argument: str, ids: np.ndarray, modalities: tuple[str, ...], mask: Mask, seed: int) -> Mask:
    rate = _share(spec, argument)
    draws = np.stack([uniform(seed, ids, f"random|{m}") for m in modalities], axis=1)
    # The observed modality with the largest number is hidden last, at any rate: masks stay nested and never empty.
    last = np.where(mask, draws, -1.0).argmax(axis=1)
    return (draws >= rate) | (np.arange(len(modalities)) == last[:, None])


def _pattern(spec: str, argument: str, ids: np.ndarray, modalities: tuple[str, ...], mask: Mask, seed: int) -> Mask:
    patterns = [_named(spec, [m.strip() for m in text.split("+")], modalities) for text in argument.split("/")]
    chosen = (uniform(seed, ids, "pattern") * len(patterns)).astype(np.int64)
    return np.stack(patterns)[chosen]


_RULES: dict[str, Callable[[str, str, np.ndarray, tuple[str, ...], Mask, int], Mask]] = {
    "pairs": _pairs,
    "drop": _drop,
    "random": _random,
    "pattern": _pattern,
}
