"""Files as tools write them by default: R, Excel, NumPy, HDF5, Parquet; each gives the rows of its own ids, or is refused in one sentence."""

from __future__ import annotations

import io
import pickle
import uuid

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.io import savemat

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.convert.feature_files import read_source
from calmrl_lab.store.convert.import_arrays import import_features
from calmrl_lab.store.convert.reading.source import ReadOptions
from calmrl_lab.store.convert.records import read_records

N, D = 7, 4
V = np.random.default_rng(3).standard_normal((N, D)).astype(np.float32)
NAMES = [f"clip{number}" for number in range(N)]
FRAME = pd.DataFrame(V, columns=[f"x{number}" for number in range(D)])
TABLE = FRAME.assign(id=NAMES)


def r_table(path, separator=" "):
    """As R's write.table writes it: the row names have no heading."""
    lines = [separator.join(f'"x{number}"' for number in range(D))]
    lines += [separator.join([f'"{name}"', *map(str, row.tolist())]) for name, row in zip(NAMES, V, strict=True)]
    path.write_text("\n".join(lines) + "\n")


def records(path):
    """A table of HDF5, as PyTables writes it."""
    with h5py.File(path, "w") as file:
        file["set/table"] = np.array(
            [(name.encode(), row) for name, row in zip(NAMES, V, strict=True)], dtype=[("id", "S10"), ("features", "f4", (D,))]
        )


def ids_in_a_column(path):
    with h5py.File(path, "w") as file:
        file["features"], file["names"] = V, np.array([[name.encode()] for name in NAMES])


def savetxt(path):
    np.savetxt(path, V, delimiter=",", header="written by a script\n" + ",".join(FRAME.columns))
    # Features without ids, so these are given beside them.
    (path.parent / "ids.txt").write_text("\n".join(NAMES))


def vectors_called_like_shards(path):
    path.mkdir()
    for number, row in enumerate(V):
        np.save(path / f"feat_{number}.npy", row)


def parquet(**columns):
    return lambda path: pq.write_table(pa.table({**columns, "emb": list(V)}), path)


READ = {
    "r.txt": r_table,
    "r.csv": lambda path: r_table(path, ","),
    "r.tsv": lambda path: r_table(path, "\t"),
    "excel.csv": lambda path: path.write_text("sep=;\n" + TABLE.to_csv(sep=";", decimal=",", index=False)),
    "blank.csv": lambda path: path.write_text(TABLE.to_csv(index=False) + "\n   \n" + "," * D + "\n"),
    "spaced.csv": lambda path: path.write_text(TABLE.to_csv(index=False).replace(",", ", ")),
    "comments.csv": lambda path: path.write_text("# made by hand, today\n#\n" + TABLE.to_csv(index=False)),
    "heading.csv": lambda path: path.write_text("# " + TABLE.to_csv(index=False)),
    "table.h5": records,
    "column.h5": ids_in_a_column,
    "bytes.parquet": parquet(id=pa.array([name.encode() for name in NAMES])),
    "webdataset.parquet": parquet(__key__=NAMES, __url__=["00000.tar"] * N),
    "shard.parquet": parquet(video_id=NAMES, file=["00000.tar"] * N, caption=["a dog"] * N),
}


@pytest.mark.parametrize("name", READ)
def test_what_tools_write_by_default(name, tmp_path):
    READ[name](tmp_path / name)
    source = read_source(tmp_path / name, "v")
    assert source.ids.tolist() == NAMES
    np.testing.assert_array_equal(source.rows, V)


def test_a_heading_that_is_a_comment_loses_no_column(tmp_path):
    savetxt(tmp_path / "v.csv")
    source = read_source(tmp_path / "v.csv", "v")
    assert source.ids is None
    np.testing.assert_array_equal(source.rows, V)
    assert "'x0' to 'x3'" in source.told


def test_whole_numbers_name_rows_beside_texts_that_describe_them(tmp_path):
    parquet(sample_id=np.arange(N) + 40, caption=["a dog"] * N)(tmp_path / "v.parquet")
    assert read_source(tmp_path / "v.parquet", "v").ids.tolist() == [str(40 + number) for number in range(N)]


def test_vectors_called_like_shards_are_items(tmp_path):
    vectors_called_like_shards(tmp_path / "v")
    source = read_source(tmp_path / "v", "v")
    assert source.ids.tolist() == [f"feat_{number}" for number in range(N)]
    np.testing.assert_array_equal(source.rows, V)


def several_pickles(path):
    with open(path, "wb") as file:
        for name, row in zip(NAMES, V, strict=True):
            pickle.dump({name: row}, file)


def one_file_is_short(path):
    vectors_called_like_shards(path)
    whole = io.BytesIO()
    np.save(whole, V[3])
    (path / "feat_3.npy").write_bytes(whole.getvalue()[:-3])


REFUSED = {
    "turned.mat": (
        lambda path: savemat(path, {"features": V.T, "names": np.array(NAMES, dtype=object)}),
        "names the rows of 'v': names",
    ),
    "turned.npz": (lambda path: np.savez(path, features=V.T, ids=NAMES), "names the rows of 'v': ids"),
    "uuid.parquet": (
        parquet(id=pa.array([uuid.UUID(int=7 + n).bytes for n in range(N)], pa.binary(16))),
        "names the rows of 'v': id",
    ),
    "network.pt": (
        lambda path: torch.save({"module.proj.weight": torch.zeros(4, 6), "module.proj.bias": torch.zeros(4)}, path),
        "holds the weights of a network",
    ),
    "several.pkl": (several_pickles, "several objects one after the other"),
    "short": (one_file_is_short, "short/feat_3.npy' cannot be read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_go_wrong_silently_is_refused(name, tmp_path):
    make, said = REFUSED[name]
    make(tmp_path / name)
    with pytest.raises(CalmrlError) as refused:
        import_features(tmp_path / "s.zarr", {"v": str(tmp_path / name)})
    assert said in refused.value.message
    assert refused.value.hint
    assert not (tmp_path / "s.zarr").exists()


def test_a_transposed_file_is_told_to_be_one(tmp_path):
    np.savez(tmp_path / "v.npz", features=V.T, ids=NAMES)
    with pytest.raises(CalmrlError) as refused:
        read_source(tmp_path / "v.npz", "v", options=ReadOptions(id_column="ids"))
    assert "features.T" in refused.value.hint


def test_lines_are_counted_from_the_beginning_of_the_file(tmp_path):
    path = tmp_path / "items.csv"
    path.write_text("# one\n# two\nid,split\na,train\nb,train,more\n")
    with pytest.raises(CalmrlError, match="line 5 has 3 columns"):
        read_records(path)
    path.write_text("sep=,\nid,split\na,train\n")
    assert [(row.where, dict(row.values)) for row in read_records(path).rows] == [("line 3", {"id": "a", "split": "train"})]


def test_a_data_frame_by_columns_is_read_by_rows(tmp_path):
    path = tmp_path / "items.json"
    pd.DataFrame({"id": NAMES, "split": ["train"] * N}).to_json(path)
    assert [dict(row.values) for row in read_records(path).rows] == [{"id": name, "split": "train"} for name in NAMES]
    path.write_text('{"a": {"split": "train"}, "b": {"split": "test"}}')
    assert [row.values["id"] for row in read_records(path).rows] == ["a", "b"]


def test_whole_paths_into_a_media_folder_that_is_given_relatively(tmp_path, monkeypatch):
    from feature_extractors.datasets.folder import Folder

    monkeypatch.chdir(tmp_path)
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "a.jpg").write_bytes(b"x")
    (tmp_path / "items.csv").write_text(f"id,vision\na,{tmp_path / 'media' / 'a.jpg'}\n")
    item = Folder(media="media", manifest="items.csv").manifest().items[0]
    assert str(item.media["vision"][0].path) == "media/a.jpg"
    (tmp_path / "items.csv").write_text(f"id,vision\na,{tmp_path / 'b.jpg'}\n")
    with pytest.raises(CalmrlError, match="leads outside the media folder"):
        Folder(media="media", manifest="items.csv").manifest()


def test_a_cell_too_many_is_a_row_name_only_where_it_may_be_one(tmp_path):
    path = tmp_path / "v.csv"
    path.write_text("x0,x1\na,0.5,1.5\nb,2.5,3.5\n")
    assert read_source(path, "v").ids.tolist() == ["a", "b"]
    path.write_text("id,x0,x1\n1,a,0.5,1.5\n2,b,2.5,3.5\n")
    assert read_source(path, "v").ids.tolist() == ["a", "b"]
    path.write_text("id,x0,x1\na,b,0.5,1.5\nc,d,2.5,3.5\n")
    for read in (read_records, lambda path: read_source(path, "v")):
        with pytest.raises(CalmrlError, match="line 2 has 4 columns"):
            read(path)
