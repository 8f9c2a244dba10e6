"""What a media file says about its own size: the only trace that a download which broke off leaves in many formats."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

_TS_PACKET = 188
_SEGMENT = b"\x18\x53\x80\x67"  # Matroska: the element that holds everything after the header


def is_cut_off(path: Path) -> bool:
    """True if the file is shorter than its MP4 boxes, Matroska segment, RIFF or AIFF header (WAV, AVI) or MP3 Xing header says, or
    ends inside a page of Ogg, a packet of MPEG-TS, a tag of FLV or a GIF.

    False where nothing says so: other formats, streams of undeclared length, and files that are no media at all.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(12)
        if start[4:8] == b"ftyp":
            return _boxes_end(file, size) > size
        if start[:4] == b"\x1a\x45\xdf\xa3":
            return _matroska_end(file) > size
        if start[:4] == b"RIFF":
            # Writers that cannot go back leave 0 or all ones.
            declared = int.from_bytes(start[4:8], "little")
            return declared not in (0, 0xFFFFFFFF) and declared + 8 > size + 1
        if start[:4] == b"FORM" and start[8:] in (b"AIFF", b"AIFC"):
            return int.from_bytes(start[4:8], "big") + 8 > size
        if start[:4] == b"OggS":
            return _last_page_end(file, size) > size
        if start[:4] == b"FLV\x01":
            return not _ends_with_a_tag(file, size)
        if start[:3] == b"GIF":
            file.seek(max(0, size - 256))
            return not file.read().rstrip(b"\0").endswith(b";")
        if start[:1] == b"G" and _is_transport_stream(file):
            return size % _TS_PACKET != 0
        return _xing_end(file, start) > size


def _boxes_end(file: BinaryIO, size: int) -> int:
    """Where the last of the top-level boxes of an MP4 or MOV file ends."""
    end = 0
    while end < size:
        file.seek(end)
        head = file.read(16)
        if len(head) < 8:
            # Fewer bytes than a box needs; some writers pad with zeros.
            return end if not any(head) else size + 1
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        elif length == 0:
            return size  # the box reaches to the end of the file, however long that is
        if length < 8 or not all(32 <= letter < 127 or letter == 0xA9 for letter in head[4:8]):
            return end  # no box any more, but something appended
        end += length
    return end


def _matroska_end(file: BinaryIO) -> int:
    """Where the segment of a Matroska or WebM file ends; 0 if it does not say."""
    file.seek(0)
    head = file.read(4096)
    place = head.find(_SEGMENT)
    if place < 0 or place + 5 > len(head) or head[place + 4] == 0:
        return 0
    first = head[place + 4]
    width = 9 - first.bit_length()
    digits = head[place + 4 : place + 4 + width]
    value = int.from_bytes(digits, "big") & ((1 << 7 * width) - 1)
    undeclared = value == (1 << 7 * width) - 1
    return 0 if undeclared else place + 4 + width + value


def _last_page_end(file: BinaryIO, size: int) -> int:
    """Where the last page of an Ogg file ends: its header of 27 bytes, the lengths of its segments, the segments."""
    # A page has 65,307 bytes at most.
    file.seek(max(0, size - (1 << 16)))
    begin, tail = file.tell(), file.read()
    place = tail.rfind(b"OggS")
    if place < 0:
        return size
    count = tail[place + 26] if place + 26 < len(tail) else 0
    lengths = tail[place + 27 : place + 27 + count]
    complete = place + 27 <= len(tail) and len(lengths) == count
    return begin + place + 27 + count + sum(lengths) if complete else size + 1


def _ends_with_a_tag(file: BinaryIO, size: int) -> bool:
    """FLV says the length of every tag behind it too: the last four bytes lead back to the head of the last tag."""
    file.seek(max(0, size - 4))
    length = int.from_bytes(file.read(4), "big")
    if length == 0:
        return True  # no tag at all, or padding
    if length < 11 or length + 4 > size:
        return False
    file.seek(size - 4 - length)
    head = file.read(4)
    return head[0] & 0x1F in (8, 9, 18) and int.from_bytes(head[1:], "big") + 11 == length


def _is_transport_stream(file: BinaryIO) -> bool:
    file.seek(0)
    return file.read(3 * _TS_PACKET + 1)[::_TS_PACKET] == b"GGGG"


def _xing_end(file: BinaryIO, start: bytes) -> int:
    """Where the frames of an MP3 file with a Xing (or Info) header end; 0 without one."""
    tag = 0
    if start[:3] == b"ID3" and len(start) >= 10:
        # Four bytes of seven bits each.
        tag = 10 + sum((start[6 + i] & 0x7F) << 7 * (3 - i) for i in range(4))
    file.seek(tag)
    head = file.read(256)
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    place = max(head.find(b"Xing", 0, 64), head.find(b"Info", 0, 64))
    if place < 0:
        return 0
    flags = int.from_bytes(head[place + 4 : place + 8], "big")
    if not flags & 2:
        return 0
    after = place + 8 + (4 if flags & 1 else 0)
    return tag + int.from_bytes(head[after : after + 4], "big")
