"""What the name of a file says: which kind of media it should hold, or that an operating system left it there."""

from __future__ import annotations

# In the order in which files of one id are looked for: first those that released code looks for.
VIDEO_ENDINGS = (
    ".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".3gp", ".3g2", ".wmv", ".asf", ".flv", ".ogv", ".ts", ".mts", ".m2ts",
    ".vob", ".mxf", ".qt",
)  # fmt: skip
SOUND_ENDINGS = (
    ".wav", ".mp3", ".mka", ".flac", ".m4a", ".ogg", ".opus", ".oga", ".aac", ".aif", ".aiff", ".aifc", ".au", ".snd", ".ac3", ".eac3", ".wv", ".tta",
    ".wma", ".caf", ".w64", ".mp2", ".amr", ".ape", ".dts", ".spx", ".weba",
)  # fmt: skip
IMAGE_ENDINGS = (
    ".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".jp2", ".j2k", ".avif", ".ppm", ".pgm", ".jpe", ".jfif", ".qoi",
)  # fmt: skip
_SYSTEM_FILES = {".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx"}


def is_system_file(name: str) -> bool:
    """True for the name of a file or folder that a system made for itself: AppleDouble (`._*`), .DS_Store, Thumbs.db, desktop.ini, __MACOSX.

    >>> is_system_file("._dog.wav"), is_system_file("Thumbs.db"), is_system_file("dog.wav")
    (True, True, False)
    """
    return name.startswith("._") or name.lower() in _SYSTEM_FILES
