"""Whether files of chunks, each with its length, break off: MXF, MPEG programs (VOB), MPEG-TS, VOC, PNG, RealMedia, NUT, IVF, AV1 and raw video (Y4M)."""

from __future__ import annotations

import re
from typing import BinaryIO

_KLV, _RANDOM_INDEX = b"\x06\x0e\x2b\x34", b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x11\x01"
_PACK, _START_CODE = b"\0\0\1\xba", b"\0\0\1"
# A pack of an MPEG program begins at least once in so many bytes; the tail is looked at, as such files are large.
_TAIL = 1 << 20
_PNG_HEAD = 8
# The OBUs of AV1: sequence header, delimiter, frame header, tiles, metadata, frame, repeated header, list of tiles, padding; those with pixels.
_OBU_KINDS, _OBU_FRAMES = (1, 2, 3, 4, 5, 6, 7, 8, 15), (3, 4, 6, 7)
_NUT_INDEX = b"NX\xdd\x67\x2f\x23\xe6\x4e"
_DELIMITER = b"\x12\0"
# Bytes of a pixel by how Y4M spells what is in one; a number behind the last letter says more than 8 bits.
_Y4M_COLOURS = {"420": (2, 2), "411": (4, 1), "422": (2, 1), "444": (1, 1), "mono": None}


def mxf_breaks(file: BinaryIO, size: int) -> bool:
    """MXF: a key, a length and a value after the other. The index at the very end is not needed; the footer is, where the head says that there is one."""
    place, footer, seen = 0, 0, 0
    while place + 17 <= size:
        file.seek(place)
        head = file.read(17 + 8 + 40)
        if not head.startswith(_KLV):
            return False
        width = head[16] & 0x7F if head[16] & 0x80 else 0
        length = int.from_bytes(head[17 : 17 + width], "big") if width else head[16]
        if place == 0 and len(head) >= 17 + width + 32:
            # The header partition: version, KAG size, this, previous and footer partition.
            footer = int.from_bytes(head[17 + width + 24 : 17 + width + 32], "big")
        if head.startswith(_RANDOM_INDEX):
            return False
        seen, place = place, place + 17 + width + length
    return place > size or seen < footer


def program_breaks(file: BinaryIO, size: int) -> bool:
    """MPEG programs (.mpg, .vob): packs of packets with lengths. What begins with no start code was appended."""
    file.seek(max(0, size - _TAIL))
    data = file.read()
    place = data.find(_PACK)
    while 0 <= place < len(data):
        head = data[place : place + 14]
        if not head.startswith(_START_CODE):
            return False
        if len(head) < 4 or head[3] == 0xB9:
            return len(head) < 4
        if head[3] == 0xBA:
            mpeg2 = len(head) > 4 and head[4] >> 6 == 1
            place += 14 + (head[13] & 7 if len(head) == 14 else 0) if mpeg2 else 12
        elif head[3] < 0xBB:
            return False
        else:
            place += 6 + int.from_bytes(head[4:6], "big")
    return place > len(data)


def transport_breaks(file: BinaryIO, size: int, packet: int, mark: int) -> bool:
    """MPEG-TS: the last packet is incomplete. `mark`: where in a packet its G stands. What has no G there was appended."""
    file.seek(size - size % packet + mark)
    return file.read(1) == b"G"


def voc_breaks(file: BinaryIO, size: int) -> bool:
    place = int.from_bytes(file.read(22)[20:22], "little")
    while place + 4 <= size:
        file.seek(place)
        head = file.read(4)
        if not 0 < head[0] < 10:
            return False
        place += 4 + int.from_bytes(head[1:4], "little")
    return place > size


def png_breaks(file: BinaryIO, size: int) -> bool:
    """PNG: a chunk with pixels reaches beyond the file, or there are fewer frames than an animation is said to have."""
    place, declared, frames = _PNG_HEAD, 0, 0
    while place + 8 <= size:
        file.seek(place)
        head = file.read(12)
        name, length = head[4:8], int.from_bytes(head[:4], "big")
        if name == b"IEND" or not name.isalpha():
            return name == b"IEND" and frames < declared
        declared = int.from_bytes(head[8:12], "big") if name == b"acTL" else declared
        frames += name == b"fcTL"
        place += 12 + length
        if place > size:
            # The checksum of the last pixels may be missing.
            return name not in (b"IDAT", b"fdAT") or frames < declared or place - 4 > size
    return frames < declared


def real_breaks(file: BinaryIO, size: int) -> bool:
    """RealMedia: there are fewer packets than the chunk with the packets is said to have. The index behind them is not needed."""
    place = 0
    while place + 18 <= size:
        file.seek(place)
        head = file.read(18)
        length = int.from_bytes(head[4:8], "big")
        if head[:4] == b"DATA":
            # A broadcast leaves a number of zero.
            return not _has_real_packets(file, size, place + 18, int.from_bytes(head[10:14], "big"))
        if length < 8:
            return False
        place += length
    return True


def _has_real_packets(file: BinaryIO, size: int, place: int, count: int) -> bool:
    for _ in range(count):
        file.seek(place)
        head = file.read(4)
        length = int.from_bytes(head[2:4], "big")
        if len(head) < 4 or place + length > size:
            return False
        if head[:2] not in (b"\0\0", b"\0\1") or length < 12:
            return True  # damage, which decoding tells, or a number that lies
        place += length
    return True


def nut_end(file: BinaryIO, size: int) -> int:
    """Where a NUT file with an index ends, behind this; `size` for one without."""
    file.seek(max(0, size - _TAIL))
    data = file.read()
    place = data.rfind(_NUT_INDEX)
    if place < 0:
        return size
    length, end = 0, place + len(_NUT_INDEX)
    while end < len(data):
        length, more = length << 7 | data[end] & 0x7F, data[end] & 0x80
        end += 1
        if not more:
            break
    # A long packet has a checksum of its head.
    return min(size, size - len(data) + end + length + (4 if length > 4096 else 0))


def obu_end(file: BinaryIO, size: int) -> int:
    """Where the last frame of an AV1 video without a container ends (low overhead format); beyond `size` if it breaks off.

    Units of one time begin with a delimiter; what stands behind one and is neither the next nor an OBU that may follow was appended.
    """
    place, end, follows = 0, 0, False
    while place < size:
        file.seek(place)
        head = file.read(10)
        kind = head[0] >> 3
        # One forbidden bit, one reserved, and a size is there: without it, only a container says where an OBU ends.
        if head[0] & 0x83 != 2 or kind not in _OBU_KINDS or (kind == 2) != (head[:2] == _DELIMITER) or (kind == 1 and follows):
            break
        begin = 2 if head[0] & 4 else 1
        length, used = _leb128(head[begin:])
        if length is None:
            return size + 1 if place + len(head) >= size and kind in _OBU_FRAMES else end
        place += begin + used + length
        # A header of a sequence stands before the first frame of its unit only.
        follows = kind in _OBU_FRAMES or (follows and kind != 2)
        if kind in _OBU_FRAMES or place > size:
            end = place
    return end if end else size


def _leb128(digits: bytes) -> tuple[int | None, int]:
    """A size of AV1 and its width in bytes; None if it goes on behind `digits`."""
    value = 0
    for place, digit in enumerate(digits[:8]):
        value |= (digit & 0x7F) << 7 * place
        if not digit & 0x80:
            return value, place + 1
    return None, 0


def ivf_end(file: BinaryIO, size: int) -> int:
    """Where the last frame of an IVF file ends; beyond `size` if it breaks off. Frames that begin earlier than the one before are none."""
    place, last = int.from_bytes(file.read(8)[6:8], "little"), -1
    while place + 12 <= size:
        file.seek(place)
        head = file.read(12)
        length, time = int.from_bytes(head[:4], "little"), int.from_bytes(head[4:12], "little")
        if not 0 < length < 1 << 26 or not last < time < last + (1 << 24):
            return place
        place, last = place + 12 + length, time
    return place


def y4m_end(file: BinaryIO, size: int) -> int:
    """Where the last frame of raw video (YUV4MPEG2) ends; beyond `size` if it breaks off, `size` if its kind is not known."""
    head = file.readline(1 << 12)
    fields = {word[:1]: word[1:].decode("ascii", "replace") for word in head.split()[1:]}
    kind = re.fullmatch(r"(420|411|422|444|mono)(jpeg|mpeg2|paldv|alpha)?(?:p?(\d+))?", fields.get(b"C", "420"))
    if kind is None or not fields.get(b"W", "").isdecimal() or not fields.get(b"H", "").isdecimal():
        return size
    width, height, divided = int(fields[b"W"]), int(fields[b"H"]), _Y4M_COLOURS[kind[1]]
    pixels = width * height * (2 if kind[2] == "alpha" else 1)
    if divided is not None:
        across, down = divided
        pixels += 2 * -(-width // across) * -(-height // down)
    frame = pixels * (2 if int(kind[3] or 8) > 8 else 1)
    place = len(head)
    while place < size:
        file.seek(place)
        line = file.readline(1 << 10)
        if not line.startswith(b"FRAME"):
            return place
        place += len(line) + frame
    return place
