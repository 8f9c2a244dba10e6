"""Manifests as people have them: JSON lists, any delimiter, a row per caption, other names for the id, backslashes, words for what is missing."""

from __future__ import annotations

import json

import pytest

from calmrl_lab.errors import CalmrlError
from feature_extractors.datasets import datasets
from feature_extractors.protocols import File, Text

ROWS = [{"id": f"c{n}", "vision": f"clips/{n}.jpg", "caption": f"thing {n}"} for n in range(3)]


@pytest.fixture
def media(tmp_path):
    (tmp_path / "media" / "clips").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "media" / "clips" / f"{number}.jpg").touch()
    return tmp_path / "media"


def read(media, name, text, **options):
    path = media.parent / name
    path.write_text(text, encoding="utf-8")
    manifest = datasets.get("folder")(media=media, manifest=path, **options).manifest()
    return {item.id: item for item in manifest.items}


def delimited(mark, rows=ROWS, names=("id", "vision", "caption")):
    return "\n".join([mark.join(names), *(mark.join(row.values()) for row in rows)])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", json.dumps(ROWS)),
        ("a.json", json.dumps({"items": ROWS})),
        ("a.json", json.dumps({row["id"]: {"vision": row["vision"], "caption": row["caption"]} for row in ROWS})),
        ("a.json", "\n".join(map(json.dumps, ROWS))),
        ("a.jsonl", json.dumps(ROWS, indent=1)),
        ("a.ndjson", "\n".join(map(json.dumps, ROWS))),
        ("a.csv", delimited(",")),
        ("a.csv", delimited(";")),
        ("a.csv", delimited("\t")),
        ("a.tsv", delimited("\t")),
        ("a.txt", delimited("|")),
        ("a.csv", delimited(",", names=("video_id", "vision", "caption"))),
        ("a.csv", delimited(",", names=("clipID", "vision", "caption"))),
        ("a.csv", "\ufeff" + delimited(";").replace("\n", "\r\n")),
        ("a.csv", delimited(",").replace("clips/", "clips\\")),
        ("a.csv", delimited(",").replace("clips/", ".\\clips\\")),
    ],
)
def test_every_form_gives_the_same_items(media, name, text):
    items = read(media, name, text)
    assert list(items) == ["c0", "c1", "c2"]
    for number, item in enumerate(items.values()):
        assert item.media == {"vision": (File(media / "clips" / f"{number}.jpg"),), "caption": (Text(f"thing {number}"),)}


def test_a_row_a_caption(media, capfd):
    rows = [{**row, "caption": f"{row['caption']} told {k}"} for row in ROWS for k in range(2)]
    for name, text in (("a.csv", delimited(",", rows)), ("b.jsonl", "\n".join(map(json.dumps, rows)))):
        items = read(media, name, text)
        assert [len(item.media["caption"]) for item in items.values()] == [2, 2, 2]
        assert [len(item.media["vision"]) for item in items.values()] == [1, 1, 1]
        assert "6 rows are 3 items" in capfd.readouterr().err


def test_files_name_their_items_where_there_is_no_id(media):
    items = read(media, "captions.txt", "image,caption\nclips/0.jpg,one\nclips/0.jpg,two\nclips/1.jpg,three\n")
    assert list(items) == ["clips/0.jpg", "clips/1.jpg"]
    assert items["clips/0.jpg"].media == {"image": (File(media / "clips/0.jpg"),), "caption": (Text("one"), Text("two"))}


def test_the_id_column_can_be_named(media):
    items = read(media, "a.csv", "word,vision\nx,clips/0.jpg\n", id_column="word")
    assert list(items) == ["x"]
    with pytest.raises(CalmrlError, match="2 columns that may be the id: clip_id, video_id") as caught:
        read(media, "a.csv", "clip_id,video_id,caption\na,b,x\n")
    assert "--set id_column" in caught.value.hint


@pytest.mark.parametrize("missing", ["NaN", "nan", "None", "", " ", "<NA>", None, float("nan")])
def test_words_for_nothing_are_nothing(media, missing, capfd):
    rows = [
        {**row, "group": "g" if n else missing, "label": "dog" if n else missing, "caption": row["caption"] if n else missing}
        for n, row in enumerate(ROWS)
    ]
    texts = {"a.jsonl": "\n".join(map(json.dumps, rows)), "b.json": json.dumps(rows)}
    if isinstance(missing, str):
        texts["c.csv"] = delimited(",", rows, tuple(rows[0]))
    for name, text in texts.items():
        items = read(media, name, text)
        assert "caption" not in {m for m, listed in items["c0"].media.items() if listed}
        assert (items["c0"].group, items["c0"].labels) == ("c0", {"label": ""})
        assert (items["c1"].group, items["c1"].labels) == ("g", {"label": "dog"})
    if isinstance(missing, str) and missing.strip():
        assert "3 cells are words like NaN or None and count as missing" in capfd.readouterr().err


def test_one_id_in_two_splits_is_two_items(media, capfd):
    items = read(media, "a.csv", "id,split,caption\na,train,one\na,Test,two\nb,dev,three\n")
    assert {name: item.split for name, item in items.items()} == {"train/a": "train", "test/a": "test", "b": "validation"}
    assert "1 ids stand in several splits" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,label,caption\na,dog,x\na,cat,y\n", "line 3: the item 'a' has the label 'cat' here and 'dog' in line 2"),
        ("id,vision\na,C:\\clips\\0.jpg\n", "is a place on a Windows machine"),
        ("id,vision\na,..\\..\\secret.jpg\n", "leads outside the media folder"),
        ("id,caption\nNaN,x\n", "line 2 has no id"),
        ('{"id": null, "caption": "x"}', "entry 1 has no id"),
    ],
)
def test_what_cannot_be_meant_is_refused(media, text, said):
    with pytest.raises(CalmrlError) as caught:
        read(media, "a.csv", text)
    assert said in caught.value.message
    assert "a.csv" in caught.value.message
    assert caught.value.hint


def place(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


class TestClassFolders:
    def made(self, root):
        manifest = datasets.get("class-folder")(root).manifest()
        return sorted((item.split, item.labels["class"]) for item in manifest.items)

    @pytest.mark.parametrize(
        "extra", ["annotations/list.txt", "docs/readme.md", "__MACOSX/train/dog/._a.jpg", ".cache/a.jpg", "empty/inner/x.csv"]
    )
    @pytest.mark.parametrize("train", ["train", "Train", "training"])
    def test_a_folder_without_media_does_not_turn_splits_into_classes(self, tmp_path, extra, train):
        place(
            tmp_path,
            f"{train}/cat/x.jpg",
            f"{train}/dog/x.jpg",
            "val/cat/x.jpg",
            "test/dog/x.jpg",
            extra,
            "train/cat/._x.jpg" if train == "train" else "test/dog/Thumbs.db",
        )
        assert self.made(tmp_path) == [("test", "dog"), ("train", "cat"), ("train", "dog"), ("validation", "cat")]

    def test_a_class_may_be_called_like_a_split(self, tmp_path):
        place(tmp_path, "bus/a.jpg", "train/b.jpg", "car/c.jpg")
        assert self.made(tmp_path) == [("test", "bus"), ("test", "car"), ("test", "train")]

    @pytest.mark.parametrize(
        ("files", "said"),
        [
            (("train/cat/a.jpg", "test/dog/b.jpg", "extra/c.jpg"), "extra with media beside them"),
            (("train/cat/a.jpg", "test/b.jpg"), "test with media beside them"),
            (("data/train/cat/a.jpg", "data/test/dog/b.jpg"), "would be their only class"),
            (("images/cat/a.jpg", "images/dog/b.jpg"), "would be their only class"),
            (("cat/train/a.jpg", "dog/test/b.jpg"), "lie inside of the classes"),
        ],
    )
    def test_folders_that_could_mean_two_things(self, tmp_path, files, said):
        place(tmp_path, *files)
        with pytest.raises(CalmrlError, match=said) as caught:
            self.made(tmp_path)
        assert caught.value.hint

    def test_what_is_left_out_is_counted_by_ending(self, tmp_path, capfd):
        place(
            tmp_path,
            "blues/1.wav",
            "blues/2.xyz",
            "jazz/1.wav",
            "jazz/2.xyz",
            "jazz/3.abc",
            "jazz/._1.wav",
            "jazz/.DS_Store",
            "jazz/desktop.ini",
            "4.wav",
        )
        assert self.made(tmp_path) == [("test", "blues"), ("test", "jazz")]
        said = capfd.readouterr().err
        assert "3 files are left out as no known media: 2 .xyz, 1 .abc" in said
        assert "1 media files lie in no class folder" in said
