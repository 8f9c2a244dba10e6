"""Sound of media files, through PyAV: all of it, chosen spans of it, or piece by piece, so that hours need no memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from feature_extractors.media.container import STRICT, indexed_packets, moving_pictures, opened, strict
from feature_extractors.protocols import AbsentError, MediaError

if TYPE_CHECKING:
    from av.container import InputContainer

# Maps the number of samples per channel and the rate in Hz to the half-open spans wanted.
SpanChoice = Callable[[int, int], Sequence[tuple[int, int]]]
Samples = Float32[np.ndarray, "channels time"]

# Sounds of up to so many values are kept from the first pass; longer ones are decoded twice.
_KEPT_VALUES = 1 << 24
# Streams without a container around them: what stands behind the last frame is no frame that is damaged.
_BARE = ("mp3", "aac", "ac3", "eac3", "dts", "dtshd", "truehd", "mpc", "mpc8", "loas")


@dataclass(frozen=True)
class Hearing:
    """Settings for decoding the sound of a file.

    `track_rate`: the sound track of a video is mixed to one channel at this rate in Hz and rounded to 16 bits, as `ffmpeg -ac 1 -ar RATE` writes it
    to a WAV file (None: as it is). `lead_in`: an MP3 file is heard from the first sample that a decoder without knowledge of LAME's header makes, as
    libmad does: the frame of the header as silence, then the encoder's delay, and the padding at the end.
    """

    track_rate: int | None = None
    lead_in: bool = False


AS_IT_IS = Hearing()


def waveform(path: Path, hearing: Hearing = AS_IT_IS) -> tuple[Samples, int]:
    """All samples of the first sound track in [-1, 1], and their rate in Hz.

    Raises AbsentError if the file has other streams but no sound, or a track without samples; MediaError as `clip_frames`.
    """
    chunks: list[np.ndarray] = []
    rate = 0
    for chunk, rate in sound_chunks(path, hearing):  # noqa: B007 - the rate of the last one is that of all
        chunks.append(chunk)
    return np.concatenate(chunks, axis=1), rate


def spans(path: Path, choose: SpanChoice, hearing: Hearing = AS_IT_IS) -> tuple[list[Samples], int]:
    """The spans of samples that `choose` wants of the first sound track, and the rate in Hz.

    All of the file is decoded, so that damage anywhere is found, but of long sounds only the spans are held in memory. Raises as `waveform`.
    """
    kept: list[np.ndarray] | None = []
    length = rate = 0
    for chunk, rate in sound_chunks(path, hearing):  # noqa: B007
        length += chunk.shape[1]
        if kept is not None:
            kept.append(chunk)
            if length * len(chunk) > _KEPT_VALUES:
                kept = None
    wanted = choose(length, rate)
    again = kept if kept is not None else (chunk for chunk, _ in sound_chunks(path, hearing))
    return _cut(again, wanted), rate


def _cut(chunks: Sequence[np.ndarray] | Iterator[np.ndarray], wanted: Sequence[tuple[int, int]]) -> list[Samples]:
    """The wanted spans of what the chunks are end to end."""
    pieces: list[list[np.ndarray]] = [[] for _ in wanted]
    channels, begin = 1, 0
    for chunk in chunks:
        channels, end = len(chunk), begin + chunk.shape[1]
        for place, (start, stop) in enumerate(wanted):
            if start < end and stop > begin:
                pieces[place].append(chunk[:, max(0, start - begin) : stop - begin].copy())
        begin = end
    return [np.concatenate(parts, axis=1) if parts else np.zeros((channels, 0), np.float32) for parts in pieces]


def sound_chunks(path: Path, hearing: Hearing = AS_IT_IS) -> Iterator[tuple[Samples, int]]:
    """The first sound track piece by piece, with its rate in Hz. Raises as `waveform`, also when the last piece has come."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for chunk, rate in _decoded(path, hearing):
        seen.add((len(chunk), rate))
        total += chunk.shape[1]
        if len(seen) > 1:
            raise MediaError("decode_error", "the sampling rate or the number of channels changes on the way")
        yield chunk, rate
    if not total:
        raise AbsentError("the sound track is empty")


def _decoded(path: Path, hearing: Hearing) -> Iterator[tuple[Samples, int]]:
    with opened(path) as container:
        if not container.streams.audio:
            raise AbsentError("no sound track")
        stream = strict(container.streams.audio[0])
        frames = _frames(container, stream)
        if hearing.track_rate is not None and moving_pictures(container):
            yield from _mixed(frames, hearing.track_rate)
            return
        if hearing.lead_in and container.format.name == "mp3":
            stream.codec_context.options = {**STRICT, "flags2": "+skip_manual"}
            yield from _with_header_frame(path, frames)
            return
        for frame in frames:
            yield _samples(frame), frame.sample_rate


def _frames(container: InputContainer, stream: Any) -> Iterator[Any]:
    """Decoded frames. In a bare stream an error counts only if frames follow it, or if it is a frame that breaks off."""
    from av.error import FFmpegError

    bare = container.format.name in _BARE
    failed: FFmpegError | None = None
    indexed = indexed_packets(container, stream)
    packets = 0
    for packet in container.demux(stream):
        packets += packet.size > 0
        try:
            frames = packet.decode()
        except FFmpegError as error:
            if not bare:
                raise
            failed = failed or error
            continue
        if frames and failed is not None:
            raise failed
        yield from frames
    if packets < indexed:
        raise MediaError("truncated", f"the sound ends after {packets} of {indexed} packets")


def _mixed(frames: Iterator[Any], rate: int) -> Iterator[tuple[Samples, int]]:
    """Frames as FFmpeg's own mixer makes one channel of them, rounded to 16 bits."""
    from av import AudioResampler

    resampler = AudioResampler(format="s16", layout="mono", rate=rate)
    for frame in frames:
        frame.pts = None
        for made in resampler.resample(frame):
            yield _samples(made), rate
    for made in resampler.resample(None):
        yield _samples(made), rate


def _with_header_frame(path: Path, frames: Iterator[Any]) -> Iterator[tuple[Samples, int]]:
    """Frames of an MP3 file behind the silence as which the frame of its Xing or Info header is heard."""
    silent = _has_header_frame(path)
    for frame in frames:
        chunk = _samples(frame)
        if silent:
            yield np.zeros((len(chunk), 1152 if frame.sample_rate >= 32_000 else 576), np.float32), frame.sample_rate
            silent = False
        yield chunk, frame.sample_rate


def _has_header_frame(path: Path) -> bool:
    from feature_extractors.media.containers import id3_length

    with open(path, "rb") as file:
        file.seek(id3_length(file.read(10)))
        head = file.read(64)
    return b"Xing" in head or b"Info" in head


def _samples(frame: Any) -> Samples:
    """The samples as they are, scaled to [-1, 1]: no resampler, whose rounding would differ between versions."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, len(frame.layout.channels)).T
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - 128) / 128
    if values.dtype.kind == "i":
        return (values / float(-int(np.iinfo(values.dtype).min))).astype(np.float32)
    return np.ascontiguousarray(values, dtype=np.float32)
