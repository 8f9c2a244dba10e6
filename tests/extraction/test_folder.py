"""A user's own collection from a table."""

import json

import numpy as np
import pandas as pd
import pytest
from extraction.stores import failures

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store import FeatureStore
from feature_extractors.datasets import datasets
from feature_extractors.extraction import extract
from feature_extractors.protocols import File, Text, Vector


def items_of(table, media=None, **options):
    manifest = datasets.get("folder")(media=media, manifest=table, **options).manifest()
    return manifest, {item.id: item for item in manifest.items}


@pytest.fixture
def media(tmp_path):
    folder = tmp_path / "media"
    (folder / "clips").mkdir(parents=True)
    for number in range(3):
        (folder / "clips" / f"{number}.mp4").write_text("x")
    return folder


@pytest.fixture
def write(tmp_path):
    def write(text, name="items.csv"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def test_a_table_of_paths_and_texts(media, write):
    table = write(
        "id,split,group,label,label_mood,vision,caption\n"
        "a,train,g,dog,happy,clips/0.mp4,A dog runs.\n"
        "b,val,,cat,,,\"A cat, asleep\"\n"
        "c,TEST,h,,,clips/9.mp4,\n"
    )  # fmt: skip
    manifest, items = items_of(table, media, licence="CC0")
    assert (manifest.dataset, manifest.licence, manifest.modalities) == ("items", "CC0", ("vision", "caption"))
    assert items["a"].media == {"vision": (File(media / "clips/0.mp4"),), "caption": (Text("A dog runs."),)}
    assert items["b"].media == {"vision": (), "caption": (Text("A cat, asleep"),)}
    assert items["c"].media["vision"] == (File(media / "clips/9.mp4"),), "not there: that is for the extraction to say"
    assert [items[i].split for i in "abc"] == ["train", "validation", "test"]
    assert [items[i].group for i in "abc"] == ["g", "b", "h"]
    assert items["a"].labels == {"label": "dog", "mood": "happy"}


def test_lists_and_spaces_as_data_frames_print_them(media, write):
    table = write(
        "id,vision,caption,pose\na, clips/0.mp4 ,\"['one', 'it''s two']\",\"[0.5, 1]\"\nb,clips/1.mp4,[music],\"[1.5, 2]\"\n".replace(
            "''", "\u2019"
        )
    )
    _, items = items_of(table, media)
    assert items["a"].media["vision"] == (File(media / "clips/0.mp4"),)
    assert items["a"].media["caption"] == (Text("one"), Text("it\u2019s two"))
    assert items["b"].media["caption"] == (Text("[music]"),)
    assert items["a"].media["pose"][0].values.tolist() == [0.5, 1.0]


def test_addresses_are_not_downloaded(media, write):
    with pytest.raises(CalmrlError, match="line 2: 'https:.*0.mp4' is an address, and nothing is downloaded"):
        items_of(write("id,vision\na,https://example.org/0.mp4\n"), media)


@pytest.mark.parametrize("orient", ["split", "index", "columns", "records", "table"])
def test_a_data_frame_as_json(orient, media, write):
    frame = pd.DataFrame({"id": ["a", "b"], "vision": ["clips/0.mp4", "clips/1.mp4"], "label": [1, 2]})
    frame = frame.set_index("id") if orient == "index" else frame
    _, items = items_of(write(frame.to_json(orient=orient), "items.json"), media)
    assert items["b"].media == {"vision": (File(media / "clips/1.mp4"),)}


def test_json_lines_may_hold_several_captions_and_vectors(media, write):
    rows = [
        {"id": 1, "caption": ["one", " ", "two"], "vision": "clips/0.mp4", "pose": [0.5, 1]},
        {"id": "x/y\n\"'\U0001f600", "caption": None, "vision": ["clips/1.mp4", "clips/2.mp4"], "pose": None},
    ]
    _, items = items_of(write("\n".join(map(json.dumps, rows)) + "\n\n", "items.jsonl"), media)
    assert items["1"].media["caption"] == (Text("one"), Text("two"))
    (pose,) = items["1"].media["pose"]
    assert isinstance(pose, Vector)
    assert pose.values.tolist() == [0.5, 1.0]
    assert items["x/y\n\"'\U0001f600"].media["vision"] == (File(media / "clips/1.mp4"), File(media / "clips/2.mp4"))


def test_what_a_column_holds_can_be_said(media, write):
    # A caption that is the name of a file, and files that are not there yet and have no known ending.
    table = write("id,caption:text,vision:file,other\na,clips/0.mp4,raw/1,raw/1\n")
    manifest, items = items_of(table, media)
    assert manifest.modalities == ("caption", "vision", "other")
    assert items["a"].media == {
        "caption": (Text("clips/0.mp4"),),
        "vision": (File(media / "raw/1"),),
        "other": (Text("raw/1"),),
    }


def test_class_names_are_texts_though_there_are_folders_of_that_name(media, write):
    for name in ("cat", "dog"):
        (media / name).mkdir()
    _, items = items_of(write("id,vision,caption,frames:file\na,clips/0.mp4,cat,cat\nb,clips/1.mp4,dog,\n"), media)
    assert items["a"].media == {
        "vision": (File(media / "clips/0.mp4"),),
        "caption": (Text("cat"),),
        "frames": (File(media / "cat"),),
    }


def test_without_splits_groups_are_kept_together(write):
    rows = "".join(f"i{n},g{n // 4},text {n}\n" for n in range(100))
    _, items = items_of(write("id,group,caption\n" + rows))
    splits = np.array([item.split for item in items.values()]).reshape(25, 4)
    assert (splits == splits[:, :1]).all()
    assert {name: int((splits == name).sum()) for name in ("train", "validation", "test")} == {
        "train": 60,
        "validation": 16,
        "test": 24,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no items"),
        ("word,caption\na,b\n", "no column 'id' \\(columns: word, caption\\)"),
        ("id,caption\n", "has no items"),
        ("id,split\na,train\n", "no column for a modality"),
        ("id,caption\n,b\n", "line 2 has no id"),
        ("id,caption\na,b,c\n", "line 2 has 3 columns, the heading has 2"),
        ("id,caption,caption\na,b,c\n", "'caption' is there twice"),
        ("id,caption:text,caption:file\na,b,c\n", "two columns for one modality"),
        ("id,caption:word\na,b\n", "must end in ':file' or ':text'"),
        ("id,split,caption\na,train,b\nc,holdout,d\n", "line 3: the split is 'holdout'"),
        ("id,split,caption\na,train,b\nc,,d\n", "line 3: the split is ''"),
        ("id,split,group,caption\na,train,g,b\nc,test,g,d\n", "line 3: the group 'g' is in test here and in train before"),
        ('id,caption\na,"b\n', "cannot be read"),
        ("id,vision\na,../secret.mp4\n", "line 2: '../secret.mp4' leads outside the media folder"),
        ("id,vision\na,clips/../../secret.mp4\n", "leads outside"),
        ("id,vision\na,/etc/passwd.mp4\n", "leads outside"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_with_its_line(media, write, text, said):
    with pytest.raises(CalmrlError, match=said):
        items_of(write(text), media)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"id": "a"', "line 1 is no JSON"),
        ("[1]", "entry 1 is a int"),
        ('{"id": "a", "caption": {"x": 1}}', "'caption' holds"),
        ('{"id": ["a"], "caption": "x"}', "'id' is a list"),
        ('{"id": "a", "caption": true}', "'caption' holds true"),
        ('{"id": "a", "pose": [1, NaN]}', "line 1: 'pose' holds numbers that are NaN or too large"),
        ('{"id": "a", "pose": [1e39]}', "line 1: 'pose' holds numbers that are NaN or too large"),
        ('{"id": "a", "pose": [1' + 400 * "0" + "]}", "line 1: 'pose' holds numbers that are NaN or too large"),
    ],
)
def test_what_is_wrong_with_json_lines(write, text, said):
    with pytest.raises(CalmrlError, match=said):
        items_of(write(text, "items.jsonl"))


def test_a_table_that_is_no_text(tmp_path):
    (tmp_path / "items.csv").write_bytes(b"id,caption\na,\xff\xfe\n")
    with pytest.raises(CalmrlError, match="is not UTF-8"):
        items_of(tmp_path / "items.csv")
    with pytest.raises(CalmrlError, match="there is no table"):
        items_of(tmp_path / "none.csv")


@pytest.mark.slow
def test_the_command_takes_any_encoders(fakes, cli, media, write, tmp_path):
    table = write("id,split,note,caption\na,train,clips/0.mp4,one\nb,train,clips/7.mp4,two\nc,test,clips/2.mp4,\n")
    out = tmp_path / "s.zarr"
    words = ("extract", "--dataset", "folder", "--media", media, "--manifest", table, "--out", out, "--workers", 1)
    code, _, said = cli(*words)
    assert code == 2
    assert "dataset 'folder' has no encoders of its own" in said
    code, said, _ = cli(*words, "--encoders", "note=fake,caption=fake", "--max-failures", 0.5)
    assert code == 0
    store = FeatureStore.open(out)
    assert store.modalities == ("note", "caption")
    assert store.reason.tolist() == [[0, 0], [2, 0], [0, 1]]
    assert failures(out) == {"b": "not_found"}
    assert "1 of 5 media failed: 1 not_found" in said
    (media / "clips" / "7.mp4").write_text("y")
    assert cli(*words, "--retry-failed")[0] == 0
    assert FeatureStore.open(out).reason.tolist() == [[0, 0], [0, 0], [0, 1]]


def test_vectors_are_stored_as_they_are(write, tmp_path):
    rows = [{"id": f"i{n}", "pose": [n / 8, 1e6 * n], "split": "train"} for n in range(5)]
    extract(
        "folder",
        tmp_path / "s.zarr",
        "pose=identity",
        workers=1,
        options={"manifest": write("\n".join(map(json.dumps, rows)), "items.jsonl")},
    )
    assert FeatureStore.open(tmp_path / "s.zarr").features("pose").tolist() == [[n / 8, 1e6 * n] for n in range(5)]
    rows[3]["pose"] = [1.0]
    with pytest.raises(CalmrlError, match="the vectors of 'pose' have 2 lengths: 1, 2"):
        extract(
            "folder",
            tmp_path / "t.zarr",
            "pose=identity",
            workers=1,
            options={"manifest": write("\n".join(map(json.dumps, rows)), "items.jsonl")},
        )
