"""Annotation files in the forms that circulate: each gives the items, captions and splits that it holds, under its own name or another."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from calmrl_lab.errors import CalmrlError
from feature_extractors.datasets import datasets

CASES = Path(os.environ.get("CALMRL_TEST_CASES") or Path(__file__).resolve().parents[2].parent / "shared" / "cases")


def table(rows, delimiter=","):
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows(rows)
    return out.getvalue()


MSRVTT_ALL = {
    "info": {},
    "videos": [{"video_id": f"video{n}", "split": ["train", "train", "validate", "test"][n]} for n in range(4)],
    "sentences": [{"caption": f"thing {k} of {n}", "video_id": f"video{n}", "sen_id": k} for k in range(2) for n in range(4)],
}
JSFUSION = [
    ["key", "vid_key", "video_id", "sentence"],
    ["ret0", "msr1", "video1", "one, two; three"],
    ["ret1", "msr3", "video3", "four"],
]
ACTIVITYNET = {
    "v_a": {"duration": 9.5, "timestamps": [[0, 1], [1, 2]], "sentences": [" One runs.", "Two sit. "]},
    "v_b": {"sentences": ["Three."]},
}
DIDEMO = [
    {"annotation_id": n, "description": f"moment {n}", "video": f"1@N2_{n // 2}.avi", "times": [[0, 0]]} for n in range(4)
]
YOUCOOK = {
    "database": {
        "vid0": {
            "subset": "training",
            "annotations": [{"segment": [1, 9], "id": 0, "sentence": "cut"}, {"segment": [9, 20], "id": 1, "sentence": "fry"}],
        },
        "vid1": {"subset": "validation", "annotations": [{"segment": [3, 7], "id": 0, "sentence": "stir"}]},
        "vid2": {"subset": "testing"},
    }
}
CLOTHO = [["file_name", *(f"caption_{n}" for n in range(1, 6))], [" rain 1.wav", *"abcde"], ["wind.wav", *"fghij"]]
AUDIOCAPS = [
    ["audiocap_id", "youtube_id", "start_time", "caption"],
    *([str(n), f"yt_{n // 2}", "30", f"caption {n}"] for n in range(4)),
]
VGGSOUND_2 = [["abc_de_000012.mp4", "dog barking"], ["xyz_000030_000040.mp4", "rain, falling"]]
WEBVID = [["videoid", "contentUrl", "duration", "page_dir", "name"], ["7", "http://x", "PT00H00M10S", "a_b", "a wave"]]
COCO = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": c} for c in ("x", "y")]}

# dataset, name of the file, its content, the split of all items or {id: split}, {id: captions}
FORMS = [
    ("msrvtt", "MSRVTT_JSFUSION_test.csv", table(JSFUSION), "test", {"video1": ["one, two; three"], "video3": ["four"]}),
    ("msrvtt", "MSRVTT_JSFUSION_test.csv", table(JSFUSION, ";"), "test", {"video1": ["one, two; three"], "video3": ["four"]}),
    ("msrvtt", "msrvtt_ret_test1k.json", json.dumps([{"video": "video0.mp4", "caption": "x", "duration": 10.5}]), "test", {"video0": ["x"]}),
    (
        "msrvtt",
        "MSRVTT_data.json",
        json.dumps(MSRVTT_ALL),
        {"video0": "train", "video1": "train", "video2": "validation", "video3": "test"},
        {f"video{n}": [f"thing 0 of {n}", f"thing 1 of {n}"] for n in range(4)},
    ),
    ("vatex", "vatex_public_test_english_v1.1.json", json.dumps([{"videoID": "a_00_1_2", "enCap": ["x", "y"], "chCap": ["?"]}]), "test", {"a_00_1_2": ["x", "y"]}),
    ("activitynet", "val_1.json", json.dumps(ACTIVITYNET), "test", {"v_a": ["One runs. Two sit."], "v_b": ["Three."]}),
    ("didemo", "test_data.json", json.dumps(DIDEMO), "test", {"1@N2_0": ["moment 0 moment 1"], "1@N2_1": ["moment 2 moment 3"]}),
    (
        "youcook2",
        "youcookii_annotations_trainval.json",
        json.dumps(YOUCOOK),
        {"vid0_1_9": "train", "vid0_9_20": "train", "vid1_3_7": "test"},
        {"vid0_1_9": ["cut"], "vid0_9_20": ["fry"], "vid1_3_7": ["stir"]},
    ),
    ("clotho", "clotho_captions_evaluation.csv", table(CLOTHO), "test", {" rain 1.wav": list("abcde"), "wind.wav": list("fghij")}),
    ("audiocaps", "test.csv", table(AUDIOCAPS), "test", {f"yt_{n}_30.000_40.000": [f"caption {2 * n}", f"caption {2 * n + 1}"] for n in range(2)}),
    ("vggsound", "test.csv", table(VGGSOUND_2), "test", {"abc_de_000012": ["dog barking"], "xyz_000030": ["rain, falling"]}),
    ("vggsound", "vggsound.csv", table([["abc_de", "12", "dog barking", "test"]]), "test", {"abc_de_000012": ["dog barking"]}),
    ("webvid", "results_10M_val.csv", table(WEBVID), "test", {"7": ["a wave"]}),
    ("msrvtt", "captions_test.json", json.dumps(COCO), "test", {"a": ["x", "y"]}),
    ("msrvtt", "my_test_list.jsonl", '{"id": "v1", "caption": "x"}\n{"id": "v2", "caption": ["y", "z"]}\n', "test", {"v1": ["x"], "v2": ["y", "z"]}),
    ("msrvtt", "test.json", json.dumps({"v1": "x", "v2": ["y", "z"]}), "test", {"v1": ["x"], "v2": ["y", "z"]}),
]  # fmt: skip


def manifest_of(folder, dataset, files, **options):
    (folder / "annotations").mkdir(exist_ok=True)
    for place in ("videos", "audios"):
        (folder / place).mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / "annotations" / name).write_text(content)
    return datasets.get(dataset)(folder, validation=0, **options).manifest()


def captions(manifest):
    return {item.id: [text.text for text in item.media["caption"]] for item in manifest.items}


@pytest.mark.parametrize(
    ("dataset", "name", "content", "split", "expected"), [pytest.param(*form, id=f"{form[0]}-{form[1]}") for form in FORMS]
)
def test_every_form_under_its_own_name(tmp_path, dataset, name, content, split, expected):
    manifest = manifest_of(tmp_path, dataset, {name: content})
    assert captions(manifest) == expected
    assert {item.id: item.split for item in manifest.items} == (
        split if isinstance(split, dict) else dict.fromkeys(expected, split)
    )


@pytest.mark.parametrize(
    ("dataset", "name", "content", "split", "expected"),
    [pytest.param(*form, id=f"{form[0]}-{form[1]}") for form in FORMS if form[0] != "vggsound"],
)
def test_every_form_under_the_name_that_was_looked_for(tmp_path, dataset, name, content, split, expected):
    (wanted,) = [files[0] for files in (s.files for s in datasets.get(dataset).splits if s.name == "test")]
    manifest = manifest_of(tmp_path, dataset, {wanted: content})
    tested = expected if isinstance(split, str) else {name: texts for name, texts in expected.items() if split[name] == "test"}
    assert captions(manifest) == tested


def test_msrvtt_1k_a_from_the_list_of_all_clips_and_that_of_the_test(tmp_path, capfd):
    manifest = manifest_of(
        tmp_path, "msrvtt", {"MSRVTT_data.json": json.dumps(MSRVTT_ALL), "MSRVTT_JSFUSION_test.csv": table(JSFUSION)}
    )
    assert {item.id: item.split for item in manifest.items} == {
        "video0": "train",
        "video2": "train",
        "video1": "test",
        "video3": "test",
    }
    assert captions(manifest)["video1"] == ["one, two; three"]
    assert "1k-A: 2 test clips" in capfd.readouterr().err


def test_a_missing_training_list_is_mentioned(tmp_path, capfd):
    manifest_of(tmp_path, "audiocaps", {"test.csv": table(AUDIOCAPS)})
    assert "audiocaps: no list of train found (looked for descs_ret_train.json" in capfd.readouterr().err


def test_two_lists_of_one_split_are_asked_about(tmp_path):
    files = {name: json.dumps([{"id": "a", "caption": "x"}]) for name in ("my_test.json", "your_test.json")}
    with pytest.raises(CalmrlError, match="2 lists may be that of test: my_test.json, your_test.json") as caught:
        manifest_of(tmp_path, "msrvtt", files)
    assert "rename" in caught.value.hint


def test_a_validation_list_takes_the_place_of_held_out_items(tmp_path):
    rows = [["file_name", *(f"caption_{n}" for n in range(1, 6))]]
    files = {f"clotho_captions_{part}.csv": table([*rows, *([f"{part}{n}.wav", *"abcde"] for n in range(30))]) for part in ("development", "validation", "evaluation")}  # fmt: skip
    (tmp_path / "annotations").mkdir()
    (tmp_path / "audios").mkdir()
    for name, content in files.items():
        (tmp_path / "annotations" / name).write_text(content)
    manifest = datasets.get("clotho")(tmp_path, validation=0.5).manifest()
    assert Counter(item.split for item in manifest.items) == {"train": 30, "validation": 30, "test": 30}


class TestCollisions:
    """Names that stand for several items: counted and said, never the end, and each with its own file."""

    def rows(self, *names):
        return [{"video_id": name, "caption": f"{name} {part} {k}"} for part, name in enumerate(names) for k in range(5)]

    def test_names_in_two_splits_and_twice_in_one(self, tmp_path, capfd):
        train = self.rows("a.wav", "b.wav", "c.wav", "a.wav")
        test = [{"video_id": "b.wav", "caption": [f"other {k}" for k in range(5)]}, {"video_id": "d.wav", "caption": ["x"] * 5}]
        for part, names in {"development": "abc", "validation": "a", "evaluation": "bd"}.items():
            (tmp_path / "audios" / part).mkdir(parents=True)
            for name in names:
                (tmp_path / "audios" / part / f"{name}.wav").write_text(part)
        manifest = manifest_of(
            tmp_path, "clotho", {"descs_cap_trainval.json": json.dumps(train), "descs_cap_test.json": json.dumps(test)}
        )
        assert [item.id for item in manifest.items] == [
            "train/a.wav",
            "train/a.wav#2",
            "train/b.wav",
            "c.wav",
            "test/b.wav",
            "d.wav",
        ]
        assert all(len(item.media["caption"]) == 5 for item in manifest.items)
        heard = {item.id: item.media["audio"][0].path.read_text() for item in manifest.items}
        assert heard == {
            "train/a.wav": "development", "train/a.wav#2": "validation", "train/b.wav": "development",
            "c.wav": "development", "test/b.wav": "evaluation", "d.wav": "evaluation",
        }  # fmt: skip
        said = capfd.readouterr().err
        assert "2 names stand for several items (1 in train, 1 in test and train)" in said
        assert "share a caption" not in said

    def test_one_file_is_nobodys_where_two_items_have_its_name(self, tmp_path):
        (tmp_path / "audios").mkdir()
        (tmp_path / "audios" / "b.wav").touch()
        files = {
            "descs_cap_trainval.json": json.dumps(self.rows("b.wav")),
            "descs_cap_test.json": json.dumps([{"video_id": "b.wav", "caption": list("vwxyz")}]),
        }
        manifest = manifest_of(tmp_path, "clotho", files)
        places = [item.media["audio"][0].path.relative_to(tmp_path).as_posix() for item in manifest.items]
        assert places == ["audios/development/b.wav", "audios/evaluation/b.wav"]

    def test_the_same_item_in_two_splits_is_said_to_be_a_leak(self, tmp_path, capfd):
        (tmp_path / "videos").mkdir()
        (tmp_path / "videos" / "v.mp4").touch()
        files = {name: json.dumps([{"video_id": "v", "desc": "x"}]) for name in ("descs_ret_train.json", "descs_ret_test.json")}
        manifest = manifest_of(tmp_path, "msrvtt", files)
        assert {item.id: item.split for item in manifest.items} == {"train/v": "train", "test/v": "test"}
        assert all(item.media["vision"][0].path.exists() for item in manifest.items)
        assert "1 of them share a caption: they are test items among the training items" in capfd.readouterr().err

    def test_rows_of_one_id_are_joined_and_counted(self, tmp_path, capfd):
        rows = [{"video_id": "a", "desc": "x", "subtitle": ""}, {"video_id": "a", "desc": ["x", "y"], "subtitle": "said"}]
        manifest = manifest_of(tmp_path, "msrvtt", {"descs_ret_test.json": json.dumps(rows)})
        assert captions(manifest) == {"a": ["x", "y"]}
        assert "2 rows are 1 items" in capfd.readouterr().err

    def test_one_empty_caption_does_not_refuse_a_list(self, tmp_path, capfd):
        rows = [{"video_id": "a", "desc": ["x", "", "NaN"]}, {"video_id": "b", "desc": " "}, {"video_id": "c", "desc": None}]
        rows[2]["desc"] = float("nan")
        manifest = manifest_of(tmp_path, "msrvtt", {"descs_ret_test.json": json.dumps(rows)})
        assert captions(manifest) == {"a": ["x"], "b": [], "c": []}
        assert "4 empty captions are left out; 2 items have none left" in capfd.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        "QQabc_12-3x_100.000_110.000", "YQQabc_12-3x", "QQabc_12-3x", "QQabc_12-3x_100000_110000", "QQabc_12-3x_000100", "YQQabc_12-3x_100_110",
        "QQabc_12-3x_100", "YQQabc_12-3x_100000_110000", "QQabc_12-3x_100000",
    ],
)  # fmt: skip
def test_audiocaps_files_as_downloaders_name_them(tmp_path, name):
    (tmp_path / "audios").mkdir()
    (tmp_path / "audios" / f"{name}.wav").touch()
    (tmp_path / "audios" / "QQabc_12-3y.wav").touch()
    manifest = manifest_of(
        tmp_path,
        "audiocaps",
        {"descs_ret_test.json": json.dumps([{"video_id": "QQabc_12-3x_100.000_110.000", "desc": ["a tone"]}])},
    )
    assert manifest.items[0].media["audio"][0].path.stem == name


@pytest.mark.parametrize(
    ("folder", "dataset", "items", "each"),
    [
        ("anet", "activitynet", 8, 1), ("audiocaps", "audiocaps", 4, 5), ("clotho", "clotho", 8, 5), ("didemo", "didemo", 4, 1),
        ("jsfusion", "msrvtt", 8, 1), ("msrvtt_data", "msrvtt", 8, 3), ("ret1k", "msrvtt", 8, 1), ("vatex", "vatex", 8, 10),
        ("vggs", "vggsound", 8, 1), ("webvid", "webvid", 8, 1), ("yc2", "youcook2", 4, 1),
    ],
)  # fmt: skip
def test_the_files_of_others(cli, folder, dataset, items, each):
    if not (CASES / "15").is_dir():
        pytest.skip("the collected files are not here (set CALMRL_TEST_CASES)")
    code, out, err = cli(
        "extract",
        "--dataset",
        dataset,
        "--media",
        CASES / "15" / "files" / folder,
        "--dry-run",
        "--json",
        "--set",
        "validation=0",
    )
    assert code == 0, err
    found = json.loads(out)
    assert found["items"] == items
    assert found["modalities"]["caption"]["rows_an_item"] == [each, each, each]
