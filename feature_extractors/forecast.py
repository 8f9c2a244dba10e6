"""How long an extraction will take, from what its media have taken so far: told within a minute, and again when more is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Seconds after which it is told how long it will take, also where some modalities are not measured yet; less than the second is not worth a line.
TELL, WORTH_TELLING = 40.0, 120.0
# It is told again after so many seconds at the earliest, if it has changed by more than this share.
_AGAIN, _CHANGED = 60.0, 0.25
# A range that is narrower than this is one number.
_NARROW = 1.2


@dataclass(frozen=True)
class Spent:
    """What some media of a modality took in one lane. `media` may be a fraction: part of the frames of a clip are through.

    `settled`: the lane has finished a block before, so that its encoders are loaded and warm.
    """

    modality: str
    media: float
    seconds: float
    lane: str = ""
    settled: bool = False


class Forecast:
    """The seconds that are left, from the media of each modality that are to be encoded and what was spent on those that are through.

    Blocks of lanes that are settled count. Before there is one, the first block counts without the first piece of every lane and modality, which
    includes loading the encoder; and that piece only as long as there is nothing else.

    >>> forecast = Forecast({"vision": 100, "caption": 1000}, lanes=2)
    >>> for spent in (Spent("vision", 0.5, 60.0), Spent("vision", 1.5, 75.0)):
    ...     forecast.add(spent)
    >>> forecast.seconds_left(), forecast.unmeasured()
    (2450.0, ['caption'])
    """

    def __init__(self, media: Mapping[str, int], lanes: int) -> None:
        self._left = {modality: float(count) for modality, count in media.items() if count}
        self._lanes = lanes
        self._begun: set[tuple[str, str]] = set()
        # What was spent on each modality: first pieces, other pieces of first blocks, blocks of settled lanes.
        self._spent: dict[str, tuple[list[Spent], list[Spent], list[Spent]]] = {}
        # When it was told last, when everything was to be done then, and how well that was known.
        self._told: tuple[float, float, int] | None = None

    def add(self, spent: Spent) -> None:
        """Take note of what was spent in a lane."""
        self._left[spent.modality] = max(0.0, self._left.get(spent.modality, 0.0) - spent.media)
        first = (spent.lane, spent.modality) not in self._begun
        self._begun.add((spent.lane, spent.modality))
        if spent.media > 0:
            known = 2 if spent.settled else 0 if first else 1
            self._spent.setdefault(spent.modality, ([], [], []))[known].append(spent)

    def known(self, modality: str) -> int:
        """How well a modality is known: 2 from blocks of settled lanes, 1 from first blocks, 0 from their first pieces, -1 not at all."""
        return max((level for level, pieces in enumerate(self._spent.get(modality, ())) if pieces), default=-1)

    def seconds_a_medium(self, modality: str) -> float | None:
        """Seconds that a medium of a modality takes in one lane; None before any was measured."""
        level = self.known(modality)
        if level < 0:
            return None
        pieces = self._spent[modality][level]
        return sum(piece.seconds for piece in pieces) / sum(piece.media for piece in pieces)

    def seconds_left(self) -> float | None:
        """Seconds that what is measured will take, all lanes at work; None if nothing is measured."""
        rates = {modality: self.seconds_a_medium(modality) for modality in self._left}
        known = [self._left[modality] * rate for modality, rate in rates.items() if rate is not None]
        return sum(known) / self._lanes if known else None

    def range_left(self) -> tuple[float, float]:
        """The seconds that are left if all media are like the quicker quarter of those so far, and like the slower quarter."""
        low = high = 0.0
        for modality, left in self._left.items():
            if (level := self.known(modality)) >= 0:
                pieces = self._spent[modality][level]
                low += left * _quantile(pieces, 0.25) / self._lanes
                high += left * _quantile(pieces, 0.75) / self._lanes
        return low, high

    def unmeasured(self) -> list[str]:
        """Modalities with media of which none was measured."""
        return [modality for modality, left in self._left.items() if left and self.known(modality) < 0]

    def news(self, elapsed: float) -> str | None:
        """What is to be told after `elapsed` seconds: a first word within a minute, another one where more is known now; None if there is nothing new."""
        left = self.seconds_left()
        known = min((self.known(modality) for modality, count in self._left.items() if count), default=2)
        if left is None or left <= WORTH_TELLING:
            return None
        if self._told is None:
            if known < 1 and elapsed <= TELL:
                return None
        else:
            when, end, before = self._told
            changed = abs(elapsed + left - end) > _CHANGED * max(left, end - elapsed)
            if not changed or known < before or (known == before and elapsed - when < _AGAIN):
                return None
        self._told = (elapsed, elapsed + left, known)
        return self.sentence()

    def sentence(self) -> str | None:
        """What is told: how long it will take, and what a medium of each modality takes. None if nothing is measured."""
        left = self.seconds_left()
        if left is None:
            return None
        low, high = self.range_left()
        rates = ", ".join(
            f"{modality} {rate:.3g} s" for modality in self._left if (rate := self.seconds_a_medium(modality)) is not None
        )
        missing = self.unmeasured()
        lanes = "one at a time" if self._lanes == 1 else f"{self._lanes} at a time"
        more = f", and {' and '.join(missing)}, not measured yet" if missing else ""
        first = [modality for modality in self._left if self.known(modality) == 0]
        if first:
            more += f"; {' and '.join(first)} with loading the encoder"
        how = "at most about" if first and not missing else "about"
        told = f"{how} {duration(left)}" if first or high <= _NARROW * low else f"{duration(low)} to {duration(high)}"
        return f"this will take {told} (a medium, {lanes}: {rates}{more})"


def _quantile(pieces: list[Spent], share: float) -> float:
    """The seconds a medium that a share of the media so far took at most."""
    ordered = sorted(pieces, key=lambda piece: piece.seconds / piece.media)
    wanted = share * sum(piece.media for piece in ordered)
    for piece in ordered:
        wanted -= piece.media
        if wanted <= 0:
            return piece.seconds / piece.media
    return ordered[-1].seconds / ordered[-1].media


def duration(seconds: float) -> str:
    """A time in its largest fitting unit.

    >>> [duration(seconds) for seconds in (5, 200, 9000, 1_040_000)]
    ['5 s', '3 minutes', '2.5 hours', '12.0 days']
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"
