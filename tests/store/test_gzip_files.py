"""Text and tars that gzip compressed are read as what they hold; what unpacks to far more than its size is refused."""

from __future__ import annotations

import gzip
import io
import json
import tarfile

import numpy as np
import pandas as pd
import pytest

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store import FeatureStore
from calmrl_lab.store.convert.feature_files import read_source
from calmrl_lab.store.convert.import_arrays import import_features
from calmrl_lab.store.convert.item_tables import read_ids, read_table
from calmrl_lab.store.convert.reading import gzip_files
from calmrl_lab.store.convert.records import read_records
from feature_extractors.datasets.folder import Folder
from feature_extractors.datasets.msrvtt import MSRVTT

V = np.random.default_rng(1).standard_normal((9, 3)).astype(np.float32)
NAMES = [f"clip{number}" for number in range(9)]
FRAME = pd.DataFrame(V, columns=["x0", "x1", "x2"]).assign(id=NAMES)
LINES = [{"id": name, "features": row.tolist()} for name, row in zip(NAMES, V, strict=True)]


def tar(path, mode):
    with tarfile.open(path, mode) as archive:
        for name, row in zip(NAMES, V, strict=True):
            buffer = io.BytesIO()
            np.save(buffer, row)
            info = tarfile.TarInfo(f"{name}.npy")
            info.size = buffer.tell()
            archive.addfile(info, io.BytesIO(buffer.getvalue()))


WRITERS = {
    "v.csv": lambda path: FRAME.to_csv(path, index=False),
    "v.tsv": lambda path: FRAME.to_csv(path, index=False, sep="\t"),
    "v.txt": lambda path: FRAME.to_csv(path, index=False, sep=";", decimal=","),
    "v.jsonl": lambda path: path.write_text("\n".join(map(json.dumps, LINES))),
    "v.ndjson": lambda path: path.write_text("\n".join(map(json.dumps, LINES)) + "\n"),
    "v.json": lambda path: path.write_text(json.dumps(dict(zip(NAMES, V.tolist(), strict=True)))),
    "v.tar": lambda path: tar(path, "w"),
}


def packed(path):
    """Compressed, under its own name with .gz."""
    made = path.with_name(f"{path.name}.gz")
    made.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return made


@pytest.mark.parametrize("name", WRITERS)
def test_compressed_features_are_those_of_the_plain_file(name, tmp_path):
    WRITERS[name](tmp_path / name)
    plain = FeatureStore.open(import_features(tmp_path / "a.zarr", {"v": tmp_path / name}, encoders={"v": "mine"}))
    path = packed(tmp_path / name)
    store = FeatureStore.open(import_features(tmp_path / "b.zarr", {"v": path}, encoders={"v": "mine"}))
    assert store.ids.tolist() == NAMES
    assert store.digest == plain.digest


def test_a_folder_of_compressed_tars_and_the_short_ending(tmp_path):
    (tmp_path / "shards").mkdir()
    tar(tmp_path / "shards" / "00000.tgz", "w:gz")
    for path in (tmp_path / "shards", tmp_path / "shards" / "00000.tgz"):
        source = read_source(path, "v")
        assert source.ids.tolist() == NAMES
        np.testing.assert_array_equal(source.rows, V)


def test_compressed_tables_ids_manifests_and_annotations(tmp_path):
    FRAME[["id"]].assign(split="train", label="a").to_csv(tmp_path / "items.csv.gz", index=False)
    (tmp_path / "ids.txt.gz").write_bytes(gzip.compress("\n".join(NAMES).encode()))
    (tmp_path / "ids.json.gz").write_bytes(gzip.compress(json.dumps(NAMES).encode()))
    assert read_table(tmp_path / "items.csv.gz").ids == NAMES
    for name in ("ids.txt.gz", "ids.json.gz", "items.csv.gz"):
        assert read_ids(tmp_path / name).tolist() == NAMES
    FRAME[["id"]].assign(caption="a dog").to_csv(tmp_path / "captions.csv.gz", index=False)
    manifest = Folder(manifest=tmp_path / "captions.csv.gz").manifest()
    assert manifest.dataset == "captions"
    assert [item.id for item in manifest.items] == NAMES
    (tmp_path / "annotations").mkdir()
    (tmp_path / "videos").mkdir()
    listed = [{"video_id": name, "desc": "a dog"} for name in NAMES]
    (tmp_path / "annotations" / "descs_ret_test.json.gz").write_bytes(gzip.compress(json.dumps(listed).encode()))
    found = MSRVTT(media=tmp_path).manifest()
    assert [item.id for item in found.items] == NAMES


def test_what_is_compressed_is_told_by_its_bytes(tmp_path):
    FRAME.to_csv(tmp_path / "v.csv.gz", index=False, compression=None)
    (tmp_path / "w.csv").write_bytes(gzip.compress((tmp_path / "v.csv.gz").read_bytes()))
    for name in ("v.csv.gz", "w.csv"):
        np.testing.assert_array_equal(read_source(tmp_path / name, "v").rows, V)


@pytest.mark.parametrize("name", ["v.csv.gz", "v.json.gz", "v.jsonl.gz", "v.tar.gz", "v.tgz"])
def test_a_bomb_is_refused_before_it_fills_the_memory(name, tmp_path, monkeypatch):
    monkeypatch.setattr(gzip_files, "_HARMLESS", 1 << 16)
    path = tmp_path / name
    with tarfile.open(tmp_path / "plain", "w") as archive:
        info = tarfile.TarInfo("a.npy")
        info.size = 1 << 22
        archive.addfile(info, io.BytesIO(bytes(1 << 22)))
    path.write_bytes(gzip.compress((tmp_path / "plain").read_bytes()))
    with pytest.raises(CalmrlError, match="unpacks to more than 200 times its size"):
        read_source(path, "v")
    with pytest.raises(CalmrlError, match="unpacks to more than 200 times its size"):
        read_records(path)


@pytest.mark.parametrize("name", ["v.csv", "v.json", "v.jsonl", "v.tar"])
def test_compressed_files_that_are_damaged_are_named(name, tmp_path):
    WRITERS[name](tmp_path / name)
    path = packed(tmp_path / name)
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:-4], whole[:40] + bytes(20) + whole[60:]):
        path.write_bytes(broken)
        with pytest.raises(CalmrlError, match="is damaged") as caught:
            read_source(path, "v")
        assert "download it again" in caught.value.hint


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_text_is_read_as_its_byte_order_mark_says(encoding, tmp_path):
    frame = FRAME.assign(id=[f"é{name}" for name in NAMES])
    text = frame.to_csv(index=False, sep="\t", lineterminator="\r\n")
    mark = "\ufeff" if encoding[-2:] in ("le", "be") else ""
    (tmp_path / "v.txt").write_bytes((mark + text).encode(encoding))
    source = read_source(tmp_path / "v.txt", "v")
    assert source.ids.tolist() == frame["id"].tolist()
    np.testing.assert_array_equal(source.rows, V)
