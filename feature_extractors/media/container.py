"""A media file opened by PyAV: content decides what it is, never its ending, and it may name no other file."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from calmrl_lab.errors import missing_extra
from calmrl_lab.store.convert.reading.foreign_files import remedy
from feature_extractors.media.bare_streams import is_motion_jpeg, stream_end
from feature_extractors.media.containers import is_cut_off
from feature_extractors.protocols import MediaError

if TYPE_CHECKING:
    from av.container import InputContainer

# Only formats that hold their own data: playlists (HLS, DASH, concat) make FFmpeg open other files and addresses.
_FORMATS = (
    "mov,mp4,m4a,3gp,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,flv,asf,ogg,mxf,dv,ivf,h264,hevc,obu,rm,nut,mjpeg,yuv4mpegpipe,"
    "wav,w64,mp3,aac,loas,flac,aiff,mlp,amr,amrnb,amrwb,au,caf,ac3,eac3,dts,dtshd,truehd,wv,tta,ape,tak,mpc,mpc8,shn,voc,"
    "gif,apng,jpeg_pipe,png_pipe,webp_pipe,bmp_pipe,tiff_pipe,ppm_pipe,pgm_pipe,pbm_pipe,pam_pipe,j2k_pipe,qoi_pipe"
)
# Damage is an error here, not something to be painted over.
STRICT = {"err_detect": "explode"}


@contextmanager
def opened(path: Path, behind: int = 0) -> Iterator[InputContainer]:
    """The container, with FFmpeg's errors as MediaError. A file that breaks off is `truncated` even where frames could be had.

    behind: bytes at the end that do not belong to it.
    """
    try:
        import av
    except ImportError:
        raise missing_extra("av", "media", "decoding media files") from None
    with opened_file(path) as file:
        known = False
        cut_off = is_cut_off(path)
        size, end = os.fstat(file.fileno()).st_size, stream_end(file)
        try:
            options = {"format_whitelist": _FORMATS, "protocol_whitelist": ""} | STRICT
            # What makes a picture a video of them stands behind it, where FFmpeg does not look.
            kind = "mjpeg" if is_motion_jpeg(file) else None
            # Tags are often in another encoding than they say.
            with av.open(
                _Nameless(file, min(end, size - behind)), mode="r", format=kind, options=options, metadata_errors="replace"
            ) as container:
                known = True
                if (cut_off or end > size) and not _has_all_samples(container, size):
                    raise MediaError("truncated", "the file breaks off before its end")
                yield container
        except (av.error.FFmpegError, EOFError) as error:
            said = getattr(error, "strerror", None) or type(error).__name__
            if not known and getattr(error, "errno", None) == errno.EINVAL:
                said = "one that FFmpeg knows and that is not read; convert it (ffmpeg -i FILE OUT.mp4, or OUT.wav)"
            if known:
                raise MediaError("decode_error", said) from None
            if cut_off or isinstance(error, EOFError):
                raise MediaError("truncated", "the file ends before its header does") from None
            raise MediaError("not_media", f"no known media format: {_what_it_is(path) or said}") from None


def _what_it_is(path: Path) -> str | None:
    """What a file is that is no medium, and what to do with it; None if nothing is known about it."""
    with open(path, "rb") as file:
        start = file.read(1 << 16)
    if not start.strip(b"\0"):
        return "it holds zeros only, as downloads leave that were interrupted: download it again"
    if start.lstrip()[:1] in (b"{", b"["):
        return "it is text (JSON) and not the file: download it again"
    return remedy(path)


@contextmanager
def opened_file(path: Path) -> Iterator[BinaryIO]:
    """The file, for reading bytes. Raises MediaError `not_found` or `empty_file`."""
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below
    except FileNotFoundError:
        raise MediaError("not_found", "no such file") from None
    except OSError as error:
        raise MediaError("not_found", os.strerror(error.errno or 0).lower()) from None
    with file:
        if os.fstat(file.fileno()).st_size == 0:
            raise MediaError("empty_file", "the file is empty")
        yield file


def strict(stream: Any) -> Any:
    """A stream whose decoder stops at damage and uses one thread."""
    if stream.codec_context is None:
        raise MediaError("decode_error", f"the {stream.type} is of an unknown codec")
    stream.codec_context.options = STRICT
    stream.thread_type = "NONE"
    stream.thread_count = 1
    return stream


def moving_pictures(container: InputContainer) -> list[Any]:
    """The video streams but for pictures attached to a sound: the cover of a song is stored as a video of one frame."""
    from av.stream import Disposition

    return [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]


def indexed_packets(container: InputContainer, stream: Any) -> int:
    """How many packets the index of an MP4 or MOV file lists for a stream; 0 for other files. Of uncompressed sound the header counts samples instead."""
    if "mp4" not in container.format.name:
        return 0
    uncompressed = stream.codec_context is not None and stream.codec_context.name.startswith("pcm")
    return min(stream.frames, len(stream.index_entries)) if uncompressed else int(stream.frames)


def _has_all_samples(container: InputContainer, size: int) -> bool:
    """True if every sample that an MP4 file lists lies within the file, whatever the size of the box around them says."""
    streams = [*container.streams.video, *container.streams.audio]
    if "mp4" not in container.format.name or not streams or any(stream.frames == 0 for stream in streams):
        return False
    return all(
        len(stream.index_entries) >= indexed_packets(container, stream)
        and max(entry.pos + entry.size for entry in stream.index_entries) <= size
        for stream in streams
    )


class _Nameless:
    """A file without a name, as long as `end` says: FFmpeg would let the ending of a name decide."""

    def __init__(self, file: BinaryIO, end: int) -> None:
        self._file, self._end = file, end
        self.tell = file.tell
        file.seek(0)

    def read(self, count: int = -1) -> bytes:
        left = max(0, self._end - self._file.tell())
        return self._file.read(left if count < 0 else min(count, left))

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        place += {os.SEEK_CUR: self._file.tell(), os.SEEK_END: self._end}.get(whence, 0)
        # Damaged files ask for places before the file, or beyond any: FFmpeg expects a negative answer, not an exception.
        return self._file.seek(place) if 0 <= place < 1 << 43 else -errno.EINVAL
