"""How long an extraction will take, from what its media have taken so far: told within a minute, also where one medium takes minutes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Spent:
    """What some media of a modality took in one lane. `media` may be a fraction: part of the frames of a clip are through."""

    modality: str
    media: float
    seconds: float


class Forecast:
    """The seconds that are left, from the media of each modality that are to be encoded and what was spent on those that are through.

    What the first piece of a modality took includes loading its encoder, so it counts only until there is another one.

    >>> forecast = Forecast({"vision": 100, "caption": 1000}, lanes=2)
    >>> for spent in (Spent("vision", 0.5, 60.0), Spent("vision", 1.5, 75.0)):
    ...     forecast.add(spent)
    >>> forecast.seconds_left(), forecast.unmeasured()
    (2450.0, ['caption'])
    """

    def __init__(self, media: Mapping[str, int], lanes: int) -> None:
        self._left = {modality: float(count) for modality, count in media.items() if count}
        self._lanes = lanes
        self._first: dict[str, Spent] = {}
        self._sums: dict[str, list[float]] = {}

    def add(self, spent: Spent) -> None:
        """Take note of what was spent in a lane."""
        self._left[spent.modality] = max(0.0, self._left.get(spent.modality, 0.0) - spent.media)
        if spent.modality not in self._first:
            self._first[spent.modality] = spent
            return
        sums = self._sums.setdefault(spent.modality, [0.0, 0.0])
        sums[0] += spent.media
        sums[1] += spent.seconds

    def seconds_a_medium(self, modality: str) -> float | None:
        """Seconds that a medium of a modality takes in one lane; None before any was measured."""
        media, seconds = self._sums.get(modality, (0.0, 0.0))
        if media > 0:
            return seconds / media
        first = self._first.get(modality)
        return first.seconds / first.media if first is not None and first.media > 0 else None

    def seconds_left(self) -> float | None:
        """Seconds that what is measured will take, all lanes at work; None if nothing is measured."""
        rates = {modality: self.seconds_a_medium(modality) for modality in self._left}
        known = [self._left[modality] * rate for modality, rate in rates.items() if rate is not None]
        return sum(known) / self._lanes if known else None

    def unmeasured(self) -> list[str]:
        """Modalities with media of which none was measured."""
        return [modality for modality, left in self._left.items() if left and self.seconds_a_medium(modality) is None]

    def sentence(self) -> str | None:
        """What is told: how long it will take, and what a medium of each modality takes. None if nothing is measured."""
        left = self.seconds_left()
        if left is None:
            return None
        rates = ", ".join(
            f"{modality} {rate:.3g} s" for modality in self._left if (rate := self.seconds_a_medium(modality)) is not None
        )
        missing = self.unmeasured()
        lanes = "one at a time" if self._lanes == 1 else f"{self._lanes} at a time"
        more = f", and {' and '.join(missing)}, not measured yet" if missing else ""
        return f"this will take about {duration(left)} (a medium, {lanes}: {rates}{more})"


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
