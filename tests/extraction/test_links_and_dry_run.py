"""Links in a media folder: followed where the user allows it, refused at once otherwise; and what a dry run says."""

from __future__ import annotations

import json

import pytest

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store import FeatureStore
from feature_extractors.datasets import datasets
from feature_extractors.request import resolve_request

ENCODERS = "vision=fake,caption=fake"


@pytest.fixture
def media(tmp_path):
    """Annotations of three clips that lie on another disk."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "media" / "annotations").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "disk" / f"video{number}.mp4").write_text(f"clip {number}")
    rows = [{"video_id": f"video{number}", "desc": "x"} for number in range(3)]
    (tmp_path / "media" / "annotations" / "descs_ret_test.json").write_text(json.dumps(rows))
    return tmp_path / "media"


def link(media, way):
    disk = media.parent / "disk"
    if way == "folder":
        (media / "videos").symlink_to(disk)
        return
    (media / "videos").mkdir()
    if way == "part":
        (media / "videos" / "part1").symlink_to(disk)
    else:
        for number in range(3):
            (media / "videos" / f"video{number}.mp4").symlink_to(disk / f"video{number}.mp4")


@pytest.mark.parametrize("way", ["folder", "part", "files"])
def test_links_to_another_disk(cli, fakes, media, tmp_path, way):
    link(media, way)
    words = (
        "extract",
        "--dataset",
        "msrvtt",
        "--media",
        media,
        "--encoders",
        ENCODERS,
        "--out",
        tmp_path / "s.zarr",
        "--workers",
        1,
    )
    code, _, err = cli(*words)
    assert code == 2
    assert "is a link to" in err
    assert "outside the media folder" in err
    assert f"--follow-links {tmp_path / 'disk'}" in " ".join(err.split())
    assert not (tmp_path / "s.zarr").exists()
    code, _, err = cli(*words, "--follow-links", tmp_path / "elsewhere")
    assert code == 2
    code, _, err = cli(*words, "--follow-links", tmp_path / "disk")
    assert code == 0, err
    assert FeatureStore.open(tmp_path / "s.zarr").mask[:, 0].all()


def test_links_inside_of_the_media_folder_need_no_leave(media):
    (media / "videos").mkdir()
    for number in range(3):
        (media / "clips").mkdir(exist_ok=True)
        (media / "clips" / f"video{number}.mp4").write_text("x")
    (media / "videos" / "all").symlink_to(media / "clips")
    (media / "videos" / "round").symlink_to(media / "videos")
    manifest = resolve_request("msrvtt", "vision=identity", media).manifest
    assert all(item.media["vision"][0].path.exists() for item in manifest.items)


def test_a_linked_class_folder(tmp_path):
    (tmp_path / "disk" / "dog").mkdir(parents=True)
    (tmp_path / "disk" / "dog" / "a.jpg").touch()
    (tmp_path / "media" / "cat").mkdir(parents=True)
    (tmp_path / "media" / "cat" / "b.jpg").touch()
    (tmp_path / "media" / "dog").symlink_to(tmp_path / "disk" / "dog")
    with pytest.raises(CalmrlError, match="is a link to"):
        datasets.get("class-folder")(tmp_path / "media").manifest()
    manifest = datasets.get("class-folder")(tmp_path / "media", follow_links=[tmp_path / "disk"]).manifest()
    assert [item.id for item in manifest.items] == ["cat/b.jpg", "dog/a.jpg"]


def test_a_dry_run_says_what_there_is_and_decodes_nothing(cli, media, tmp_path):
    (media / "videos").mkdir()
    (media / "videos" / "video0.mp4").write_text("no video at all")
    (media / "videos" / "video1.mp4").touch()
    out = tmp_path / "s.zarr"
    words = ("extract", "--dataset", "msrvtt", "--media", media, "--out", out, "--dry-run")
    code, said, err = cli(*words, "--json")
    assert code == 0, err
    found = json.loads(said)
    assert (found["items"], found["splits"], found["groups"]) == (3, {"test": 3}, 3)
    vision = found["modalities"]["vision"]
    assert {key: vision[key] for key in ("encoder", "items", "rows", "files", "files_missing", "files_empty")} == {
        "encoder": "vast/eva-g-16-crop", "items": 3, "rows": 3, "files": 3, "files_missing": 1, "files_empty": 1,
    }  # fmt: skip
    assert vision["first_missing"] == [str(media / "videos" / "video2.mp4")]
    assert found["modalities"]["caption"]["rows_an_item"] == [1, 1, 1]
    code, said, _ = cli(*words)
    assert code == 0
    assert "3 items (3 test) in 3 groups" in said
    assert "vision: not there: " in said
    assert not out.exists()


def test_a_dry_run_needs_neither_encoders_nor_media(cli, tmp_path):
    table = tmp_path / "items.csv"
    table.write_text("id,vision,caption\na,1.jpg,x\na,1.jpg,y\nb,2.jpg,\n")
    (tmp_path / "media").mkdir()
    code, said, err = cli(
        "extract", "--dataset", "folder", "--media", tmp_path / "media", "--manifest", table, "--dry-run", "--json"
    )
    assert code == 0, err
    found = json.loads(said)
    assert found["modalities"]["vision"]["files_missing"] == 2
    assert found["modalities"]["caption"] | {"encoder": None} == found["modalities"]["caption"]
    assert (found["modalities"]["caption"]["items"], found["modalities"]["caption"]["rows"]) == (1, 2)


def test_a_dry_run_says_which_modality_of_the_preset_nobody_has(cli, tmp_path):
    for name in ("train/cat/a.jpg", "test/dog/b.jpg", "annotations/list.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    code, said, err = cli("extract", "--dataset", "class-folder", "--media", tmp_path, "--dry-run")
    assert code == 0, err
    assert "2 items (1 test, 1 train)" in said
    assert "no item has audio: choose --encoders vision=vast/eva-g,caption=vast/bert-caption" in said
    assert cli("extract", "--dataset", "class-folder", "--media", tmp_path, "--dry-run", "--encoders", "open")[0] == 2
