"""Files as people have them: what they hold goes in under its own ids, or is refused in one sentence that says what to do."""

from __future__ import annotations

import gzip
import json
import pickle
import tarfile
from io import BytesIO

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from scipy import sparse
from scipy.io import savemat

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store import FeatureStore
from calmrl_lab.store.convert.feature_files import read_source
from calmrl_lab.store.convert.import_arrays import import_features
from calmrl_lab.store.convert.reading.source import ReadOptions

N, D = 12, 5
V = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)
NAMES = [f"video{number:02d}" for number in range(N)]
WIDE = {f"f{number}": V[:, number] for number in range(D)}
BY_ID = dict(zip(NAMES, V, strict=True))


def decimal_commas(path):
    pd.DataFrame(WIDE).assign(id=NAMES).to_csv(path, sep=";", decimal=",", index=False)


def numbers_in_a_cell(path):
    cells = [" ".join(map(str, row.tolist())) for row in V]
    pd.DataFrame({"id": NAMES, "embedding": cells}).to_csv(path, index=False)


def commas_in_a_cell(path):
    cells = [",".join(map(str, row.tolist())) for row in V]
    pd.DataFrame({"id": NAMES, "embedding": cells}).to_csv(path, index=False)


def nested_lines(path):
    lines = [json.dumps({"id": name, "data": {"embedding": row.tolist(), "model": "x"}}) for name, row in BY_ID.items()]
    path.write_text("\n".join(lines))


def answers_of_a_service(path):
    rows = [{"custom_id": n, "response": {"data": [{"embedding": row.tolist(), "index": 0}]}} for n, row in BY_ID.items()]
    path.write_text("\n".join(map(json.dumps, rows)))


def frame_by_columns(path):
    pd.DataFrame({"id": NAMES, "embedding": list(V)}).to_json(path, double_precision=15)


def frame_as_dict(path):
    frame = pd.DataFrame({"name": NAMES, "embedding": list(V)})
    path.write_bytes(pickle.dumps(frame.to_dict()))


def tensor_and_names(path):
    torch.save((torch.from_numpy(V), NAMES), path)


def sparse_tensor(path):
    torch.save({"features": torch.from_numpy(V).to_sparse(), "ids": NAMES}, path)


def sparse_matlab(path):
    savemat(path, {"features": sparse.csr_matrix(V.astype(np.float64)), "names": np.array(NAMES, dtype=object)})


def ids_as_an_attribute(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=V).attrs["ids"] = NAMES


def ids_as_an_attribute_of_the_file(path):
    with h5py.File(path, "w") as file:
        file["features"] = V
        file.attrs["video_ids"] = np.array(NAMES, dtype="S")


def folder_of_tensors(path):
    path.mkdir()
    for name, row in BY_ID.items():
        torch.save(torch.from_numpy(row), path / f"{name}.pt")


def folder_of_archives(path):
    path.mkdir()
    for name, row in BY_ID.items():
        np.savez(path / f"{name}.npz", feat=row[None])
    (path / ".DS_Store").touch()


def folder_of_safetensors(path):
    path.mkdir()
    for name, row in BY_ID.items():
        save_file({"emb": torch.from_numpy(row.copy())}, path / f"{name}.safetensors")


def tar_with_folders(path):
    with tarfile.open(path, "w") as archive:
        for name, row in BY_ID.items():
            held = BytesIO()
            np.save(held, row)
            member = tarfile.TarInfo(f"data/shard-000/{name}.npy")
            member.size = held.tell()
            held.seek(0)
            archive.addfile(member, held)


def arrays_and_rows_about_them(path):
    torch.save({"embeddings": torch.from_numpy(V), "metadata": [{"id": name, "path": "x"} for name in NAMES]}, path)


def tuple_of_three(path):
    torch.save((torch.from_numpy(V), torch.arange(N), NAMES), path)


def one_item_on_each_line(path):
    path.write_text("\n".join(json.dumps({name: row.tolist()}) for name, row in BY_ID.items()))


def items_inside_of_data(path):
    held = {name: {"vec": row.tolist(), "fps": 3} for name, row in BY_ID.items()}
    path.write_text(json.dumps({"data": held, "version": 1}))


def word2vec(path):
    path.write_text(f"{N} {D}\n" + "\n".join(f"{name} {' '.join(map(str, row))}" for name, row in BY_ID.items()))


def heading_of_spaces(path):
    heading = "  ".join(["id", *WIDE])
    path.write_text("\n".join([heading, *(f"{name}  {'  '.join(map(str, row))}" for name, row in BY_ID.items())]))


FORMS = {
    "a.csv": decimal_commas,
    "b.csv": numbers_in_a_cell,
    "c.csv": commas_in_a_cell,
    "a.jsonl": nested_lines,
    "b.jsonl": answers_of_a_service,
    "a.json": frame_by_columns,
    "a.pkl": frame_as_dict,
    "a.pt": tensor_and_names,
    "b.pt": sparse_tensor,
    "a.mat": sparse_matlab,
    "a.h5": ids_as_an_attribute,
    "b.h5": ids_as_an_attribute_of_the_file,
    "a": folder_of_tensors,
    "b": folder_of_archives,
    "c": folder_of_safetensors,
    "a.tar": tar_with_folders,
    "c.pt": arrays_and_rows_about_them,
    "d.pt": tuple_of_three,
    "c.jsonl": one_item_on_each_line,
    "b.json": items_inside_of_data,
    "a.txt": word2vec,
    "b.txt": heading_of_spaces,
}


@pytest.mark.parametrize("name", list(FORMS))
def test_a_form_gives_the_features_of_their_own_ids(name, tmp_path):
    FORMS[name](tmp_path / name)
    source = read_source(tmp_path / name, "v")
    place = {item: number for number, item in enumerate(source.ids.tolist())}
    assert sorted(place) == NAMES
    np.testing.assert_array_equal(source.rows[[place[item] for item in NAMES]].astype(np.float32), V)


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2", "bfloat16"])
def test_short_floats_are_kept_exactly(kind, tmp_path):
    short = torch.from_numpy(V).to(getattr(torch, kind))
    save_file({"features": short}, tmp_path / "v.safetensors")
    torch.save({"features": short, "ids": NAMES}, tmp_path / "v.pt")
    for name in ("v.safetensors", "v.pt"):
        np.testing.assert_array_equal(read_source(tmp_path / name, "v").rows, short.float().numpy())


@pytest.mark.parametrize("pool", ["mean", "rows"])
def test_padding_behind_the_frames_of_an_item_is_no_frame(pool, tmp_path):
    counts = np.arange(N) % 4
    frames = np.zeros((N, 3, D), np.float32)
    for number, count in enumerate(counts):
        frames[number, :count] = np.random.default_rng(number).standard_normal((count, D))
    np.savez(tmp_path / "v.npz", features=frames, ids=NAMES, lengths=counts)
    source = read_source(tmp_path / "v.npz", "v", options=ReadOptions(pool=pool))
    assert "frames of each item from 'lengths'" in source.told
    if pool == "rows":
        assert source.ids.tolist() == np.repeat(NAMES, counts).tolist()
        np.testing.assert_array_equal(source.rows, np.concatenate([frames[n, :c] for n, c in enumerate(counts)]))
    else:
        expected = np.stack(
            [frames[n, :c].mean(0, dtype=np.float64) if c else np.full(D, np.nan) for n, c in enumerate(counts)]
        )
        np.testing.assert_array_equal(source.rows, expected.astype(np.float32))


def test_ids_that_come_again_are_told(tmp_path):
    np.savez(tmp_path / "v.npz", features=V, ids=["a", "a", *NAMES[2:]])
    assert read_source(tmp_path / "v.npz", "v").told.endswith(
        "1 of its ids stand at several rows, which become rows of one item"
    )


def quantised(path):
    np.savez(path, features=(V * 20).astype(np.int8), scale=0.05, ids=NAMES)


def two_arrays_a_file(path):
    path.mkdir()
    for name, row in BY_ID.items():
        np.savez(path / f"{name}.npz", vision=row, text=row[:2])


def bytes_of_arrays(path):
    pq.write_table(pa.table({"id": NAMES, "emb": [row.tobytes() for row in V]}), path)


def lmdb(path):
    path.mkdir()
    (path / "data.mdb").write_bytes(bytes(4096))


def small_network(path):
    torch.save(torch.nn.Linear(3, 2).state_dict(), path)


REFUSED = {
    "l.jsonl": (lambda path: path.write_text('["a", [1.0]]\n["b", [2.0]]'), "line 1 is a list", "one JSON object on each line"),
    "net.pt": (small_network, "holds the weights of a network (weight, bias)", "FILE:KEY"),
    "q.npz": (quantised, "'features' are whole numbers, and 'scale' beside them", "astype(np.float32) * scale"),
    "two": (two_arrays_a_file, "which of its arrays are the features of 'v'", "it has: vision, text"),
    "b.parquet": (bytes_of_arrays, "has no numbered columns", "id (strings), emb (other)"),
    "s.npz": (lambda path: sparse.save_npz(path, sparse.csr_matrix(V)), "a sparse matrix of SciPy", "toarray()"),
    "lmdb": (lmdb, "holds no features", "read its records with the package lmdb"),
    "v.npy.gz": (lambda path: path.write_bytes(gzip.compress(b"id,x0\n")), "not read from '.gz'", "unpack it first"),
    "v.zip": (lambda path: path.write_bytes(b"PK\x03\x04"), "not read from '.zip'", "unpack it first"),
    "v.xlsx": (lambda path: path.write_bytes(b"PK\x03\x04"), "not read from '.xlsx'", "CSV UTF-8"),
    "v.joblib": (lambda path: path.write_bytes(b"\x80\x04"), "not read from '.joblib'", "np.savez"),
    "w.vec": (lambda path: path.write_text("2 3\na 1 2 3\n"), "not read from '.vec'", "np.savez"),
    "torch.npy": (lambda path: torch.save([V[0].tolist()], path), "cannot be read as npy", "give it the ending .npz or .pt"),
    "arrow.csv": (lambda path: path.write_bytes(b"ARROW1\0\0\xff"), "is not UTF-8", "it is an Arrow file"),
    "lfs.npz": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"), "cannot be read", "git lfs pull"),
    "page.npy": (lambda path: path.write_text("<!DOCTYPE html><html>"), "cannot be read", "it is a web page"),
    "none.npz": (lambda path: path.touch(), "cannot be read", "it is empty"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_refusal_names_the_file_and_what_to_do(name, tmp_path):
    make, said, hint = REFUSED[name]
    with open(tmp_path / name, "wb") if name == "torch.npy" else BytesIO() as held:
        make(held if name == "torch.npy" else tmp_path / name)
    with pytest.raises(CalmrlError) as refused:
        import_features(tmp_path / "s.zarr", {"v": str(tmp_path / name)})
    assert name in refused.value.message
    assert said in refused.value.message
    assert hint in refused.value.hint
    assert not (tmp_path / "s.zarr").exists()


def test_a_zarr_array_is_refused_with_the_way_to_npy(tmp_path):
    import zarr

    zarr.save(tmp_path / "v.zarr", V)
    with pytest.raises(CalmrlError, match="holds no features") as refused:
        read_source(tmp_path / "v.zarr", "v")
    assert "zarr.open" in refused.value.hint


def test_a_store_of_such_a_form_is_that_of_npy(tmp_path):
    np.save(tmp_path / "v.npy", V)
    (tmp_path / "ids.txt").write_text("\n".join(NAMES))
    import_features(tmp_path / "a.zarr", {"v": str(tmp_path / "v.npy")}, ids=tmp_path / "ids.txt")
    for name in ("a", "a.jsonl", "a.h5"):
        FORMS[name](tmp_path / name)
        import_features(tmp_path / "b.zarr", {"v": str(tmp_path / name)}, overwrite=True)
        one, two = (FeatureStore.open(tmp_path / store) for store in ("a.zarr", "b.zarr"))
        assert one.ids.tolist() == two.ids.tolist()
        chunk = "features/v/c/0/0"
        assert (tmp_path / "a.zarr" / chunk).read_bytes() == (tmp_path / "b.zarr" / chunk).read_bytes()
