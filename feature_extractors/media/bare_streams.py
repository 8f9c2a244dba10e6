"""Where the last frame of a stream without a container ends: MP3, AAC, AC-3, DTS, WavPack, AU, MPEG-TS, DV, IVF, AV1, MJPEG, raw video. What follows it is not sound."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from feature_extractors.media.chunks import ivf_end, nut_end, obu_end, y4m_end
from feature_extractors.media.containers import id3_length, is_placeholder

# MPEG audio: kbit/s by version (1, or 2 and 2.5) and layer (I, II, III); index 0 is the free format, 15 is forbidden.
_RATES = {
    (1, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_HZ = (44_100, 48_000, 32_000)
_AC3_RATES = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640)
_TS_PACKET = 188
_HEAD = 8
JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
# Packets of MPEG-TS at the end that are looked at one by one.
_TAIL = 10_000


def mpeg_audio_frame(head: bytes) -> int:
    """The bytes of the MPEG audio frame (MP1 to MP3) that begins so; 0 if none does, or if its length is not told (free format)."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    version, layer = {0: 4, 2: 2, 3: 1}.get(head[1] >> 3 & 3, 0), 4 - (head[1] >> 1 & 3)
    rate_index, hz_index = head[2] >> 4, head[2] >> 2 & 3
    if not version or layer == 4 or rate_index in (0, 15) or hz_index == 3:
        return 0
    lower = version > 1
    rate = _RATES[2 if lower else 1, 2 if lower and layer > 1 else layer][rate_index] * 1000
    hz, padded = _HZ[hz_index] // version, head[2] >> 1 & 1
    if layer == 1:
        return (12 * rate // hz + padded) * 4
    return (72 if lower and layer == 3 else 144) * rate // hz + padded


def adts_frame(head: bytes) -> int:
    """The bytes of the AAC frame (ADTS) that begins so; 0 if none does."""
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or head[2] >> 2 & 15 > 12:
        return 0
    length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return length if length > 7 else 0


def ac3_frame(head: bytes) -> int:
    """The bytes of the AC-3 or E-AC-3 frame that begins so; 0 if none does."""
    if len(head) < 6 or head[:2] != b"\x0b\x77":
        return 0
    if head[5] >> 3 > 10:
        return 2 * (((head[2] & 7) << 8 | head[3]) + 1)
    hz, code = head[4] >> 6, head[4] & 63
    if hz == 3 or code >= 2 * len(_AC3_RATES):
        return 0
    rate = _AC3_RATES[code // 2]
    return {0: 4 * rate, 1: 2 * (rate * 96_000 // 44_100 + code % 2), 2: 6 * rate}[hz]


def wavpack_block(head: bytes) -> int:
    """The bytes of the WavPack block that begins so; 0 if none does."""
    return int.from_bytes(head[4:8], "little") + 8 if head[:4] == b"wvpk" else 0


def dts_frame(head: bytes) -> int:
    """The bytes of the DTS frame (16 bits, big endian) that begins so; 0 if none does."""
    if head[:4] != b"\x7f\xfe\x80\x01" or len(head) < 8:
        return 0
    length = (head[5] & 3) << 12 | head[6] << 4 | head[7] >> 4
    return length + 1 if length >= 95 else 0


def latm_frame(head: bytes) -> int:
    """The bytes of the AAC frame (LOAS) that begins so; 0 if none does."""
    return 3 + ((head[1] & 0x1F) << 8 | head[2]) if len(head) > 2 and head[0] == 0x56 and head[1] >> 5 == 7 else 0


def dv_frame(head: bytes) -> int:
    """The bytes of the DV frame that begins so, of 50 or 60 fields a second; 0 if none does."""
    return (144_000 if head[3] & 0x80 else 120_000) if head[:3] == b"\x1f\x07\0" and len(head) > 3 else 0


def transport_packet(head: bytes) -> int:
    """The bytes of the MPEG-TS packet that begins so; 0 if none does."""
    return _TS_PACKET if head[:1] == b"G" else 0


@dataclass(frozen=True)
class _Stream:
    """How frames of a stream begin, the length of one by its head, which bits of their first four bytes are the same in all of them, and
    how many in a row make it certain that what looks like a frame is one."""

    beginning: re.Pattern[bytes]
    frame: Callable[[bytes], int]
    fixed: bytes
    certain: int = 3


_STREAMS = (
    _Stream(re.compile(rb"\xff[\xe0-\xff]"), mpeg_audio_frame, b"\xff\xfe\x0c\0"),
    _Stream(re.compile(rb"\xff[\xf0\xf1\xf8\xf9]"), adts_frame, b"\xff\xfe\x3c\0"),
    _Stream(re.compile(rb"\x0b\x77"), ac3_frame, b"\xff\xff\0\0"),
    _Stream(re.compile(rb"wvpk"), wavpack_block, b"\xff\xff\xff\xff", certain=1),
    _Stream(re.compile(rb"\x7f\xfe\x80\x01"), dts_frame, b"\xff\xff\xff\xff", certain=2),
    _Stream(re.compile(rb"\x56[\xe0-\xff]"), latm_frame, b"\xff\xe0\0\0"),
    _Stream(re.compile(rb"\x1f\x07\0"), dv_frame, b"\xff\xff\xff\0", certain=1),
    _Stream(re.compile(rb"G"), transport_packet, b"\xff\0\0\0"),
)


def stream_end(file: BinaryIO) -> int:
    """Where the last frame of a bare stream ends; the length of the file if it is something else, or a frame does not tell its length.

    More than the length of the file if the last of several frames breaks off.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    head = file.read(16)
    if head[:4] == b".snd":
        length = int.from_bytes(head[8:12], "big")
        return size if is_placeholder(length) else min(size, int.from_bytes(head[4:8], "big") + length)
    for beginning, end in ((b"DKIF", ivf_end), (b"YUV4MPEG2 ", y4m_end), (b"\x12\0", obu_end), (b"nut/multimedia", nut_end)):
        if head.startswith(beginning):
            file.seek(0)
            return end(file, size)
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if head.startswith(JPEG) and is_motion_jpeg(file):
            return _last_jpeg_end(data)
        begin = _behind_tags(data, 0)
        for stream in _STREAMS:
            if _is_run(data, begin, stream):
                start = _near_the_end(data, begin, stream) if stream.frame is transport_packet else begin
                return _last_end(data, start, stream)
    return size


def _last_end(data: mmap.mmap, place: int, stream: _Stream) -> int:
    end, before, first = place, 0, data[place : place + 4]
    while place < len(data):
        head = data[place : place + _HEAD]
        if length := stream.frame(head):
            alike = not any((a ^ b) & bits for a, b, bits in zip(head, first, stream.fixed, strict=False))
            place = place + length
            # A frame that breaks off is one only right behind another: anything may look like a frame.
            end = place if before and alike else min(place, len(data))
            before += 1
        elif (behind := _behind_tags(data, place)) > place:
            place = behind
        else:
            # Damage, or something appended: which of the two it is depends on whether frames follow.
            starts = (match.start() for match in stream.beginning.finditer(data, place))
            place = next((start for start in starts if _is_run(data, start, stream)), len(data))
            before = 0
    return end


def _near_the_end(data: mmap.mmap, begin: int, stream: _Stream) -> int:
    """A packet of MPEG-TS not far from the end: all have one length, and such files are large."""
    count = max(0, (len(data) - begin) // _TS_PACKET - _TAIL)
    place = begin + count * _TS_PACKET
    return place if _is_run(data, place, stream) else begin


def _is_run(data: mmap.mmap, place: int, stream: _Stream) -> bool:
    """True if several frames of one stream stand end to end from here on, or frames up to the end of the file."""
    first = data[place : place + 4]
    for count in range(stream.certain):
        head = data[place : place + _HEAD]
        if not head and count:
            return True
        length = stream.frame(head)
        if not length or any((a ^ b) & bits for a, b, bits in zip(head, first, stream.fixed, strict=False)):
            return False
        place += length
    return True


def _behind_tags(data: mmap.mmap, place: int) -> int:
    """The place behind the ID3 tags that begin here."""
    while True:
        if length := id3_length(data[place : place + 10]):
            place += length
        elif data[place : place + 3] == b"TAG" and place + 128 <= len(data):
            place += 128
        else:
            return place


def is_motion_jpeg(file: BinaryIO) -> bool:
    """True if another JPEG of the same size follows right behind the first, and nothing in that one says that it belongs to it.

    Telephones and stereo cameras store gain maps, previews and second views so, and list them in the first picture (MPF).
    """
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        # Most pictures are alone, which is found out much faster than where they end.
        if data[:3] != JPEG or data.find(_JPEG_END + JPEG) < 0:
            return False
        end = jpeg_end(data)
        if not end or data[end : end + 3] != JPEG:
            return False
        head = data[: min(end, 1 << 16)]
        size = _jpeg_size(data, 0)
        return b"MPF\0" not in head and b"GContainer" not in head and size is not None and size == _jpeg_size(data, end)


def _jpeg_size(data: mmap.mmap, place: int) -> bytes | None:
    """Height and width of the JPEG that begins at `place`, as it spells them; None if it does not say."""
    place += 2
    while place + 9 < len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return data[place + 5 : place + 9]
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None


def jpeg_end(data: bytes | mmap.mmap, begin: int = 0) -> int:
    """Where the JPEG that begins at `begin` ends, behind its end marker; 0 if it has none."""
    place = begin + 2
    while True:
        place = data.find(b"\xff", place)
        if place < 0 or place + 1 >= len(data):
            return 0
        marker = data[place + 1]
        if marker == 0xD9:
            return place + 2
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:
            # A byte of the picture, a restart, or filling.
            place += 1 if marker == 0xFF else 2
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")


def _last_jpeg_end(data: mmap.mmap) -> int:
    """Where the last of several JPEGs end to end ends; the length of the file if one breaks off, which its decoder tells."""
    place = 0
    while data[place : place + 3] == JPEG:
        place = jpeg_end(data, place)
        if not place:
            return len(data)
    return place
