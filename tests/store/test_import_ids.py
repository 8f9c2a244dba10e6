"""Whose rows these are: ids under any name, ids that do not meet, rows without ids, rows of zeros."""

from __future__ import annotations

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store import FeatureStore
from calmrl_lab.store.convert.import_arrays import import_features
from calmrl_lab.store.convert.item_ids import normalised

N = 6
V = np.random.default_rng(0).standard_normal((N, 3)).astype(np.float32)
NAMES = [f"video{number}" for number in range(N)]
ORDER = np.array([3, 0, 5, 1, 4, 2])


def imported(folder, files, **options) -> FeatureStore:
    return FeatureStore.open(import_features(folder / "s.zarr", files, overwrite=True, **options))


def refusal(folder, files, **options) -> CalmrlError:
    with pytest.raises(CalmrlError) as caught:
        import_features(folder / "s.zarr", files, **options)
    assert not (folder / "s.zarr").exists()
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


def write_named(folder, form: str, name: str):
    """The rows in another order, their names in an array called `name`."""
    rows, names = V[ORDER], [NAMES[n] for n in ORDER]
    path = folder / f"other.{form}"
    if form == "npz":
        np.savez(path, features=rows, **{name: np.array(names)})
    elif form == "h5":
        with h5py.File(path, "w") as file:
            file["features"] = rows
            file.create_dataset(name, data=names, dtype=h5py.string_dtype())
    elif form == "pt":
        torch.save({"features": torch.from_numpy(rows), name: names}, path)
    elif form == "parquet":
        pq.write_table(pa.table({"features": list(rows), name: names}), path)
    elif form == "csv":
        lines = [f"{item};{';'.join(map(str, row))}" for item, row in zip(names, rows, strict=True)]
        path.write_text("\n".join([f"{name};x0;x1;x2", *lines]))
    return path


@pytest.mark.parametrize("form", ["npz", "h5", "pt", "parquet", "csv"])
@pytest.mark.parametrize("name", ["names", "video_ids", "filenames", "image_path", "keys", "Whatever it is"])
def test_an_array_of_texts_names_the_rows_whatever_it_is_called(tmp_path, form, name):
    np.savez(tmp_path / "v.npz", features=V, names=np.array(NAMES))
    store = imported(tmp_path, {"v": tmp_path / "v.npz", "t": write_named(tmp_path, form, name)})
    assert store.ids.tolist() == NAMES
    assert_array_equal(store.features("t"), V)


def test_the_index_of_a_data_frame_names_the_rows(tmp_path):
    pd = pytest.importorskip("pandas")
    for name in (None, "clip"):
        frame = pd.DataFrame(V[ORDER], columns=["x0", "x1", "x2"], index=[NAMES[n] for n in ORDER])
        frame.index.name = name
        frame["kind"] = "dog"
        frame.to_parquet(tmp_path / "t.parquet")
        frame.to_csv(tmp_path / "t.csv")
        for ending in ("parquet", "csv"):
            store = imported(tmp_path, {"t": tmp_path / f"t.{ending}"})
            assert store.ids.tolist() == [NAMES[n] for n in ORDER], ending
            assert_array_equal(store.features("t"), V[ORDER])


@pytest.mark.parametrize(
    "arrays",
    [
        {"video_ids": NAMES, "filenames": [f"{name}.mp4" for name in NAMES]},
        {"one": NAMES, "two": NAMES},
        {"labels": ["dog", "cat"] * 3},
        {"captions": [f"thing {n}" for n in range(N)]},
        {"words": ["a", "a", "b", "b", "c", "c"]},
    ],
)
def test_what_may_name_the_rows_is_asked_for_and_never_passed_over(tmp_path, arrays):
    np.savez(tmp_path / "v.npz", features=V, **{name: np.array(values) for name, values in arrays.items()})
    error = refusal(tmp_path, {"v": tmp_path / "v.npz"})
    first = next(iter(arrays))
    assert "does not say which of its arrays names the rows" in error.message
    assert first in error.message
    assert f"--id-column v={first}" in error.hint
    assert imported(tmp_path, {"v": tmp_path / "v.npz"}, by_position=True).ids.tolist() == list("012345")
    assert imported(tmp_path, {"v": tmp_path / "v.npz"}, ids=NAMES).ids.tolist() == NAMES
    if len(set(arrays[first])) == N:
        assert imported(tmp_path, {"v": tmp_path / "v.npz"}, id_columns=first).ids.tolist() == list(arrays[first])
    np.savez(tmp_path / "w.npz", features=V)
    (tmp_path / "x").mkdir()
    refusal(tmp_path / "x", {"v": tmp_path / "v.npz", "w": tmp_path / "w.npz"})


def test_an_id_column_that_is_none(tmp_path):
    np.savez(tmp_path / "v.npz", features=V, names=np.array(NAMES[:2]), other=np.array(NAMES))
    assert "is [2] and cannot name 6 rows" in refusal(tmp_path, {"v": tmp_path / "v.npz"}, id_columns={"v": "names"}).message
    assert "nothing called 'ids'" in refusal(tmp_path, {"v": tmp_path / "v.npz"}, id_columns={"v": "ids"}).message
    assert "no file has an array or column 'ids'" in refusal(tmp_path, {"v": tmp_path / "v.npz"}, id_columns="ids").message
    assert "no such modality" in refusal_of_names(tmp_path)


def refusal_of_names(folder) -> str:
    with pytest.raises(CalmrlError) as caught:
        import_features(folder / "s.zarr", {"v": folder / "v.npz"}, id_columns={"w": "names"})
    return caught.value.message


def test_whole_numbers_are_ids_and_numbers_that_are_missing_are_none(tmp_path):
    np.savez(tmp_path / "v.npz", features=V, video_ids=np.arange(N))
    assert imported(tmp_path, {"v": tmp_path / "v.npz"}).ids.tolist() == list("012345")
    np.savez(tmp_path / "w.npz", features=V, ids=np.array([1, 2, np.nan, 4, 5, 6]))
    (tmp_path / "x").mkdir()
    assert "row 2 has no id" in refusal(tmp_path / "x", {"v": tmp_path / "w.npz"}).message


@pytest.mark.parametrize(
    "spelled",
    [
        [f"{name}.mp4" for name in NAMES],
        [name.upper() for name in NAMES],
        [f"/data/videos/{name}.MP4" for name in NAMES],
        [f"videos\\{name}.mp4" for name in NAMES],
        [f"{name} " for name in NAMES],
    ],
)
def test_ids_that_do_not_meet_are_refused_and_meet_when_asked(tmp_path, spelled):
    np.savez(tmp_path / "v.npz", features=V, ids=np.array(NAMES))
    np.savez(tmp_path / "t.npz", features=V[ORDER], ids=np.array(spelled)[ORDER])
    files = {"v": tmp_path / "v.npz", "t": tmp_path / "t.npz"}
    error = refusal(tmp_path, files)
    assert "'v' and 't' share only 0 of 6 ids" in error.message
    assert repr(NAMES[0]) in error.message
    assert ascii(spelled[ORDER[0]]) in error.message
    assert "--normalise-ids spells them 'video0', 'video1', 'video2': then they share 6" in error.hint
    store = imported(tmp_path, files, normalise_ids=True)
    assert store.ids.tolist() == NAMES
    assert_array_equal(store.features("t"), V)


def test_few_that_differ_are_said(tmp_path, capfd):
    composed = [*NAMES[:4], "\u00e9t\u00e9", "caf\u00e9"]
    np.savez(tmp_path / "v.npz", features=V, ids=np.array(composed))
    np.savez(tmp_path / "t.npz", features=V, ids=np.array([*NAMES[:4], "e\u0301te\u0301", "cafe\u0301"]))
    files = {"v": tmp_path / "v.npz", "t": tmp_path / "t.npz"}
    assert len(imported(tmp_path, files)) == 8
    said = capfd.readouterr().err
    assert "'v' and 't' share 4 ids, of 6 and 6" in said
    assert "2 ids of 'v' and 't' differ only in how they are spelled" in said
    assert imported(tmp_path, files, normalise_ids=True).ids.tolist() == composed


def test_numbers_spelled_otherwise_are_told_apart(tmp_path):
    np.savez(tmp_path / "a.npz", features=V, ids=np.arange(1, N + 1))
    np.savez(tmp_path / "b.npz", features=V, ids=np.arange(1.0, N + 1))
    np.savez(tmp_path / "c.npz", features=V, ids=np.array([f"{n:04}" for n in range(1, N + 1)]))
    for one, two, first, second in (("a", "b", "1", "1.0"), ("a", "c", "1", "0001"), ("b", "c", "1.0", "0001")):
        for asked in (False, True):
            error = refusal(tmp_path, {one: tmp_path / f"{one}.npz", two: tmp_path / f"{two}.npz"}, normalise_ids=asked)
            assert f"'{first}' and '{second}' are different ids" in error.hint


def test_different_items_may_be_imported_as_such_and_a_third_modality_joins_them(tmp_path):
    np.savez(tmp_path / "v.npz", features=V[:3], ids=np.array(NAMES[:3]))
    np.savez(tmp_path / "t.npz", features=V[3:], ids=np.array(NAMES[3:]))
    np.savez(tmp_path / "all.npz", features=V, ids=np.array(NAMES))
    two = {"v": tmp_path / "v.npz", "t": tmp_path / "t.npz"}
    assert "--min-shared 0" in refusal(tmp_path, two).hint
    assert len(imported(tmp_path, two, min_shared=0)) == 6
    assert len(imported(tmp_path, {**two, "whole": tmp_path / "all.npz"})) == 6


def test_case_is_kept_where_it_tells_items_apart(tmp_path, capfd):
    names = np.array(["aB", "Ab", "c"])
    np.savez(tmp_path / "v.npz", features=V[:3], ids=names)
    np.savez(tmp_path / "t.npz", features=V[:3], ids=np.array(["aB.mp4", "Ab.mp4", "c.mp4"]))
    store = imported(tmp_path, {"v": tmp_path / "v.npz", "t": tmp_path / "t.npz"}, normalise_ids=True)
    assert store.ids.tolist() == names.tolist()
    assert "keeps case apart" in capfd.readouterr().err


@given(st.lists(st.text(alphabet="aAbB./ \u00e9\u0301", min_size=1, max_size=6), min_size=1, max_size=8, unique=True))
def test_normalising_never_joins_two_items_of_one_file(ids):
    alike, _ = normalised({"v": np.array(ids)})
    assert len(set(alike["v"].tolist())) == len(ids)


def test_the_ids_of_a_table_are_spelled_alike_too(tmp_path):
    np.savez(tmp_path / "v.npz", features=V, ids=np.array([f"{name}.mp4" for name in NAMES]))
    (tmp_path / "t.csv").write_text("video_id;split\n" + "".join(f"{name};Train\n" for name in NAMES))
    error = refusal(tmp_path, {"v": tmp_path / "v.npz"}, table=tmp_path / "t.csv")
    assert "6 of 6 items are not in the table" in error.message
    store = imported(tmp_path, {"v": tmp_path / "v.npz"}, table=tmp_path / "t.csv", normalise_ids=True)
    assert store.ids.tolist() == NAMES
    assert set(store.split.tolist()) == {"train"}


def test_rows_of_zeros_are_said_and_masked_when_asked(tmp_path, capfd):
    rows = V.copy()
    rows[[1, 4]] = 0
    np.savez(tmp_path / "v.npz", features=V, ids=np.array(NAMES))
    np.savez(tmp_path / "t.npz", features=rows, ids=np.array(NAMES))
    files = {"v": tmp_path / "v.npz", "t": tmp_path / "t.npz"}
    assert imported(tmp_path, files).mask.all()
    assert "t: 2 of 6 rows are zero throughout" in capfd.readouterr().err
    store = imported(tmp_path, files, zero_is_missing=True)
    assert store.reason[:, 1].tolist() == [0, 1, 0, 0, 1, 0]
    assert_array_equal(store.features("t"), V[[0, 2, 3, 5]])
    (tmp_path / "x").mkdir()
    error = refusal(tmp_path / "x", files, normalise=True)
    assert "row 1 of 't' (item 'video1') is zero throughout and cannot be normalised" in error.message
    assert imported(tmp_path, files, normalise=True, zero_is_missing=True).reason[:, 1].tolist() == [0, 1, 0, 0, 1, 0]


def test_the_heading_of_a_list_of_ids_is_none_of_them(tmp_path):
    np.save(tmp_path / "v.npy", V)
    for name, text in (
        ("a.txt", "video_id\n" + "\n".join(NAMES)),
        ("b.csv", "video_id,split\n" + "".join(f"{name},train\n" for name in NAMES)),
        ("c.csv", "\r\n".join(["id", *NAMES, ""])),
        ("d.json", str(NAMES).replace("'", '"')),
    ):
        (tmp_path / name).write_text(text)
        assert imported(tmp_path, {"v": tmp_path / "v.npy"}, ids=tmp_path / name).ids.tolist() == NAMES, name
    (tmp_path / "e.json").write_text("[1, 2, 3, 4, 5, 6]")
    assert imported(tmp_path, {"v": tmp_path / "v.npy"}, ids=tmp_path / "e.json").ids.tolist() == list("123456")
