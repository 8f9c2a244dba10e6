"""Which array of a file names its rows: an id under whatever name people give it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.convert.reading.content import Content, Field, spelled
from calmrl_lab.store.convert.reading.source import ReadOptions

# An array of one of these names is the id even beside others that could be.
_FIRST = ("ids", "id", "__key__")
# Names that say what they hold, in any case, with or without '_', '-' and spaces: the id of an item or the place of its file.
_IDENTIFYING = {
    "id", "ids", "key", "keys", "name", "names", "index", "uid", "uids", "uuid", "item", "items", "itemid", "itemids", "itemname",
    "itemnames", "sample", "sampleid", "sampleids", "samples", "instanceid", "video", "videos", "videoid", "videoids", "videoname", "videonames",
    "vid", "vids", "vidname", "vidnames", "vidid", "clip", "clips", "clipid", "clipids", "clipname", "clipnames", "image", "images",
    "imageid", "imageids", "imagename", "imagenames", "imagepath", "imagepaths", "imagefile", "imgid", "imgids", "imgname", "imgnames", "imgpath", "imgpaths",
    "audio", "audioid", "audioids", "audioname", "audiopath", "audiopaths", "sound", "soundname", "youtubeid", "youtubeids", "ytid", "ytids",
    "file", "files", "fileid", "filename", "filenames", "filepath", "filepaths", "fname", "fnames", "path", "paths", "relpath",
    "videopath", "videopaths", "videofile", "videofiles", "url", "urls", "contentid", "documentid", "docid", "docids", "objectid", "utteranceid",
    "segmentid", "sceneid", "shotid", "productid", "asin", "sku", "patientid", "studyid", "recordid", "rowid", "subjectid",
}  # fmt: skip
# Names of texts about a row that are no id, though every row has one.
_DESCRIBING = re.compile(
    r"(label|class|categor|caption|text|sentence|description|desc$|title|split|subset|partition|fold|group|tag|genre|emotion|language|lang$"
    r"|answer|question|comment|subtitle|transcript|prompt|reason|status|error|licen[cs]e|source$|dataset|model|encoder|config|date|time)"
)


def names_of_rows(
    content: Content, length: int, beside: str, taken: Sequence[str], options: ReadOptions, columns: int = 0
) -> tuple[str | None, list[str]]:
    """The field that names the `length` rows, and all that could if none is chosen.

    columns: how many columns the features have. `beside`: the group of the features; fields there come before those of the whole file. `taken`: fields that are something else.
    Raises CalmrlError if the field that the options name does not exist or has another length.
    """
    if options.id_column is not None:
        return _wanted(content, length, beside, options.id_column), []
    everywhere = options.id_column_if_there
    if everywhere is not None and any(f"{place}{everywhere}" in content.fields for place in _places(beside)):
        return _wanted(content, length, beside, everywhere), []
    fields = [f for f in content.fields.values() if f.name not in taken and f.shape == (length,) and _near(f, beside, content)]
    strings = [f for f in fields if f.kind == "strings" and not _is_blank(f)]
    if content.index is not None and any(f.name == content.index for f in strings):
        return content.index, []
    for name in (f"{place}{first}" for place in _places(beside) for first in _FIRST):
        if any(f.name == name and f.kind in ("strings", "numbers") for f in fields):
            return name, []
    # Texts that are the same in all rows (the shard that they are from) name none of them.
    identifying = [f for f in strings if _plain(f.name) in _IDENTIFYING and (length < 2 or not _is_constant(f))]
    if len(identifying) == 1:
        return identifying[0].name, []
    numbers = [
        f for f in fields if f.kind == "numbers" and _plain(f.name) in _IDENTIFYING - {"index"} and f.load().dtype.kind in "iu"
    ]
    if len(numbers) == 1 and not identifying and all(is_describing(f.name) for f in strings):
        return numbers[0].name, []
    if len(strings) == 1 and not identifying and not _DESCRIBING.search(_plain(strings[0].name)) and _all_differ(strings[0]):
        return strings[0].name, []
    # Ids of another length are no reason to match rows by position.
    ids = [
        content.fields[name] for place in _places(beside) for name in (f"{place}{f}" for f in _FIRST) if name in content.fields
    ]
    others = [f for f in ids if f.name not in taken and len(f.shape) == 1 and f.kind in ("strings", "numbers")]
    # Nor are ids that cannot be read as text, nor names for the columns: then the features may be transposed.
    others += [f for f in fields if f.kind == "other" and is_id(f.name) and f not in others]
    others += [
        f
        for f in content.fields.values()
        if f.kind == "strings" and f.shape == (columns,) and is_identifying(f.name) and columns != length
    ]
    # Nor are names in another group of the file.
    others += [f for f in content.fields.values() if f.kind == "strings" and f.shape == (length,) and is_identifying(f.name)]
    return None, list(dict.fromkeys(f.name for f in (identifying or strings or numbers or others)))


def is_identifying(name: str) -> bool:
    """Whether a column of this name says by its name that it holds ids or the places of files."""
    return _plain(name) in _IDENTIFYING


def is_id(name: str) -> bool:
    """Whether a column of this name holds ids, and not the places of files or names that need not be unique.

    >>> is_id("videoID"), is_id("youtube_id"), is_id("image")
    (True, True, False)
    """
    return is_identifying(name) and _plain(name).rstrip("s").endswith(("id", "key"))


def is_describing(name: str) -> bool:
    """Whether a column of this name holds something about an item that is not its id: a label, a caption, a split."""
    return bool(_DESCRIBING.search(_plain(name)))


def ids_from(path: Path, name: str, values: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, " n"]:
    """The ids that an array holds, as str; CalmrlError for a row that has none (None, NaN, empty)."""
    ids = (
        np.char.decode(values, "utf-8")
        if values.dtype.kind == "S"
        else np.array([spelled(v) for v in values.tolist()], dtype=np.str_)
    )
    missing = np.isin(ids, NO_ID)
    if missing.any():
        row = int(np.argmax(missing))
        raise CalmrlError(
            f"'{path}': row {row} has no id ({name!r} holds {str(ids[row])!r} there)",
            hint="give every row an id, or take another column with --id-column",
        )
    return ids


# What stands for a missing id once it has become text.
NO_ID = ("", "nan", "NaN", "NAN", "None", "<NA>", "NaT")


def _wanted(content: Content, length: int, beside: str, wanted: str) -> str:
    for name in (f"{place}{wanted}" for place in _places(beside)):
        if name in content.fields:
            shape = content.fields[name].shape
            if shape != (length,):
                raise CalmrlError(
                    f"'{content.path}': '{name}' is {list(shape)} and cannot name {length} rows of features",
                    hint="--id-column takes one id per row; if the features are [d, rows], save them transposed (features.T)",
                )
            return name
    fitting = [f.name for f in content.fields.values() if f.shape == (length,)]
    raise CalmrlError(
        f"'{content.path}' has nothing called '{wanted}' for --id-column",
        hint=f"of the right length are: {', '.join(fitting[:12]) or 'none'}",
    )


def _near(field: Field, beside: str, content: Content) -> bool:
    """In the group of the features, or not in any."""
    group = field.name.rpartition("/")[0]
    return content.table or group in ("", beside.rstrip("/"))


def _places(beside: str) -> tuple[str, ...]:
    return (beside, "") if beside else ("",)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.rpartition("/")[2].lower())


def _all_differ(field: Field) -> bool:
    values = field.load()
    return len(np.unique(values)) == len(values)


def _is_constant(field: Field) -> bool:
    values = field.load()
    return bool((values == values[0]).all())


def _is_blank(field: Field) -> bool:
    return not field.shape[0] or bool((field.load() == field.load().dtype.type()).all())
