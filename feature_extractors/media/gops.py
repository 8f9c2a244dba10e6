"""Which packets of a video must be decoded to see some of its frames: none of the groups of pictures in between."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Packet:
    """A packet in decoding order. `shown`: its frame is displayed (edit lists hide some). `pts`: when, or None if nobody says."""

    pts: int | None
    key: bool
    shown: bool = True


@dataclass(frozen=True)
class Stretch:
    """Packets `start` to `stop` (not included), to be decoded in one go by a fresh decoder."""

    start: int
    stop: int


def stretches(packets: Sequence[Packet], wanted: Sequence[int]) -> list[Stretch] | None:
    """The stretches that show the wanted frames (indices in order of display), in decoding order.

    Each begins at a key frame and ends at the last wanted packet of its group. A frame that is displayed before the key frame of its own
    group (an open group) also needs the group before. None if the packets do not say enough: no time stamps, two
    with the same, no key frame at the start.
    """
    if not packets or not packets[0].key:
        return None
    times = sorted(packet.pts for packet in packets if packet.shown and packet.pts is not None)
    if len(times) < sum(packet.shown for packet in packets) or len(set(times)) < len(times) or max(wanted) >= len(times):
        return None
    keys = [place for place, packet in enumerate(packets) if packet.key]
    place_of = {packet.pts: place for place, packet in enumerate(packets) if packet.shown}
    found: list[Stretch] = []
    for place in sorted(place_of[times[index]] for index in set(wanted)):
        group = bisect_right(keys, place) - 1
        if group and _before(packets[place], packets[keys[group]]):
            group -= 1
        start = keys[group]
        if found and start < found[-1].stop:
            start = found.pop().start
        found.append(Stretch(start, place + 1))
    return found


def is_leading(packets: Sequence[Packet], stretch: Stretch, place: int) -> bool:
    """True for a packet displayed before the key frame its stretch begins with: it needs frames that were not decoded."""
    return _before(packets[place], packets[stretch.start])


def _before(packet: Packet, other: Packet) -> bool:
    return packet.pts is not None and other.pts is not None and packet.pts < other.pts
