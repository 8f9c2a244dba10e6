"""Size of a media file according to its own header, by which downloads that broke off are detected."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from feature_extractors.media import chunks

# Bytes of a packet of MPEG-TS, and where its G stands: behind a time in the files of cameras and discs (.m2ts).
_TS_PACKETS = ((188, 0), (192, 4))
_SEGMENT = b"\x18\x53\x80\x67"  # Matroska: the element that holds everything after the header
_EBML = b"\x1a\x45\xdf\xa3"
_CLUSTER = b"\x1f\x43\xb6\x75"
# What a segment consists of: its head, clusters, cues, chapters, attachments and tags; and a cluster: blocks, times, positions.
_ELEMENTS = (
    _CLUSTER, b"\x11\x4d\x9b\x74", b"\x15\x49\xa9\x66", b"\x16\x54\xae\x6b", b"\x1c\x53\xbb\x6b", b"\x10\x43\xa7\x70", b"\x19\x41\xa4\x69",
    b"\x12\x54\xc3\x67", b"\xec", b"\xbf", b"\xa3", b"\xa0", b"\xe7", b"\xa7", b"\xab", b"\x58\x54",
)  # fmt: skip
_ASF_HEADER, _ASF_DATA = b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"\x36\x26\xb2\x75\x8e\x66\xcf\x11"
# Boxes of MP4 that hold samples or say where they are; what else a file lacks at its end does no harm.
_NEEDED_BOXES = (b"mdat", b"moov", b"moof")
_KNOWN_BOXES = (
    *_NEEDED_BOXES, b"ftyp", b"free", b"skip", b"wide", b"uuid", b"meta", b"mfra", b"sidx", b"ssix", b"styp", b"emsg", b"pdin",
    b"prft", b"pnot", b"udta", b"junk", b"PICT",
)  # fmt: skip
# What writers that cannot go back leave where a size belongs: zero, all ones, the largest signed number, and a little below each.
_PLACEHOLDERS = (
    (0, 0),
    (0x7F000000, 0x7F010000),
    ((1 << 31) - (1 << 20), (1 << 31) + (1 << 20)),
    ((1 << 32) - (1 << 20), 1 << 32),
)


def is_cut_off(path: Path) -> bool:
    """True if the file ends before what it says it holds: MP4 boxes with samples, the Matroska segment, the data of WAV, AIFF, AU, CAF,
    AVI and ASF, the frames counted by the Xing header of an MP3, or inside a page of Ogg, a packet of MPEG-TS or of an MPEG program, a tag of FLV,
    a block of a GIF, a chunk of MXF, VOC, RealMedia or PNG, a frame of IVF or Y4M.

    False where nothing says so: other formats, streams of undeclared length (placeholders included), and files that are no media at
    all. Bytes behind the end are never damage, and neither is a size that lies where all that is needed is there.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(16)
        for recognised, ends_early in _CHECKS:
            if recognised(start):
                file.seek(0)
                return ends_early(file, size)
        file.seek(0)
        for packet, mark in _TS_PACKETS:
            file.seek(0)
            if file.read(3 * packet + mark + 1)[mark::packet] == b"GGGG":
                return chunks.transport_breaks(file, size, packet, mark)
        return _xing_end(file, start) > size


def is_placeholder(declared: int) -> bool:
    """True for a size (32 bits) that a writer left because it did not know the length yet."""
    return any(low <= declared <= high for low, high in _PLACEHOLDERS)


def _boxes_break(file: BinaryIO, size: int) -> bool:
    """MP4 and MOV: a top-level box with samples, or with what is known about them, reaches beyond the file or is not there."""
    end, seen = 0, set()
    while end < size:
        file.seek(end)
        head = file.read(16)
        kind, length = head[4:8], int.from_bytes(head[:4], "big")
        if kind not in _KNOWN_BOXES:
            break  # no box any more, but something appended
        seen.add(kind)
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:
            break  # zero: the box reaches to the end of the file, however long that is
        end += length
        if end > size and kind in _NEEDED_BOXES:
            return True
    return b"mdat" in seen and not seen & {b"moov", b"moof"}


def _matroska_breaks(file: BinaryIO, size: int) -> bool:
    """Matroska and WebM: the segment is longer than the file, and the file ends inside one of its elements."""
    head = file.read(4096)
    place = head.find(_SEGMENT)
    if place < 0 or place + 5 > len(head):
        return False
    length, width = _vint(head[place + 4 : place + 12])
    begin = place + 4 + width
    declared = length is not None
    if length is not None and begin + length <= size:
        return False
    while begin < size:
        file.seek(begin)
        head = file.read(12)
        name = 5 - (head[0] >> 4).bit_length() if head[0] >= 16 else 9
        known = head[:name] in _ELEMENTS
        length, width = _vint(head[name:])
        if not known or (length is None and head[:name] != _CLUSTER):
            # Not an element: appended to a segment without a length, or damage where the segment is not all there.
            return declared
        # Recorders leave the length of a cluster open; its blocks have theirs.
        begin += name + width + (length or 0)
    return begin > size


def _vint(digits: bytes) -> tuple[int | None, int]:
    """A size of Matroska and its width in bytes; None if it is undeclared or no size at all."""
    if not digits or digits[0] == 0:
        return None, 1
    width = 9 - digits[0].bit_length()
    value = int.from_bytes(digits[:width], "big") & ((1 << 7 * width) - 1)
    return (None if value == (1 << 7 * width) - 1 or len(digits) < width else value), width


def _riff_breaks(file: BinaryIO, size: int) -> bool:
    """WAV (also RF64) and AVI: the chunk with the samples, a list of pictures or their index reaches beyond the file."""
    head = file.read(12)
    needed = {b"WAVE": (b"data",), b"AVI ": (b"LIST", b"idx1")}.get(head[8:12])
    if needed is None:
        # WebP, and what else there is: their decoders tell.
        declared = int.from_bytes(head[4:8], "little")
        return not is_placeholder(declared) and declared + 8 > size + 1
    place, long, found = 12, 0, False
    while place + 8 <= size:
        file.seek(place)
        chunk = file.read(36)
        name, length = chunk[:4], int.from_bytes(chunk[4:8], "little")
        if name == b"ds64":
            long = int.from_bytes(chunk[16:24], "little")
        if name == b"data" and length == 0xFFFFFFFF and long:
            length = long
        elif name in (b"data", b"LIST", b"RIFF") and is_placeholder(length):
            # As far as it goes. A list of pictures that holds nothing was never finished either.
            return False
        end = place + 8 + length + length % 2
        if name in needed and (place + 8 + length if name == b"data" else end - 1) > size:
            return True
        found = found or name == b"data" or chunk[8:12] == b"movi"
        if name == b"data":
            return False  # what stands behind the samples is not needed
        # Further parts of a large AVI follow as RIFF chunks of their own.
        place = place + 12 if name == b"RIFF" else end
    return not found and int.from_bytes(head[4:8], "little") + 8 > size


def _aiff_breaks(file: BinaryIO, size: int) -> bool:
    place = 12
    while place + 8 <= size:
        file.seek(place)
        chunk = file.read(8)
        length = int.from_bytes(chunk[4:8], "big")
        if chunk[:4] == b"SSND":
            return not is_placeholder(length) and place + 8 + length > size
        place += 8 + length + length % 2
    return True  # no sound before the end


def _au_breaks(file: BinaryIO, size: int) -> bool:
    head = file.read(12)
    offset, length = int.from_bytes(head[4:8], "big"), int.from_bytes(head[8:12], "big")
    return not is_placeholder(length) and offset + length > size


def _caf_breaks(file: BinaryIO, size: int) -> bool:
    place = 8
    while place + 12 <= size:
        file.seek(place)
        chunk = file.read(12)
        length = int.from_bytes(chunk[4:12], "big", signed=True)
        if chunk[:4] == b"data" and length < 0:
            return False
        place += 12 + length
        if chunk[:4] == b"data":
            return place > size
        if length < 0:
            return False
    return False


def _w64_breaks(file: BinaryIO, size: int) -> bool:
    declared = int.from_bytes(file.read(24)[16:24], "little")
    return 0 < declared < 1 << 62 and declared > size


def _asf_breaks(file: BinaryIO, size: int) -> bool:
    """WMA and WMV: the data object reaches beyond the file. Its length is zero, or just its own head, in a broadcast."""
    begin = int.from_bytes(file.read(24)[16:24], "little")
    file.seek(begin)
    head = file.read(24)
    if head[:8] != _ASF_DATA:
        return begin >= size
    length = int.from_bytes(head[16:24], "little")
    return length > 50 and begin + length > size


def _ogg_breaks(file: BinaryIO, size: int) -> bool:
    """The last page reaches beyond the file: its header of 27 bytes, the lengths of its segments, the segments."""
    # A page has 65,307 bytes at most.
    file.seek(max(0, size - (1 << 16)))
    tail = file.read()
    place = tail.rfind(b"OggS")
    if place < 0:
        return False
    count = tail[place + 26] if place + 26 < len(tail) else 0
    lengths = tail[place + 27 : place + 27 + count]
    complete = place + 27 <= len(tail) and len(lengths) == count
    return not complete or place + 27 + count + sum(lengths) > len(tail)


def _flv_breaks(file: BinaryIO, size: int) -> bool:
    """FLV is a header and tags end to end, each with its length before it and behind it."""
    place = int.from_bytes(file.read(9)[5:9], "big") + 4
    while place < size:
        file.seek(place)
        head = file.read(11)
        if not head or head[0] & 0x1F not in (8, 9, 18) or any(head[8:11]):
            return False  # no tag any more, but something appended
        # The length behind the last tag may be missing.
        place += 11 + int.from_bytes(head[1:4], "big")
        if len(head) < 11 or place > size:
            return True
        place += 4
    return False


def _gif_breaks(file: BinaryIO, size: int) -> bool:
    """The file ends inside a block. Where it ends between two, all its pictures are whole even without the trailer."""
    head = file.read(13)
    if len(head) < 13:
        return True
    file.seek(_colours(head[10]), os.SEEK_CUR)
    while kind := file.read(1):
        if kind == b"!":
            file.seek(1, os.SEEK_CUR)
        elif kind == b",":
            described = file.read(9)
            if len(described) < 9:
                return True
            file.seek(_colours(described[8]) + 1, os.SEEK_CUR)
        else:
            return False  # the trailer, or bytes behind the last block
        while (length := file.read(1)) not in (b"\0", b""):
            file.seek(length[0], os.SEEK_CUR)
        if not length or file.tell() > size:
            return True
    return file.tell() > size


def _colours(flags: int) -> int:
    """Bytes of a colour table."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _xing_end(file: BinaryIO, start: bytes) -> int:
    """Where the frames of an MP3 file with a Xing (or Info) header end; 0 without one."""
    tag = id3_length(start)
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


def id3_length(start: bytes) -> int:
    """The length of the ID3v2 tag that begins so; 0 if none does."""
    if start[:3] != b"ID3" or len(start) < 10:
        return 0
    # Four bytes of seven bits each; a footer repeats the head.
    return 10 + sum((start[6 + i] & 0x7F) << 7 * (3 - i) for i in range(4)) + (10 if start[5] & 0x10 else 0)


_Check = tuple[Callable[[bytes], bool], Callable[[BinaryIO, int], bool]]
_CHECKS: tuple[_Check, ...] = (
    (lambda start: start[4:8] in _KNOWN_BOXES, _boxes_break),
    (lambda start: start[:4] == _EBML, _matroska_breaks),
    (lambda start: start[:4] in (b"RIFF", b"RF64", b"BW64"), _riff_breaks),
    (lambda start: start[:4] == b"riff" and start[4:8] == b"\x2e\x91\xcf\x11", _w64_breaks),
    (lambda start: start[:4] == b"FORM" and start[8:12] in (b"AIFF", b"AIFC"), _aiff_breaks),
    (lambda start: start[:4] == b".snd", _au_breaks),
    (lambda start: start[:4] == b"caff", _caf_breaks),
    (lambda start: start[:8] == _ASF_HEADER, _asf_breaks),
    (lambda start: start[:4] == b"OggS", _ogg_breaks),
    (lambda start: start[:4] == b"FLV\x01", _flv_breaks),
    (lambda start: start[:3] == b"GIF", _gif_breaks),
    (lambda start: start[:4] == b"\x06\x0e\x2b\x34", chunks.mxf_breaks),
    (lambda start: start[:4] == b"\0\0\1\xba", chunks.program_breaks),
    (lambda start: start[:16] == b"Creative Voice F", chunks.voc_breaks),
    (lambda start: start[:4] == b".RMF", chunks.real_breaks),
    (lambda start: start[:8] == b"\x89PNG\r\n\x1a\n", chunks.png_breaks),
    (lambda start: start[:4] == b"DKIF", lambda file, size: chunks.ivf_end(file, size) > size),
    (lambda start: start[:10] == b"YUV4MPEG2 ", lambda file, size: chunks.y4m_end(file, size) > size),
)
