"""Pictures from image files, through Pillow, turned and mirrored as their EXIF orientation asks."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from calmrl_lab.errors import missing_extra
from calmrl_lab.store.convert.media_endings import IMAGE_ENDINGS
from feature_extractors.file_names import is_system_file
from feature_extractors.media.bare_streams import JPEG, is_motion_jpeg, jpeg_end
from feature_extractors.media.container import opened_file
from feature_extractors.media.containers import is_cut_off
from feature_extractors.protocols import MediaError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Choice = Callable[[int], Sequence[int]]

# Formats that Pillow reads by itself: none of them makes it start another program.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM", "QOI")
# Formats of which several pictures are a moving one; the pages of a TIFF and the pictures of a stereo JPEG are not.
_MOVING = ("GIF", "PNG", "WEBP", "AVIF")
# Brands of HEIC, in which telephones keep pictures. FFmpeg would show one of the tiles that such a picture consists of.
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_BEGINNINGS = (
    JPEG, b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51",
    b"qoif", *(b"P%d" % kind for kind in range(1, 8)),
)  # fmt: skip
# Telephones take pictures of 200 million pixels; Pillow refuses these for fear of files made to fill the memory.
_MOST_PIXELS = 1 << 28
# EXIF orientation -> how `ImageOps.exif_transpose` shows the picture.
_ORIENTED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p),
}
_ORIENTATION = 0x0112


class UnknownImage(Exception):
    """Pillow does not know the format, or not this kind of it; FFmpeg may."""


def is_image(path: Path) -> bool:
    """True if a file begins as an image does, and not as a video of JPEG pictures end to end (MJPEG)."""
    with opened_file(path) as file:
        start = file.read(16)
        if start.startswith(JPEG) and is_motion_jpeg(file):
            return False
    return (
        start.startswith(_BEGINNINGS)
        or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
        or (start[4:8] == b"ftyp" and start[8:12] in (b"avif", b"avis", *_HEIC))
    )


def image_frames(path: Path, choose: Choice) -> UInt8[np.ndarray, "n height width 3"]:
    """RGB pixels of an image file: its one picture, or the chosen ones of a moving image (GIF, APNG, WebP, AVIF).

    Released loaders decode by Pillow too: FFmpeg spreads the colours of a JPEG differently, .01 of a normalised pixel on average. Raises
    MediaError `not_found`, `empty_file`, `truncated` or `decode_error`, and UnknownImage where Pillow cannot tell.
    """
    with opened_file(path) as file, _open(path, file) as picture:
        moving = picture.format in _MOVING and getattr(picture, "is_animated", False)
        total = int(getattr(picture, "n_frames", 1)) if moving else 1
        wanted = choose(total)
        read: dict[int, np.ndarray] = {}
        for index in sorted(set(wanted)):
            if index:
                picture.seek(index)
            read[index] = _pixels(picture)
        return np.stack([read[index] for index in wanted])


def frame_folder(folder: Path, choose: Choice) -> UInt8[np.ndarray, "n height width 3"]:
    """Frames kept as images in a folder, in the order of their names."""
    names = sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.name.lower().endswith(IMAGE_ENDINGS) and not is_system_file(entry.name) and not entry.is_dir()
    )
    if not names:
        raise MediaError("empty_file", "a folder without images")
    wanted = choose(len(names))
    read = {index: _still(folder / names[index]) for index in sorted(set(wanted))}
    sizes = {pixels.shape for pixels in read.values()}
    if len(sizes) > 1:
        raise MediaError("decode_error", "the images of one folder have several sizes")
    return np.stack([read[index] for index in wanted])


def _still(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """The first picture of an image file of a folder; errors name the file."""
    try:
        return image_frames(path, lambda _: [0])[0]
    except UnknownImage:
        raise MediaError("not_media", f"{path.name} is no known image") from None
    except MediaError as error:
        raise MediaError(error.code, f"{path.name}: {error.detail}") from None


@contextmanager
def _open(path: Path, file: Any) -> Iterator[Picture]:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise missing_extra("Pillow", "media", "reading images") from None
    Image.init()  # formats cannot be named before
    start = file.read(12)
    file.seek(0)
    source = io.BytesIO(_whole_jpeg(file.read())) if start.startswith(JPEG) else file
    formats: tuple[str, ...] = _FORMATS
    if start[4:8] == b"ftyp" and start[8:12] in _HEIC:
        _learn_heic()
        formats = ("HEIF", "AVIF")
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, _MOST_PIXELS
    try:
        with Image.open(source, formats=formats) as picture:
            if picture.format == "GIF" and is_cut_off(path):
                # Only the chosen pictures are decoded, and what is missing may be behind them.
                raise MediaError("truncated", "the file breaks off before its end")
            yield picture
    except UnidentifiedImageError:
        if is_cut_off(path):
            raise MediaError("truncated", "the file ends before its header does") from None
        raise UnknownImage from None
    except Image.DecompressionBombError:
        raise MediaError("decode_error", f"more than {2 * _MOST_PIXELS} pixels") from None
    except (OSError, SyntaxError, EOFError) as error:
        said = " ".join(str(error).split())
        if "truncated" in said or "broken" in said or is_cut_off(path):
            raise MediaError("truncated", said) from None
        raise UnknownImage(said) from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise MediaError("decode_error", f"damaged: {error}") from None
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _learn_heic() -> None:
    """Pillow learns to read HEIC. Raises MediaError if the package that teaches it is not installed."""
    try:
        import pillow_heif
    except ImportError:
        raise MediaError(
            "not_media", "a HEIC picture, which needs the package pillow-heif: pip install 'calmrl-lab[heic]'"
        ) from None
    pillow_heif.register_heif_opener()


def _pixels(picture: Picture) -> UInt8[np.ndarray, "height width 3"]:
    """The picture in RGB as it is meant to be seen."""
    if picture.mode.startswith("I;16"):
        # Pillow would cut 16 bits off at 255.
        values = np.asarray(picture)
        grey = ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
        pixels = np.repeat(grey[..., None], 3, axis=2)
    elif picture.mode in ("I", "F"):
        picture.load()  # a file that breaks off is an error first
        raise UnknownImage("grey values of 32 bits, whose range is not known; save it with 8 or 16 bits")
    else:
        pixels = np.asarray(picture.convert("RGB"))
    turn = _ORIENTED.get(_orientation(picture))
    return np.ascontiguousarray(turn(pixels)) if turn is not None else pixels


def _orientation(picture: Picture) -> int:
    """The EXIF orientation, 1 where none can be read: what else is in the metadata is not the picture."""
    try:
        found = picture.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return found if isinstance(found, int) else 1


def _whole_jpeg(data: bytes) -> bytes:
    """The first picture of a JPEG file, without what telephones store behind it; MediaError if its data are damaged.

    libjpeg paints over damage without a word, FFmpeg's decoder can be told not to. What that one cannot read at all (other kinds of JPEG) is left to
    libjpeg. A missing end marker is no damage.
    """
    import av

    end = jpeg_end(data)
    first = data[:end] if end else data + b"\xff\xd9"
    if _decodes(av, first, {}) and not _decodes(av, first if end else data, {"err_detect": "explode"}):
        if not end:
            raise MediaError("truncated", "the file breaks off before its end")
        raise MediaError("decode_error", "the picture is damaged")
    return first


def _decodes(av: Any, data: bytes, options: dict[str, str]) -> bool:
    try:
        decoder = av.CodecContext.create("mjpeg", "r")
        decoder.options = options
        decoder.thread_count = 1
        return bool(decoder.decode(av.Packet(data)))
    except av.error.FFmpegError:
        return False
