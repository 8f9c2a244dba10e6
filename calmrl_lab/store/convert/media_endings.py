"""Endings of the names of media files, for telling a path from a text and an id from the name of its file."""

from __future__ import annotations

VIDEO = (".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".3gp", ".wmv", ".flv", ".ogv", ".ts")
AUDIO = (
    ".wav",
    ".mp3",
    ".flac",
    ".ogg",
    ".m4a",
    ".aac",
    ".opus",
    ".au",
    ".aif",
    ".aiff",
    ".wma",
    ".ac3",
    ".eac3",
    ".wv",
    ".tta",
    ".amr",
    ".oga",
)
IMAGE = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".jfif", ".avif", ".ppm")
MEDIA = (*VIDEO, *AUDIO, *IMAGE)
# What features of an item are saved as: `video0.npy` is the item video0.
_FEATURES = (".npy", ".npz", ".pt", ".pth", ".pkl", ".h5", ".hdf5", ".mat", ".json", ".txt", ".csv")


def without_ending(name: str) -> str:
    """The name of a file without the ending of a medium or of features; other names as they are.

    >>> without_ending("video0.MP4"), without_ending("v1.0")
    ('video0', 'v1.0')
    """
    stem, dot, ending = name.rpartition(".")
    return stem if stem and f"{dot}{ending}".lower() in (*MEDIA, *_FEATURES) else name
