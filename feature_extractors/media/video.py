"""The frames of a video, through PyAV, turned and mirrored as its header asks."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from feature_extractors.media.container import indexed_packets, moving_pictures, opened, strict
from feature_extractors.media.gops import Packet, is_leading, stretches
from feature_extractors.protocols import MediaError

if TYPE_CHECKING:
    from av.container import InputContainer

Choice = Callable[[int], Sequence[int]]

# How an MPEG-1 or MPEG-2 video without a container begins, and what FFmpeg says of bits behind the last picture.
_SEQUENCE = b"\0\0\1\xb3"
_LEFT = re.compile(r"end mismatch left=(\d+) ")
# Decoding groups apart must leave out this share at least: a second look at the file where it fails is not free.
_WORTH_SKIPPING = 0.8


def clip_frames(path: Path, choose: Choice) -> UInt8[np.ndarray, "n height width 3"]:
    """RGB frames of a video, as its header asks players to show them; `choose` maps their number to the indices wanted.

    Two passes: the packets are listed, then frames are decoded in order and found by their place, so that variable frame rates, key
    frames far apart and wrong indexes in the file cannot lead to a wrong frame. Groups of pictures without a wanted frame are not decoded.
    Raises MediaError: `not_found`, `empty_file`, `not_media`, `no_stream`, `truncated` (the file ends before it says it does), `decode_error`.
    """
    try:
        return _chosen_frames(path, choose, 0)
    except MediaError as error:
        behind = _bytes_behind_pictures(path) if error.code == "decode_error" else 0
        if not behind:
            raise
        return _chosen_frames(path, choose, behind)


def _chosen_frames(path: Path, choose: Choice, behind: int) -> UInt8[np.ndarray, "n height width 3"]:
    with opened(path, behind) as container:
        packets = _packets(container)
    total = sum(packet.shown for packet in packets)
    if total == 0:
        raise MediaError("no_stream", "the video stream is empty")
    wanted = choose(total)
    found = _decode_groups(path, packets, wanted, behind)
    if found is None:
        found, seen = _decode_all(path, wanted, behind)
        if len(found) < len(set(wanted)) and seen:
            # Packets that show nothing (packed B-frames): count what is shown, and choose again.
            wanted = choose(seen)
            found, _ = _decode_all(path, wanted, behind)
    if len(found) < len(set(wanted)):
        raise MediaError("decode_error", f"frame {max(wanted)} of {total} could not be decoded")
    if len({pixels.shape for pixels in found.values()}) > 1:
        raise MediaError("decode_error", "the size of the picture changes on the way")
    return np.stack([found[index] for index in wanted])


def _bytes_behind_pictures(path: Path) -> int:
    """How many bytes stand behind the last picture of an MPEG-1 or MPEG-2 video without a container; 0 if it is damaged, or another kind.

    No picture says where it ends but by its pixels: FFmpeg says how many bits are left once it has them all.
    """
    import av

    with open(path, "rb") as file:
        if file.read(4) != _SEQUENCE:
            return 0
    level, skipping = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    left: list[int] = []
    try:
        with opened(path) as container:
            stream = _video_stream(container)
            packets = [packet for packet in container.demux(stream) if packet.size]
            for packet in packets:
                with av.logging.Capture() as said:
                    try:
                        packet.decode()
                    except av.error.FFmpegError:
                        left += [int(bits[1]) for *_, text in said if (bits := _LEFT.match(text))]
                        if packet is not packets[-1]:
                            return 0
    except MediaError:
        return 0
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skipping)
    return max(left, default=0) // 8 if len(left) == 1 else 0


def frame_rate(path: Path) -> float:
    """Frames per second of a video, on average, as its header says. Raises MediaError as `clip_frames`, and `not_media` where it says nothing."""
    with opened(path) as container:
        rate = _video_stream(container).average_rate
    if not rate:
        raise MediaError("not_media", "the file does not say how many frames per second it has")
    return float(rate)


def _video_stream(container: InputContainer) -> Any:
    shown = moving_pictures(container)
    if not shown:
        raise MediaError("no_stream", "no video stream")
    return strict(shown[0])


def _packets(container: InputContainer) -> list[Packet]:
    """All packets of the video, in decoding order. MediaError if one is damaged or the last ones are missing."""
    stream = _video_stream(container)
    packets: list[Packet] = []
    broken = False
    for packet in container.demux(stream):
        if not packet.size:
            continue
        if broken:
            raise MediaError("decode_error", f"packet {len(packets) - 1} is damaged")
        broken = packet.is_corrupt
        # Edit lists keep packets that are decoded but not shown.
        packets.append(Packet(packet.pts, packet.is_keyframe, not packet.is_discard))
    indexed = indexed_packets(container, stream)
    if broken or len(packets) < indexed:
        raise MediaError("truncated", f"the video ends after {len(packets)} of {indexed or 'more'} packets")
    return packets


def _decode_groups(path: Path, packets: Sequence[Packet], wanted: Sequence[int], behind: int) -> dict[int, np.ndarray] | None:
    """The wanted frames by index, decoding only the groups of pictures they are in; None if that cannot be done or does not pay."""
    parts = stretches(packets, wanted)
    if parts is None or sum(part.stop - part.start for part in parts) > _WORTH_SKIPPING * parts[-1].stop:
        return None
    times = sorted(packet.pts for packet in packets if packet.shown and packet.pts is not None)
    index_of = {times[index]: index for index in wanted}
    found: dict[int, np.ndarray] = {}

    def keep(frames: Sequence[Any]) -> None:
        for frame in frames:
            index = index_of.get(frame.pts)
            if index is not None and index not in found:
                found[index] = _pixels(frame, index)

    waiting = list(parts)
    try:
        with opened(path, behind) as container:
            stream = _video_stream(container)
            for place, packet in enumerate(packet for packet in container.demux(stream) if packet.size):
                if place >= waiting[0].start and not is_leading(packets, waiting[0], place):
                    keep(packet.decode())
                if place == waiting[0].stop - 1:
                    keep(stream.codec_context.decode(None))
                    stream.codec_context.flush_buffers()
                    waiting.pop(0)
                if not waiting:
                    break
    except MediaError:
        # Key frames that were none, or damage: decoding everything in order will tell.
        return None
    return found if len(found) == len(index_of) else None


def _decode_all(path: Path, wanted: Sequence[int], behind: int) -> tuple[dict[int, np.ndarray], int]:
    """The wanted frames by index, and how many frames were decoded (all of them if a wanted one was not reached)."""
    needed, last = set(wanted), max(wanted)
    found: dict[int, np.ndarray] = {}
    seen = 0
    with opened(path, behind) as container:
        for frame in container.decode(_video_stream(container)):
            if seen in needed:
                found[seen] = _pixels(frame, seen)
            seen += 1
            if seen > last:
                break
    return found, seen


def _pixels(frame: Any, index: int) -> UInt8[np.ndarray, "height width 3"]:
    if frame.is_corrupt:
        raise MediaError("decode_error", f"frame {index} is damaged")
    return np.ascontiguousarray(as_shown(frame.to_ndarray(format="rgb24"), _display_matrix(frame)))


def as_shown(pixels: UInt8[np.ndarray, "height width 3"], matrix: tuple[int, int, int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """A picture turned and mirrored by the display matrix (a, b, c, d): a pixel at (x, y) is shown at (a x + c y, b x + d y).

    Multiples of 90 degrees and mirror images, as players show them; anything between is taken for the nearest of these.
    """
    a, b, c, d = matrix
    across, down = (a, d) if abs(a) + abs(d) >= abs(b) + abs(c) else (c, b)
    turned = pixels if (across, down) == (a, d) else pixels.transpose(1, 0, 2)
    return turned[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]


def _display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """The first two rows and columns of a frame's display matrix, (1, 0, 0, 1) without one."""
    try:
        side_data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV stops at side data of a kind that it does not know; the turn it can tell all the same.
        return {90: (0, -1, 1, 0), 180: (-1, 0, 0, -1), 270: (0, 1, -1, 0)}.get(
            round(frame.rotation / 90) * 90 % 360, (1, 0, 0, 1)
        )
    if side_data is None:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(side_data)[:36])
    return (a, b, c, d)
