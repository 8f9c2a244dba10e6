"""Annotation files to rows of one form, {id, captions, split, ...}, whatever shape the file has.

Read are: a list of objects (VAST, GRAM, PMRL, VATEX, DiDeMo, retrieval lists), JSON lines, CSV with ',' or ';' (JSFUSION, AudioCaps, Clotho, WebVid), and the
JSON documents of MSR-VTT (`videos`, `sentences`), ActivityNet Captions ({id: sentences}), YouCook2 (`database`) and COCO (`images`, `annotations`).
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.convert.media_endings import MEDIA
from calmrl_lab.store.convert.reading.gzip_files import plain_suffix
from calmrl_lab.store.convert.records import csv_rows, is_missing, parse_json, read_text

# The first six as VAST's code looks for them.
_ID_KEYS = (
    "clip_id",
    "video_id",
    "image_id",
    "image",
    "id",
    "videoID",
    "video",
    "videoid",
    "file_name",
    "filename",
    "audio",
    "file",
    "vid",
    "key",
)
_TEXT_KEYS = (
    "desc",
    "caption",
    "vast_cap",
    "captions",
    "enCap",
    "sentence",
    "sentences",
    "description",
    "descriptions",
    "text",
    "raw_captions",
    "title",
)
# A caption under one of these is a moment of its item; the moments make one paragraph.
_MOMENT_KEYS = ("description", "sentences")
_FILE_KEYS = ("video", "videoid", "audio", "file", "image")
_NUMBERED = re.compile(r"captions?[_ ]?\d+")
_HINT = "restore the released annotation file"


@dataclass
class Row:
    """A row of an annotation file: `captions` without those that are empty, `split` as the file spells it ('' if it says none)."""

    where: str
    id: str
    raw_id: str
    captions: list[str]
    split: str = ""
    subtitle: str = ""
    extra: dict[str, list[str]] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    paragraph: bool = False
    empty: int = 0


def rows_of(path: Path, extra_keys: Mapping[str, str] | None = None) -> list[Row]:
    """The rows of an annotation file, in its order. Its form is told by what is in it, never by its name.

    `extra_keys` maps a further text modality to its key. Raises CalmrlError for a broken file, a row without id, text that is no text.
    """
    rows = []
    for where, values in _objects(path):
        row = _row(where, values, extra_keys or {})
        rows.append(row)
    return rows


def _row(where: str, values: Mapping[str, Any], extra_keys: Mapping[str, str]) -> Row:
    raw, name = _id(values, where)
    key = next((key for key in _TEXT_KEYS if key in values), None)
    if "contentUrl" in values and "name" in values:
        key = "name"
    numbered = [column for column in values if _NUMBERED.fullmatch(column)] if key is None else []
    given = [values[column] for column in numbered] if numbered else values.get(key) if key is not None else None
    captions, empty = _texts(given, f"the caption of '{raw}'", where)
    extra = {m: _texts(values[k], f"{k} of '{raw}'", where)[0] for m, k in extra_keys.items() if values.get(k)}
    row = Row(where, name, raw, captions, _split(values), _subtitle(values, raw, where), extra, {}, key in _MOMENT_KEYS, empty)
    if row.paragraph and isinstance(given, list):
        row.captions = [" ".join(text.strip() for text in captions)] if captions else []
    return row


def _id(values: Mapping[str, Any], where: str) -> tuple[str, str]:
    """The id as the file spells it, and as it is used: HTML entities resolved, clips as VIDEO_START_END, names of videos without their ending."""
    if "youtube_id" in values and "start_time" in values:
        start = _seconds(values["start_time"], where)
        name = f"{values['youtube_id']}_{start:.3f}_{start + 10:.3f}"
        return name, name
    key = next((key for key in _ID_KEYS if values.get(key) is not None), None)
    given = values.get(key) if key is not None else None
    if isinstance(given, int) and not isinstance(given, bool):
        given = str(given)
    if not isinstance(given, str) or not given.strip():
        got = f"; got {json.dumps(given, default=str)[:80]}" if given is not None else ""
        raise CalmrlError(f"{where} has no id (looked for a text or a number under {', '.join(_ID_KEYS[:9])}{got})", hint=_HINT)
    name = html.unescape(given)
    if key in _FILE_KEYS:
        stem, dot, ending = name.rpartition(".")
        name = stem if stem and f"{dot}{ending}".lower() in MEDIA else name
    return given, name


def _seconds(value: Any, where: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise CalmrlError(f"{where} has the start time {str(value)[:40]!r}, expected seconds", hint=_HINT) from None


def _split(values: Mapping[str, Any]) -> str:
    given = values.get("split", values.get("subset"))
    return given if isinstance(given, str) else ""


def _subtitle(values: Mapping[str, Any], name: str, where: str) -> str:
    subtitle = values.get("subtitle")
    if subtitle is None or (isinstance(subtitle, float) and subtitle != subtitle):
        return ""
    if not isinstance(subtitle, str):
        raise CalmrlError(f"the subtitle of '{name}' is no text ({where})", hint="expected one string, or none")
    return "" if is_missing(subtitle) else subtitle


def _texts(value: Any, what: str, where: str) -> tuple[list[str], int]:
    """The captions of a row, and how many of them are empty and so are none."""
    texts = value if isinstance(value, list) else [value]
    if not texts or any(not isinstance(text, str) and not is_missing(text) for text in texts) or value is None:
        raise CalmrlError(
            f"{what} is no text ({where})", hint=f"expected a string or a list of strings under {', '.join(_TEXT_KEYS[:8])}"
        )
    kept = [text for text in texts if not is_missing(text)]
    return kept, len(texts) - len(kept)


def _objects(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where it stands, its values) of every row."""
    text = read_text(path)
    if text.lstrip()[:1] in ("[", "{"):
        yield from _of_json(path, text)
        return
    if plain_suffix(path) == ".json" and {*_ID_KEYS, *_TEXT_KEYS}.isdisjoint(
        re.split(r"[^A-Za-z_]+", text[:500].split("\n")[0])
    ):
        parse_json(path, text)
    lines = csv_rows(path, text)
    _, heading = next(lines, (0, []))
    names = [name.strip() for name in heading]
    for number, cells in lines:
        if len(cells) != len(names):
            raise CalmrlError(f"line {number} of '{path}' has {len(cells)} cells, the heading has {len(names)}", hint=_HINT)
        yield f"line {number} of '{path}'", dict(zip(names, cells, strict=True))


def _of_json(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    lines = text.strip().split("\n")
    if text.lstrip().startswith("{") and len(lines) > 1 and lines[0].rstrip().endswith("}"):
        documents: Any = [parse_json(path, line) for line in lines if line.strip()]
    else:
        documents = parse_json(path, text)
    if isinstance(documents, dict):
        documents = _of_document(path, documents)
    if not isinstance(documents, list) or not documents:
        got = "an empty list" if documents == [] else type(documents).__name__
        raise CalmrlError(f"the annotation file '{path}' holds {got}, expected a list of items", hint=_HINT)
    for number, entry in enumerate(documents):
        where = f"row {number} of '{path}'"
        if not isinstance(entry, dict):
            raise CalmrlError(f"{where} is {type(entry).__name__}, expected an object", hint=_HINT)
        yield where, entry


def _of_document(path: Path, document: dict[str, Any]) -> list[Any]:
    """The rows of a JSON object, by the form that its keys show."""
    for fits, read in _DOCUMENTS:
        if fits(document):
            try:
                return read(document)
            except (KeyError, TypeError, AttributeError, IndexError) as error:
                raise CalmrlError(
                    f"the annotation file '{path}' lacks what files of its form have: {str(error)[:80] or type(error).__name__}",
                    hint=_HINT,
                ) from None
    raise CalmrlError(
        f"the annotation file '{path}' holds {type(document).__name__}, expected a list of items (its keys: {', '.join(list(document)[:5]) or 'none'})",
        hint="known objects: MSR-VTT (videos, sentences), ActivityNet ({id: {sentences}}), YouCook2 (database), COCO (images, annotations), {id: captions}",
    )


def _msrvtt(document: dict[str, Any]) -> list[Any]:
    captions: dict[str, list[Any]] = {}
    for sentence in document["sentences"]:
        captions.setdefault(sentence["video_id"], []).append(sentence["caption"])
    return [
        {"video_id": v["video_id"], "split": v.get("split", ""), "caption": captions[v["video_id"]]}
        for v in document["videos"]
        if v["video_id"] in captions
    ]


def _youcook(document: dict[str, Any]) -> list[Any]:
    rows = []
    for video, about in document["database"].items():
        for step in about.get("annotations", ()):
            start, end = (int(second) if float(second).is_integer() else second for second in step["segment"])
            rows.append({"clip_id": f"{video}_{start}_{end}", "split": about.get("subset", ""), "sentence": step["sentence"]})
    return rows


def _coco(document: dict[str, Any]) -> list[Any]:
    names = {image["id"]: image.get("file_name", str(image["id"])) for image in document["images"]}
    return [{"image": names[entry["image_id"]], "caption": entry["caption"]} for entry in document["annotations"]]


def _by_id(document: dict[str, Any]) -> list[Any]:
    return [{"id": name, **about} for name, about in document.items()]


def _captions_by_id(document: dict[str, Any]) -> list[Any]:
    return [{"id": name, "caption": captions} for name, captions in document.items()]


def _only_list(document: dict[str, Any]) -> list[Any]:
    return next(value for value in document.values() if _is_rows(value))


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _is_texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value))


_DOCUMENTS: Sequence[tuple[Callable[[dict[str, Any]], bool], Callable[[dict[str, Any]], list[Any]]]] = (
    (lambda d: "videos" in d and "sentences" in d, _msrvtt),
    (lambda d: isinstance(d.get("database"), dict), _youcook),
    (lambda d: "images" in d and "annotations" in d, _coco),
    (lambda d: bool(d) and all(isinstance(value, dict) for value in d.values()), _by_id),
    (lambda d: sum(_is_rows(value) for value in d.values()) == 1, _only_list),
    (lambda d: bool(d) and all(map(_is_texts, d.values())), _captions_by_id),
)
