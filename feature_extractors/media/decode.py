"""Media files to frames and waveforms, through PyAV: content decides what a file is, never its ending."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, UInt8

from calmrl_lab.errors import missing_extra
from feature_extractors.media.containers import is_cut_off
from feature_extractors.media.gops import Packet, is_leading, stretches
from feature_extractors.protocols import AbsentError, File, Image, MediaError, Medium, Waveform

if TYPE_CHECKING:
    from av.container import InputContainer

Choice = Callable[[int], Sequence[int]]

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
# Only formats that hold their own data: playlists (HLS, DASH, concat) make FFmpeg open other files and addresses.
_FORMATS = (
    "mov,mp4,m4a,3gp,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,flv,asf,ogg,mxf,dv,ivf,h264,hevc,obu,"
    "wav,w64,mp3,aac,flac,aiff,amr,au,caf,gif,apng,jpeg_pipe,png_pipe,webp_pipe,bmp_pipe,tiff_pipe,ppm_pipe"
)
# Decoding groups apart must leave out this share at least: a second look at the file where it fails is not free.
_WORTH_SKIPPING = 0.8
# Damage is an error here, not something to be painted over.
_STRICT = {"err_detect": "explode"}


def video_frames(path: Path, choose: Choice) -> UInt8[np.ndarray, "n height width 3"]:
    """RGB frames of a video (or the one of an image), turned as its header asks; `choose` maps their number to the indices wanted.

    Two passes: the packets are listed, then frames are decoded in order and found by their place, so that variable frame rates, key
    frames far apart and wrong indexes in the file cannot lead to a wrong frame. Groups of pictures without a wanted frame are not decoded.
    Raises MediaError: `not_found`, `empty_file`, `not_media`, `no_stream`, `truncated` (the file ends before it says it does), `decode_error`.
    """
    with _opened(path) as container:
        packets = _packets(container)
    total = sum(packet.shown for packet in packets)
    if total == 0:
        raise MediaError("no_stream", "the video stream is empty")
    wanted = choose(total)
    found = _decode_groups(path, packets, wanted)
    if found is None:
        found, seen = _decode_all(path, wanted)
        if len(found) < len(set(wanted)) and seen:
            # Packets that show nothing (packed B-frames): count what is shown, and choose again.
            wanted = choose(seen)
            found, _ = _decode_all(path, wanted)
    if len(found) < len(set(wanted)):
        raise MediaError("decode_error", f"frame {max(wanted)} of {total} could not be decoded")
    return np.stack([found[index] for index in wanted])


def frame_folder(folder: Path, choose: Choice) -> UInt8[np.ndarray, "n height width 3"]:
    """Frames kept as images in a folder, in the order of their names.

    Decoded by Pillow, as released loaders do: FFmpeg spreads the colours of a JPEG differently, .01 of a normalised pixel on average.
    """
    names = sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(IMAGE_ENDINGS))
    if not names:
        raise MediaError("empty_file", "a folder without images")
    wanted = choose(len(names))
    read = {index: _still(folder / names[index]) for index in sorted(set(wanted))}
    sizes = {pixels.shape for pixels in read.values()}
    if len(sizes) > 1:
        raise MediaError("decode_error", "the images of one folder have several sizes")
    return np.stack([read[index] for index in wanted])


def _still(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of an image file. Raises MediaError `not_found`, `empty_file`, `not_media` or `truncated`."""
    from PIL import Image as Picture
    from PIL import UnidentifiedImageError

    try:
        if path.stat().st_size == 0:
            raise MediaError("empty_file", f"{path.name} is empty")
        with Picture.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except FileNotFoundError:
        raise MediaError("not_found", f"no {path.name}") from None
    except UnidentifiedImageError:
        raise MediaError("not_media", f"{path.name} is no known image") from None
    except (OSError, SyntaxError) as error:
        raise MediaError("truncated", f"{path.name}: {error}") from None


def waveform(path: Path) -> tuple[Float32[np.ndarray, "channels time"], int]:
    """All samples of the first sound track in [-1, 1], and their rate in Hz.

    Raises AbsentError if the file has other streams but no sound, or a track without samples; MediaError as `video_frames`.
    """
    chunks: list[np.ndarray] = []
    rates: set[int] = set()
    with _opened(path) as container:
        if not container.streams.audio:
            raise AbsentError("no sound track")
        stream = _strict(container.streams.audio[0])
        for frame in container.decode(stream):
            chunks.append(_samples(frame))
            rates.add(frame.sample_rate)
    if not sum(chunk.shape[1] for chunk in chunks):
        raise AbsentError("the sound track is empty")
    if len(rates) > 1 or len({len(chunk) for chunk in chunks}) > 1:
        raise MediaError("decode_error", "the sampling rate or the number of channels changes on the way")
    return np.concatenate(chunks, axis=1), rates.pop()


def image_of(medium: Medium) -> Image:
    """A picture from whatever shows one: in memory already, an image file, the middle frame of a video."""
    if isinstance(medium, File):
        return Image(video_frames(medium.path, lambda total: [(total + 1) // 2 - 1])[0])
    if not isinstance(medium, Image):
        raise MediaError("not_media", f"an image is needed, got {type(medium).__name__.lower()}")
    return medium


def sound_of(medium: Medium) -> Waveform:
    """A waveform from whatever sounds: in memory already, or a file."""
    if isinstance(medium, File):
        return Waveform(*waveform(medium.path))
    if not isinstance(medium, Waveform):
        raise MediaError("not_media", f"a waveform is needed, got {type(medium).__name__.lower()}")
    return medium


@contextmanager
def _opened(path: Path) -> Iterator[InputContainer]:
    """The container, with FFmpeg's complaints as MediaError. A file that breaks off is `truncated` even where frames could be had."""
    try:
        import av
    except ImportError:
        raise missing_extra("av", "media", "decoding media files") from None
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below
    except FileNotFoundError:
        raise MediaError("not_found", "no such file") from None
    except OSError as error:
        raise MediaError("not_found", os.strerror(error.errno or 0).lower()) from None
    with file:
        if os.fstat(file.fileno()).st_size == 0:
            raise MediaError("empty_file", "the file is empty")
        known = False
        try:
            cut_off = is_cut_off(path)
            options = {"format_whitelist": _FORMATS, "protocol_whitelist": ""} | _STRICT
            # Tags are often in another encoding than they say.
            with av.open(_Nameless(file), mode="r", options=options, metadata_errors="replace") as container:
                known = True
                if cut_off:
                    raise MediaError("truncated", "the file breaks off before its end")
                yield container
        except (av.error.FFmpegError, EOFError) as error:
            said = getattr(error, "strerror", None) or type(error).__name__
            if known:
                raise MediaError("decode_error", said) from None
            if cut_off or isinstance(error, EOFError):
                raise MediaError("truncated", "the file ends before its header does") from None
            raise MediaError("not_media", f"no known media format: {said}") from None


class _Nameless:
    """A file without a name: FFmpeg would let the ending of one decide."""

    def __init__(self, file: Any) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def _video_stream(container: InputContainer) -> Any:
    from av.stream import Disposition

    # The cover of a song is stored as a video of one frame.
    shown = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not shown:
        raise MediaError("no_stream", "no video stream")
    return _strict(shown[0])


def _strict(stream: Any) -> Any:
    """A stream whose decoder stops at damage and uses one thread."""
    if stream.codec_context is None:
        raise MediaError("decode_error", f"the {stream.type} is of an unknown codec")
    stream.codec_context.options = _STRICT
    stream.thread_type = "NONE"
    stream.thread_count = 1
    return stream


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
    indexed = stream.frames if "mp4" in container.format.name else 0
    if broken or len(packets) < indexed:
        raise MediaError("truncated", f"the video ends after {len(packets)} of {indexed or 'more'} packets")
    return packets


def _decode_groups(path: Path, packets: Sequence[Packet], wanted: Sequence[int]) -> dict[int, np.ndarray] | None:
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
        with _opened(path) as container:
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


def _decode_all(path: Path, wanted: Sequence[int]) -> tuple[dict[int, np.ndarray], int]:
    """The wanted frames by index, and how many frames were decoded (all of them if a wanted one was not reached)."""
    needed, last = set(wanted), max(wanted)
    found: dict[int, np.ndarray] = {}
    seen = 0
    with _opened(path) as container:
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
    # `rotation` is how far to turn counter-clockwise, in degrees. (Of a header that also asks for a mirror image PyAV tells the turn only.)
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4))


def _samples(frame: Any) -> Float32[np.ndarray, "channels time"]:
    """The samples as they are, scaled to [-1, 1]: no resampler, whose rounding would differ between versions."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, len(frame.layout.channels)).T
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - 128) / 128
    if values.dtype.kind == "i":
        return (values / float(-int(np.iinfo(values.dtype).min))).astype(np.float32)
    return np.ascontiguousarray(values, dtype=np.float32)
