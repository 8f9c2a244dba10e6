"""Classification sets: VGGSound's table and folders sorted by class."""

from __future__ import annotations

import pytest

from calmrl_lab.errors import CalmrlError
from feature_extractors.datasets import datasets
from feature_extractors.protocols import File, Text


@pytest.fixture
def vggsound(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "videos").mkdir()
    lines = [
        '---g-f_I2yQ,1,"male speech, man speaking",test',
        "--0PQM4-hqg,30,waterfall burbling,train",
        "--56QUhyDQM,185,playing tennis,train",
    ]
    (tmp_path / "annotations" / "vggsound.csv").write_text("\n".join(lines) + "\n")
    for name in ("---g-f_I2yQ_000001.mp4", "--0PQM4-hqg_30.mp4"):
        (tmp_path / "videos" / name).touch()
    return tmp_path


def test_vggsound_items_carry_their_class_as_label_and_caption(vggsound):
    items = {item.id: item for item in datasets.get("vggsound")(vggsound).manifest().items}
    first = items["---g-f_I2yQ_000001"]
    assert first.labels == {"class": "male speech, man speaking"}
    assert first.media["caption"] == (Text("male speech, man speaking"),)
    assert first.media["vision"] == first.media["audio"] == (File(vggsound / "videos" / "---g-f_I2yQ_000001.mp4"),)
    assert (first.split, first.group) == ("test", "---g-f_I2yQ")
    assert items["--0PQM4-hqg_000030"].media["vision"][0].path.name == "--0PQM4-hqg_30.mp4"
    assert items["--56QUhyDQM_000185"].media["vision"][0].path.name == "--56QUhyDQM_000185.mp4", "where it would belong"
    assert [item.id for item in datasets.get("vggsound")(vggsound, splits="train").manifest().items] == [
        "--0PQM4-hqg_000030",
        "--56QUhyDQM_000185",
    ]
    assert len(datasets.get("vggsound")(vggsound, missing="drop").manifest().items) == 2


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("a,b,c,test", "line 4 of .* expected: video, start second"),
        ("a,1,c", "line 4 of"),
        ("a,1,c,dev", "line 4 of"),
        (",1,c,test", "line 4 of"),
        ("a,²,c,test", "line 4 of"),
        ("--0PQM4-hqg,30,other,train", "'--0PQM4-hqg_000030' comes twice"),
    ],
)
def test_a_wrong_line_of_vggsound(vggsound, line, sentence):
    path = vggsound / "annotations" / "vggsound.csv"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(CalmrlError, match=sentence):
        datasets.get("vggsound")(vggsound).manifest()


def test_more_than_309_classes_are_not_vggsound(vggsound):
    path = vggsound / "annotations" / "vggsound.csv"
    path.write_text("".join(f"v{i},0,class {i},train\n" for i in range(310)))
    with pytest.raises(CalmrlError, match="310 clips of 310 classes"):
        datasets.get("vggsound")(vggsound).manifest()


def place(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_a_class_folder(tmp_path):
    place(tmp_path, "dog_bark/a.wav", "dog_bark/b.mp4", "rain/c.jpg", "rain/notes.txt", ".git/x.wav")
    manifest = datasets.get("class-folder")(tmp_path, template="a sound of {}").manifest()
    assert manifest.modalities == ("vision", "audio", "caption")
    assert [(i.id, i.split, i.labels["class"], tuple(i.media)) for i in manifest.items] == [
        ("dog_bark/a.wav", "test", "dog bark", ("audio", "caption")),
        ("dog_bark/b.mp4", "test", "dog bark", ("vision", "audio", "caption")),
        ("rain/c.jpg", "test", "rain", ("vision", "caption")),
    ]
    assert manifest.items[0].media["caption"] == (Text("a sound of dog bark"),)


def test_a_class_folder_with_splits(tmp_path):
    place(tmp_path, "train/dog/a.wav", "val/dog/b.wav", "test/cat/c.wav")
    manifest = datasets.get("class-folder")(tmp_path).manifest()
    assert [(i.id, i.split) for i in manifest.items] == [
        ("test/cat/c.wav", "test"),
        ("train/dog/a.wav", "train"),
        ("val/dog/b.wav", "validation"),
    ]


def test_no_class_folder(tmp_path):
    for make in (lambda: datasets.get("class-folder")(), lambda: datasets.get("class-folder")(tmp_path / "no")):
        with pytest.raises(CalmrlError, match="class-folder") as caught:
            make()
        assert "<class name>" in caught.value.hint
    with pytest.raises(CalmrlError, match="no media file"):
        datasets.get("class-folder")(tmp_path).manifest()
    with pytest.raises(CalmrlError, match="has no {}"):
        datasets.get("class-folder")(tmp_path, template="x")
