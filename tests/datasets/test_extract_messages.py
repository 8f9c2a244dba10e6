"""What `calmrl-lab extract` says when data or weights are not there."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("dataset", ["msrvtt", "clotho", "vggsound"])
def test_without_data_it_shows_how_the_folder_must_look(cli, tmp_path, dataset, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, said = cli("extract", "--dataset", dataset)
    assert code == 2
    assert "needs a media folder" in said
    assert "DIR/annotations/" in said
    assert "DIR/audios/" in said

    code, _, said = cli("extract", "--dataset", dataset, "--media", tmp_path)
    assert code == 2
    flat = said.replace("\n", "")
    assert f"{tmp_path}/annotations/" in flat
    assert "looked for" in flat
    assert not (tmp_path / "stores").exists()


def test_without_weights_it_says_where_they_belong(cli, tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "videos").mkdir()
    (tmp_path / "annotations" / "descs_ret_test.json").write_text('[{"video_id": "v", "desc": "a dog"}]')
    code, _, said = cli("extract", "--dataset", "msrvtt", "--media", tmp_path, "--out", tmp_path / "x.zarr")
    assert code == 2
    assert "need the released weights" in said
    assert "model_step_N.pt" in said
    code, _, said = cli(
        "extract", "--dataset", "msrvtt", "--media", tmp_path, "--weights", tmp_path, "--out", tmp_path / "x.zarr"
    )
    assert code == 2
    assert "no VAST checkpoint in" in said
    assert not (tmp_path / "x.zarr").exists()


def test_a_broken_annotation_file_is_one_sentence(cli, tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "descs_ret_test.json").write_text('[{"video_id": ')
    code, _, said = cli("extract", "--dataset", "msrvtt", "--media", tmp_path, "--out", tmp_path / "x.zarr")
    assert code == 2
    assert "no valid JSON" in said
    assert "Traceback" not in said


def test_files_that_may_not_be_read_are_one_sentence(tmp_path, monkeypatch):
    import errno
    from pathlib import Path

    from calmrl_lab.errors import CalmrlError
    from feature_extractors.annotations.annotation import Split
    from feature_extractors.annotations.read import read_annotations
    from feature_extractors.datasets.vggsound import read_rows
    from feature_extractors.encoders.vast.tensor_files import read_tensors

    def refuse(self, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    for name in ("a.json", "a.csv", "a.pt", "a.safetensors"):
        (tmp_path / name).write_text("x")
    monkeypatch.setattr(Path, "open", refuse)
    readers = {"a.json": lambda path: read_annotations(path, Split("test", ())), "a.csv": read_rows}
    for name in ("a.json", "a.csv", "a.pt", "a.safetensors"):
        with pytest.raises(CalmrlError, match=f"{name}' cannot be read: permission denied"):
            readers.get(name, read_tensors)(tmp_path / name)


def test_whether_tokens_can_be_kept_is_known_before_anything_is_extracted(cli, tmp_path):
    (tmp_path / "words.csv").write_text("id,split,english\na,test,cat\nb,test,dog\n")
    words = (
        "--dataset",
        "folder",
        "--manifest",
        tmp_path / "words.csv",
        "--out",
        tmp_path / "words.zarr",
        "--save-rerank-tokens",
    )
    code, _, said = cli("extract", *words, "--encoders", "english=identity")
    assert code == 2
    assert "condition tokens need VAST's encoders" in said
    assert not (tmp_path / "words.zarr").exists()
