"""Endings of the names of media files, for telling a path from a text and an id from the name of its file."""

from __future__ import annotations

# In the order in which files of one id are looked for: first those that released code looks for.
VIDEO_ENDINGS = (
    ".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".3gp", ".3g2", ".wmv", ".asf", ".flv", ".ogv", ".ts", ".mts", ".m2ts",
    ".vob", ".mxf", ".qt", ".rm", ".rmvb", ".nut", ".mjpeg", ".mjpg", ".ivf", ".y4m", ".obu",
)  # fmt: skip
SOUND_ENDINGS = (
    ".wav", ".mp3", ".mka", ".flac", ".m4a", ".ogg", ".opus", ".oga", ".aac", ".aif", ".aiff", ".aifc", ".au", ".snd", ".ac3", ".eac3", ".wv", ".tta",
    ".wma", ".caf", ".w64", ".mp2", ".amr", ".ape", ".dts", ".spx", ".weba",
)  # fmt: skip
IMAGE_ENDINGS = (
    ".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".jp2", ".j2k", ".avif", ".ppm", ".pgm", ".jpe", ".jfif", ".qoi",
)  # fmt: skip
MEDIA = (*VIDEO_ENDINGS, *SOUND_ENDINGS, *IMAGE_ENDINGS)
# What features of an item are saved as: `video0.npy` is the item video0.
_FEATURES = (".npy", ".npz", ".pt", ".pth", ".pkl", ".h5", ".hdf5", ".mat", ".json", ".txt", ".csv")


def without_ending(name: str) -> str:
    """The name of a file without the ending of a medium or of features; other names as they are.

    >>> without_ending("video0.MP4"), without_ending("v1.0")
    ('video0', 'v1.0')
    """
    stem, dot, ending = name.rpartition(".")
    return stem if stem and f"{dot}{ending}".lower() in (*MEDIA, *_FEATURES) else name
