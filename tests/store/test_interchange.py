"""Export and import: everything comes back exactly, and features from elsewhere are matched by id."""

from __future__ import annotations

import csv
import json
import pickle

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from safetensors.torch import save_file

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store import FeatureStore, verify
from calmrl_lab.store.convert import export as exporting
from calmrl_lab.store.convert.export import export_store
from calmrl_lab.store.convert.import_arrays import import_features
from calmrl_lab.store.convert.restore import restore

from .conftest import IDS

ENDINGS = ("h5", "npz", "parquet")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("rows_a_block", [2, 16384])
def test_export_and_import_give_the_same_store(store_path, tmp_path, ending, rows_a_block, monkeypatch):
    monkeypatch.setattr(exporting, "CHUNK_ROWS", rows_a_block)
    store = FeatureStore.open(store_path)
    exported = export_store(store, tmp_path / f"x.{ending}")
    restored = FeatureStore.open(restore(exported, tmp_path / "back.zarr"))
    assert restored.digest == store.digest
    assert restored.provenance == store.provenance
    assert verify(tmp_path / "back.zarr") == []


def test_exports_are_plain_files_that_others_can_read(store_path, tmp_path, five):
    store = FeatureStore.open(store_path)
    vision = five["features"]["vision"]
    with h5py.File(export_store(store, tmp_path / "x.h5")) as file:
        assert_array_equal(file["features/vision"][:], vision)
        assert file["ids"].asstr()[:].tolist() == IDS
    with np.load(export_store(store, tmp_path / "x.npz"), allow_pickle=False) as archive:
        assert_array_equal(archive["features/vision"], vision)
        assert archive["ids"].tolist() == IDS
    table = pq.read_table(export_store(store, tmp_path / "x.parquet") / "features" / "caption.parquet")
    assert table["id"].to_pylist() == [IDS[0], IDS[0], IDS[1]]
    assert_array_equal(np.array(table["features"].to_pylist(), dtype=np.float16), five["features"]["caption"])


def test_an_export_does_not_replace_what_it_did_not_write(store_path, tmp_path):
    store = FeatureStore.open(store_path)
    (tmp_path / "x.parquet").mkdir()
    (tmp_path / "x.parquet" / "mine.txt").write_text("x")
    for overwrite, message in ((False, "exists already"), (True, "something else")):
        with pytest.raises(CalmrlError, match=message):
            export_store(store, tmp_path / "x.parquet", overwrite=overwrite)
    for _ in range(2):
        export_store(store, tmp_path / "y.parquet", overwrite=True)
        export_store(store, tmp_path / "y.npz", overwrite=True)
    with pytest.raises(CalmrlError, match="the ending of .* is no export format"):
        export_store(store, tmp_path / "x.xlsx")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_damaged_export_is_refused(store_path, tmp_path, ending):
    exported = export_store(FeatureStore.open(store_path), tmp_path / f"x.{ending}")
    file = exported / "features" / "vision.parquet" if exported.is_dir() else exported
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CalmrlError, match="cannot be read"):
        restore(exported, tmp_path / "back.zarr")
    assert not (tmp_path / "back.zarr").exists()


N, D = 6, 3
ROWS = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)
NAMES = [f"{letter}/'\"\n\U0001f642" for letter in "abcdef"]


def write_source(folder, kind: str) -> str:
    """The same rows in one of the formats, with ids inside wherever the format has room for them."""
    path = folder / f"rows.{kind.split('-')[0]}"
    if kind == "npy":
        np.save(path, ROWS)
    elif kind == "npz":
        np.savez(path, vision=ROWS, other=ROWS.T, ids=np.array(NAMES))
    elif kind == "h5":
        with h5py.File(path, "w") as file:
            file["set/features"] = ROWS
            file["set/other"] = ROWS.T
            file.create_dataset("set/ids", data=NAMES, dtype=h5py.string_dtype())
    elif kind == "parquet":
        pq.write_table(pa.table({"id": NAMES, "length": np.arange(N), "features": list(ROWS)}), path)
    elif kind == "parquet-wide":
        pq.write_table(pa.table({"id": NAMES, **{f"x{j}": ROWS[:, j] for j in range(D)}}), path)
    elif kind == "safetensors":
        save_file({"embeddings": torch.from_numpy(ROWS)}, path, metadata={"ids": json.dumps(NAMES)})
    elif kind == "pt":
        torch.save({"features": torch.from_numpy(ROWS), "ids": NAMES}, path)
    elif kind == "pt-tensor":
        torch.save(torch.from_numpy(ROWS), path)
    elif kind == "pt-by-id":
        torch.save({name: torch.from_numpy(row.copy()) for name, row in zip(NAMES, ROWS, strict=True)}, path)
    return str(path) + {"h5": ":set/features", "npz": ":vision"}.get(kind, "")


KINDS = ["npy", "npz", "h5", "parquet", "parquet-wide", "safetensors", "pt", "pt-tensor", "pt-by-id"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_features(tmp_path, kind):
    file = write_source(tmp_path, kind)
    ids = NAMES if kind in ("npy", "pt-tensor") else None
    store = FeatureStore.open(import_features(tmp_path / "s.zarr", {"vision": file, "again": file}, ids=ids))
    assert store.ids.tolist() == NAMES
    assert_array_equal(store.features("vision"), ROWS)
    assert store.features("vision").dtype == np.float32
    assert store.mask.all()


def test_ids_are_matched_by_name_and_gaps_get_their_reason(tmp_path):
    #               vision: a b c      text: c (2 captions), x, a      b's vision is NaN; x only in text
    vision = np.array([[1, 1], [np.nan, np.nan], [3, 3]], dtype=np.float32)
    np.savez(tmp_path / "v.npz", features=vision, ids=np.array(["a", "b", "c"]))
    text = np.array([[30.0], [31.0], [0.0], [10.0], [7.0]])
    keep = np.array([True, True, True, True, False])
    np.savez(tmp_path / "t.npz", features=text, ids=np.array(["c", "c", "x", "a", "b"]), mask=keep)
    np.savez(tmp_path / "w.npz", features=np.ones((1, 2)), ids=np.array(["b"]))
    files = {name: tmp_path / f"{name[0]}.npz" for name in ("vision", "text", "words")}
    store = FeatureStore.open(import_features(tmp_path / "s.zarr", files))
    assert store.ids.tolist() == ["a", "b", "c", "x"]
    #                               vision text words      0 observed, 1 absent, 3 not extracted
    assert store.reason.tolist() == [[0, 0, 3], [1, 1, 0], [0, 0, 3], [3, 0, 3]]
    assert store.features("text")[:, 0].tolist() == [10, 30, 31, 0]
    assert store.offsets("text").tolist() == [0, 1, 1, 3, 4]
    assert store.features("vision").tolist() == [[1, 1], [3, 3]]
    assert store.specs[0].encoder == "imported"
    assert store.specs[0].fingerprint.startswith("file:")


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_alignment_equals_a_dictionary(tmp_path_factory, data):
    """The slow twin: a dict from id to the list of its rows."""
    folder = tmp_path_factory.mktemp("align")
    letters = st.sampled_from("abcdefgh")
    expected, files = {}, {}
    for name in ("one", "two"):
        ids = data.draw(st.lists(letters, min_size=1, max_size=8))
        missing = data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
        rows = np.arange(2.0 * len(ids)).reshape(-1, 2) + 1
        rows[missing] = np.nan
        np.savez(folder / f"{name}.npz", features=rows, ids=np.array(ids))
        files[name] = folder / f"{name}.npz"
        expected[name] = {}
        for item, row, gone in zip(ids, rows, missing, strict=True):
            expected[name].setdefault(item, []).extend([] if gone else [row.tolist()])
    everyone = dict.fromkeys([*expected["one"], *expected["two"]])
    # An item whose every file says "missing" is left out; one that some file does not have is kept.
    kept = [i for i in everyone if any(expected[m].get(i, ["?"]) for m in expected)]
    if not kept:
        return
    store = FeatureStore.open(import_features(folder / "s.zarr", files, drop_empty=True, min_shared=0))
    assert store.ids.tolist() == kept
    for name, rows in expected.items():
        offsets = store.offsets(name)
        for number, item in enumerate(kept):
            assert store.features(name)[offsets[number] : offsets[number + 1]].tolist() == rows.get(item, [])


def test_a_table_gives_order_splits_groups_and_labels(tmp_path):
    np.savez(tmp_path / "v.npz", features=np.ones((2, 2)), ids=np.array(["b,1", "NA"]))
    with open(tmp_path / "items.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [
                ["id", "split", "group", "kind of"],
                ["NA", "test", "g", "1"],
                ["b,1", "train", "", "2"],
                ["late", "train", "h", ""],
            ]
        )
    store = FeatureStore.open(import_features(tmp_path / "s.zarr", {"v": tmp_path / "v.npz"}, table=tmp_path / "items.csv"))
    assert store.ids.tolist() == ["NA", "b,1", "late"]
    assert store.split.tolist() == ["test", "train", "train"]
    assert store.group.tolist() == ["g", "b,1", "h"]
    assert store.labels["kind of"].tolist() == ["1", "2", ""]
    assert store.reason[:, 0].tolist() == [0, 0, 3]


def test_files_as_spreadsheets_and_windows_write_them(tmp_path):
    """A byte order mark is no part of the first id, and an ending in capitals is one."""
    np.save(tmp_path / "v.npy", ROWS[:2])
    (tmp_path / "ids.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\r\n")
    (tmp_path / "items.CSV").write_bytes(b"\xef\xbb\xbfid,split\r\nb,test\r\na,train\r\n")
    (tmp_path / "items.jsonl").write_bytes(b'\xef\xbb\xbf{"id": "b", "split": "test"}\r\n{"id": "a", "split": "train"}\r\n')
    for number, table in enumerate(("items.CSV", "items.jsonl")):
        path = import_features(
            tmp_path / f"{number}.zarr", {"v": tmp_path / "v.npy"}, ids=tmp_path / "ids.txt", table=tmp_path / table
        )
        store = FeatureStore.open(path)
        assert store.ids.tolist() == ["b", "a"]
        assert_array_equal(store.features("v"), ROWS[[1, 0]])


def test_ids_kept_as_bytes_are_utf8(tmp_path):
    names = [name.encode() for name in NAMES]
    np.savez(tmp_path / "v.npz", features=ROWS, ids=np.array(names))
    np.save(tmp_path / "ids.npy", np.array(names))
    np.save(tmp_path / "v.npy", ROWS)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["features"], file["ids"] = ROWS, np.array(names)
    for number, (name, ids) in enumerate({"v.npz": None, "v.h5": None, "v.npy": tmp_path / "ids.npy"}.items()):
        store = FeatureStore.open(import_features(tmp_path / f"{number}.zarr", {"v": tmp_path / name}, ids=ids))
        assert store.ids.tolist() == NAMES


def test_a_row_without_id_belongs_to_nobody(tmp_path):
    """Two of them would otherwise be two rows of an item called 'None'."""
    pq.write_table(pa.table({"id": ["a", None, None], "features": list(ROWS[:3])}), tmp_path / "v.parquet")
    assert "row 1 has no id" in refusal(tmp_path, {"v": tmp_path / "v.parquet"})


def test_an_import_reads_no_other_file(tmp_path):
    with h5py.File(tmp_path / "private.h5", "w") as file:
        file["features"] = ROWS
    layout = h5py.VirtualLayout(ROWS.shape, ROWS.dtype)
    layout[:] = h5py.VirtualSource(tmp_path / "private.h5", "features", ROWS.shape)
    with h5py.File(tmp_path / "linked.h5", "w") as file:
        file["features"] = h5py.ExternalLink(tmp_path / "private.h5", "features")
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_virtual_dataset("features", layout)
    for name in ("linked.h5", "virtual.h5"):
        assert "does not say which" in refusal(tmp_path, {"v": tmp_path / name})


def test_normalising_and_storing_as_float16(tmp_path):
    np.save(tmp_path / "v.npy", 1e6 * ROWS)
    store = FeatureStore.open(import_features(tmp_path / "s.zarr", {"v": tmp_path / "v.npy"}, normalise=True, dtype="float16"))
    assert store.ids.tolist() == list("012345")
    expected = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)
    np.testing.assert_allclose(store.features("v"), expected, atol=5e-4)
    with pytest.raises(CalmrlError, match="too large for float16"):
        import_features(tmp_path / "t.zarr", {"v": tmp_path / "v.npy"}, dtype="float16")


@pytest.mark.parametrize(
    ("tensor", "stored"), [(torch.bfloat16, "float32"), (torch.float16, "float16"), (torch.int64, "float64")]
)
def test_types_that_are_not_stored_as_they_are(tmp_path, tensor, stored):
    values = torch.arange(6).reshape(3, 2).to(tensor)
    save_file({"features": values}, tmp_path / "v.safetensors")
    store = FeatureStore.open(import_features(tmp_path / "s.zarr", {"v": tmp_path / "v.safetensors"}))
    assert store.spec("v").dtype == stored
    assert_array_equal(store.features("v").astype(float), values.double().numpy())


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (self.target, "w"))


def test_code_in_a_file_is_never_executed(tmp_path):
    marker = str(tmp_path / "executed")
    torch.save({"features": torch.ones(2, 2), "x": Bomb(marker)}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Bomb(marker)))
    np.save(tmp_path / "c.npy", np.array([Bomb(marker)], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "d.npz", features=np.ones((2, 2)), ids=np.array([Bomb(marker), 1], dtype=object))
    for name in ("a.pt", "b.pt", "c.npy", "d.npz"):
        with pytest.raises(CalmrlError, match="holds Python objects"):
            import_features(tmp_path / "s.zarr", {"v": tmp_path / name})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "b.pt", "c.npy", "d.npz"]


def refusal(folder, *arguments, **options) -> str:
    with pytest.raises(CalmrlError) as caught:
        import_features(folder / "s.zarr", *arguments, **options)
    assert not (folder / "s.zarr").exists()
    assert "\n" not in caught.value.message
    return caught.value.message


def test_what_cannot_be_imported_is_said_in_one_sentence(tmp_path):
    np.save(tmp_path / "six.npy", ROWS)
    np.save(tmp_path / "five.npy", ROWS[:5])
    np.save(tmp_path / "flat.npy", np.arange(3.0))
    np.savez(tmp_path / "named.npz", features=ROWS, ids=np.array(list("abcdef")))
    np.savez(tmp_path / "unclear.npz", x=ROWS, y=ROWS)
    partial = ROWS.copy()
    partial[2, 1] = np.nan
    np.save(tmp_path / "partial.npy", partial)
    np.save(tmp_path / "gone.npy", np.where(np.arange(N)[:, None] == 4, np.nan, ROWS))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "six.npy").read_bytes()[:90])
    (tmp_path / "text.h5").write_text("hello")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "ids.txt").write_text("a\nb\n")
    np.save(tmp_path / "bits.npy", ROWS > 0)
    np.savez(tmp_path / "odd.npz", features=ROWS, mask=np.array([1, 0, 1, np.nan, 1, 1]))
    (tmp_path / "torn.csv").write_text("id,split,group\na,train,g\nb,test,h\nc,test,g\nd,test,\ne,test,\nf,test,\n")
    (tmp_path / "items.csv").write_text("id,split\na,train\n")
    (tmp_path / "broken.csv").write_text("id,split\na\n")
    (tmp_path / "mask.npy").write_bytes(b"")
    path = {p.name: str(p) for p in tmp_path.iterdir()}
    assert "nothing to import" in refusal(tmp_path, {})
    assert "does not exist" in refusal(tmp_path, {"v": tmp_path / "no.npy"})
    assert "not read from '.docx' files" in refusal(tmp_path, {"v": tmp_path / "x.docx"})
    assert "no numbered columns" in refusal(tmp_path, {"v": path["items.csv"]})
    assert "are float64 [3]; expected numbers [rows, d]" in refusal(tmp_path, {"v": path["flat.npy"]})
    assert "are bool [6, 3]; expected numbers" in refusal(tmp_path, {"v": path["bits.npy"]})
    assert "holds float64 values other than 0 and 1" in refusal(tmp_path, {"v": path["odd.npz"]})
    torn = refusal(tmp_path, {"v": path["named.npz"]}, table=path["torn.csv"])
    assert "puts the group 'g' into train and into test (item 'c')" in torn
    assert "different numbers of rows (v 6, w 5)" in refusal(tmp_path, {"v": path["six.npy"], "w": path["five.npy"]})
    assert "holds no ids for 'v'" in refusal(tmp_path, {"v": path["six.npy"], "w": path["named.npz"]})
    assert "has 6 rows of 'v', but 2 ids" in refusal(tmp_path, {"v": path["six.npy"]}, ids=path["ids.txt"])
    assert "does not say which" in refusal(tmp_path, {"v": path["unclear.npz"]})
    assert "has no features called 'z'" in refusal(tmp_path, {"v": path["unclear.npz"] + ":z"})
    assert "item '2' hold NaN" in refusal(tmp_path, {"v": path["partial.npy"]})
    assert "1 of 6 items have no modality at all, the first is '4'" in refusal(tmp_path, {"v": path["gone.npy"]})
    assert "cannot be read as npy" in refusal(tmp_path, {"v": path["cut.npy"]})
    assert "cannot be read as h5" in refusal(tmp_path, {"v": path["text.h5"]})
    assert "text.pt'" in refusal(tmp_path, {"v": path["text.pt"]})
    assert "5 of 6 items are not in the table" in refusal(tmp_path, {"v": path["named.npz"]}, table=path["items.csv"])
    assert "line 2 has 1 columns, the heading has 2" in refusal(tmp_path, {"v": path["named.npz"]}, table=path["broken.csv"])
    assert "a mask is given for 'w'" in refusal(tmp_path, {"v": path["six.npy"]}, masks={"w": path["mask.npy"]})
    assert "cannot be read as npy" in refusal(tmp_path, {"v": path["six.npy"]}, masks={"v": path["mask.npy"]})
    assert "dtype 'int8' is unknown" in refusal(tmp_path, {"v": path["six.npy"]}, dtype="int8")
    assert "modality name '../v' cannot be stored" in refusal(tmp_path, {"../v": path["six.npy"]})


def test_what_is_no_export(tmp_path, store_path):
    np.savez(tmp_path / "x.npz", features=ROWS)
    (tmp_path / "x.txt").write_text("x")
    for name in ("x.npz", "x.txt", "five.zarr"):
        with pytest.raises(CalmrlError, match="is not an exported store"):
            restore(tmp_path / name, tmp_path / "s.zarr")
    with pytest.raises(CalmrlError, match="does not exist"):
        restore(tmp_path / "nothing.h5", tmp_path / "s.zarr")
