"""Media to pictures, frames and sound, whatever kind of file or what else they come in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from feature_extractors.media.images import UnknownImage, frame_folder, image_frames, is_image
from feature_extractors.media.sound import AS_IT_IS, Hearing, SpanChoice, sound_chunks, spans, waveform
from feature_extractors.media.video import Choice, clip_frames
from feature_extractors.protocols import File, Image, MediaError, Medium, Waveform

__all__ = ["Choice", "chunks_of", "frame_folder", "image_of", "sound_of", "spans_of", "video_frames", "waveform"]


def video_frames(path: Path, choose: Choice) -> UInt8[np.ndarray, "n height width 3"]:
    """RGB frames of a video, or of an image (one, or those of a moving one), as they are meant to be seen.

    `choose` maps their number to the indices wanted. Raises MediaError as `clip_frames` and `image_frames`.
    """
    if is_image(path):
        try:
            return image_frames(path, choose)
        except UnknownImage as unknown:
            try:
                return clip_frames(path, choose)
            except MediaError as error:
                raise MediaError(error.code, str(unknown) or error.detail) from None
    return clip_frames(path, choose)


def image_of(medium: Medium) -> Image:
    """A picture from whatever shows one: in memory already, an image file, the middle frame of a video."""
    if isinstance(medium, File):
        return Image(video_frames(medium.path, lambda total: [(total + 1) // 2 - 1])[0])
    if not isinstance(medium, Image):
        raise MediaError("not_media", f"an image is needed, got {type(medium).__name__.lower()}")
    return medium


def sound_of(medium: Medium, hearing: Hearing = AS_IT_IS) -> Waveform:
    """A waveform from whatever sounds: in memory already, or a file."""
    if isinstance(medium, File):
        return Waveform(*waveform(medium.path, hearing))
    if not isinstance(medium, Waveform):
        raise MediaError("not_media", f"a waveform is needed, got {type(medium).__name__.lower()}")
    return medium


def spans_of(medium: Medium, choose: SpanChoice, hearing: Hearing = AS_IT_IS) -> tuple[list[np.ndarray], int]:
    """Spans of samples [channels, time] of whatever sounds, and their rate in Hz; `choose` maps length and rate to the spans wanted."""
    if isinstance(medium, File):
        return spans(medium.path, choose, hearing)
    sound = sound_of(medium)
    return [sound.samples[:, start:stop] for start, stop in choose(sound.samples.shape[1], sound.rate)], sound.rate


def chunks_of(medium: Medium, hearing: Hearing = AS_IT_IS) -> Iterator[tuple[np.ndarray, int]]:
    """Samples [channels, time] of whatever sounds, piece by piece, each with the rate in Hz."""
    if isinstance(medium, File):
        yield from sound_chunks(medium.path, hearing)
    else:
        sound = sound_of(medium)
        yield sound.samples, sound.rate
