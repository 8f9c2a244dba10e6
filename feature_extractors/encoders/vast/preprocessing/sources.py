"""Media to what VAST's encoders start from: chosen frames, a text."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from feature_extractors.media.decode import Choice, frame_folder, video_frames
from feature_extractors.media.sampling import middle_of_segments
from feature_extractors.protocols import File, Image, MediaError, Medium, Text


def frames(medium: Medium, count: int, reject_short: bool = False) -> UInt8[np.ndarray, "n height width 3"]:
    """RGB frames: the lower middle of each of `count` segments of a video or of a folder of images, the one frame of an image.

    A clip with fewer frames repeats its last one; with `reject_short` it raises MediaError `too_short`. A single frame is taken for
    an image, which is never too short; repeating it would change no mean.
    """

    def choose(total: int) -> list[int]:
        if total == 1:
            return [0]
        if reject_short and total < count:
            raise MediaError("too_short", f"{total} frames, {count} are needed")
        return middle_of_segments(total, count)

    return chosen_frames(medium, choose)


def chosen_frames(medium: Medium, choose: Choice) -> UInt8[np.ndarray, "n height width 3"]:
    """RGB frames of a video, of a folder of images, or the one frame of an image; `choose` maps their number to the indices wanted."""
    if isinstance(medium, Image):
        return medium.pixels[None]
    if not isinstance(medium, File):
        raise MediaError("not_media", f"a video or an image is needed, got {type(medium).__name__.lower()}")
    return frame_folder(medium.path, choose) if medium.path.is_dir() else video_frames(medium.path, choose)


def text(medium: Medium) -> str:
    """The text itself."""
    if not isinstance(medium, Text):
        raise MediaError("not_media", f"a text is needed, got {type(medium).__name__.lower()}")
    return medium.text
