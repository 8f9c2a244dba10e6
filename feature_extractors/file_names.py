"""Files that an operating system made for itself, by their names."""

from __future__ import annotations

_SYSTEM_FILES = {".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx"}


def is_system_file(name: str) -> bool:
    """True for the name of a file or folder that a system made for itself: AppleDouble (`._*`), .DS_Store, Thumbs.db, desktop.ini, __MACOSX.

    >>> is_system_file("._dog.wav"), is_system_file("Thumbs.db"), is_system_file("dog.wav")
    (True, True, False)
    """
    return name.startswith("._") or name.lower() in _SYSTEM_FILES
