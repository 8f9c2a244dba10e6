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
