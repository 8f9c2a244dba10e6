"""`calmrl-lab store`: what it prints, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from calmrl_lab.cli import app
from calmrl_lab.commands.store import assignments, for_all_or_one
from calmrl_lab.errors import CalmrlError
from calmrl_lab.store import FeatureStore


def run(*words):
    return CliRunner().invoke(app, ["store", *map(str, words)], env={"COLUMNS": "160", "TERM": "dumb"})


def as_json(*words):
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_info_shows_everything_one_asks_about_a_store(store_path, monkeypatch):
    monkeypatch.setattr("calmrl_lab.runtime.console.out.width", 160, raising=False)
    text = run("info", store_path).output
    for part in (
        "dataset five",
        "licence: CC0",
        "5 items (2 train, 1 validation, 2 test) in 4 groups; 1 show every modality, 1 without any",
        "labels: category (3), sub group (5)",
        "failed media: decode_error (1)",
        "heads: contra_head_v [2, 4]",
        "encoder-audio",
        "vision+audio+caption",
    ):
        assert part in text, part


def test_info_as_json(store_path):
    found = as_json("info", store_path)
    audio = next(m for m in found["modalities"] if m["name"] == "audio")
    assert {key: audio[key] for key in ("observed", "absent", "failed", "not_extracted", "rows")} == {
        "observed": 2,
        "absent": 1,
        "failed": 2,
        "not_extracted": 0,
        "rows": 2,
    }
    #                          vision audio caption
    assert found["co_observed"] == [[3, 1, 2], [1, 2, 1], [2, 1, 2]]
    patterns = {entry["pattern"]: entry["items"] for entry in found["patterns"]}
    assert patterns == {"vision+audio+caption": 1, "vision+caption": 1, "audio": 1, "vision": 1, "": 1}
    assert found["splits"] == {"train": 2, "validation": 1, "test": 2}
    assert found["digest"] == FeatureStore.open(store_path).digest


def test_verify_and_its_exit_codes(store_path, tmp_path):
    assert run("verify", store_path).exit_code == 0
    chunk = store_path / "features/vision/c/0/0"
    chunk.write_bytes(b"\1" + chunk.read_bytes()[1:])
    result = run("verify", store_path)
    assert result.exit_code == 1
    assert "features/vision/c/0/0: the checksum differs" in result.output
    found = json.loads(run("verify", store_path, "--json").stdout)
    assert found["whole"] is False
    result = run("verify", tmp_path)
    assert isinstance(result.exception, CalmrlError)
    assert result.exception.exit_code == 2


def test_import_export_merge_from_the_command_line(tmp_path):
    rows = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    np.save(tmp_path / "v.npy", rows)
    np.savez(tmp_path / "t.npz", features=rows[:2], ids=np.array(["b", "c"]))
    np.save(tmp_path / "seen.npy", np.array([1, 1, 1, 0]))
    (tmp_path / "ids.txt").write_text("a\nb\nc\nd\n")
    words = ["import", "--out", tmp_path / "s.zarr", "--ids", f"vision={tmp_path / 'ids.txt'}", "--encoder", "vision=clip",
             "--modality", f"vision={tmp_path / 'v.npy'}", "--modality", f"text={tmp_path / 't.npz'}",
             "--mask", f"vision={tmp_path / 'seen.npy'}", "--drop-empty"]  # fmt: skip
    found = as_json(*words)
    assert (found["items"], found["modalities"], found["gaps"]) == (4, ["vision", "text"], 3)
    store = FeatureStore.open(tmp_path / "s.zarr")
    assert store.reason.tolist() == [[0, 3], [0, 0], [0, 0], [1, 3]]
    assert store.spec("vision").encoder == "clip"
    again = run(*words)
    assert isinstance(again.exception, CalmrlError)
    assert run(*words, "--overwrite").exit_code == 0
    as_json("export", tmp_path / "s.zarr", "--out", tmp_path / "s.h5")
    assert as_json("import", tmp_path / "s.h5", "--out", tmp_path / "back.zarr")["digest"] == store.digest
    words = [
        "--modality",
        f"vision={tmp_path / 't.npz'}",
        "--encoder",
        "vision=clip",
        "--modality",
        f"text={tmp_path / 't.npz'}",
    ]
    other = as_json("import", "--out", tmp_path / "other.zarr", *words)
    assert other["items"] == 2
    result = run("merge", tmp_path / "s.zarr", tmp_path / "other.zarr", "--out", tmp_path / "m.zarr")
    assert "the item 'b' is in" in str(result.exception)


@pytest.mark.parametrize("command", ["info", "verify", "import", "export", "merge"])
def test_every_command_has_an_example(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: calmrl-lab store {command}" in " ".join(result.output.split())


def test_words_of_the_command_line():
    assert assignments("x", ["a=b=c"]) == {"a": "b=c"}
    assert for_all_or_one("ids", ["f.txt", "v=g.txt"]) == ("f.txt", {"v": "g.txt"})
    for words, message in ((["a"], "not of the form"), (["a="], "not of the form"), (["a=1", "a=2"], "names 'a' twice")):
        with pytest.raises(CalmrlError, match=message):
            assignments("x", words)
    with pytest.raises(CalmrlError, match="given twice for all"):
        for_all_or_one("ids", ["a", "b"])


def test_naming_the_store_imports_nothing_heavy():
    heavy = "{'torch', 'pandas', 'zarr', 'pyarrow', 'h5py'} & set(sys.modules)"
    code = f"import sys, calmrl_lab.store, calmrl_lab.commands.store; print({heavy} or 'light')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "light"


def test_opening_and_reading_a_store_needs_no_zarr(store_path):
    code = (
        "import sys; from calmrl_lab.store import FeatureStore; s = FeatureStore.open(sys.argv[1]); "
        "s.features('vision'), s.ids, s.heads, s.rows('audio', [0]); print({'zarr', 'torch'} & set(sys.modules) or 'light')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(store_path)], capture_output=True, text=True)
    assert done.stdout.strip() == "light", done.stderr
