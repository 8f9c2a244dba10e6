"""Every form in which people have features gives the same store, byte for byte, as the same features from .npy with ids."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from collections import OrderedDict, defaultdict

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from scipy.io import savemat

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store import FeatureStore
from calmrl_lab.store.convert.formats import formats
from calmrl_lab.store.convert.import_arrays import import_features

N, D = 12, 5
V = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)
NAMES = [f"video{number}" for number in range(N)]
# Frames whose mean is exact in any order: T = 2 rows, one above and one below by a power of two.
FRAMES = {name: np.stack([row + np.float32(0.0), row]) for name, row in zip(NAMES, V, strict=True)}


def by_id():
    return dict(zip(NAMES, V.copy(), strict=True))


def tensors():
    return {name: torch.from_numpy(row) for name, row in by_id().items()}


def npz(path):
    np.savez(path, **by_id())


def npz_compressed(path):
    np.savez_compressed(path, **{name: row[None] for name, row in by_id().items()})


def npz_object_ids(path):
    np.savez(path, features=V, ids=np.array(NAMES, dtype=object))


def npz_of_a_dict(path):
    np.savez(path, by_id())


def npy_dict(path):
    np.save(path, by_id(), allow_pickle=True)


def npy_dict_of_two(path):
    np.save(path, {"features": V, "names": NAMES}, allow_pickle=True)


def h5_by_id(path):
    with h5py.File(path, "w") as file:
        for name, row in by_id().items():
            file[name] = row


def h5_group_an_item(path):
    with h5py.File(path, "w") as file:
        for name, row in by_id().items():
            file[f"{name}/c3d_features"] = row[None]
            file[f"{name}/stamps"] = np.arange(3)


def h5_group_of_items(path):
    with h5py.File(path, "w") as file:
        for name, row in by_id().items():
            file.create_dataset(f"features/{name}", data=row, compression="gzip")
        file["version"] = 2


def safetensors_by_id(path):
    save_file(tensors(), path)


def pt_by_id(path):
    torch.save(tensors(), path)


def pt_one_by_d(path):
    torch.save({name: tensor[None] for name, tensor in tensors().items()}, path)


def pt_lists(path):
    torch.save({name: row.tolist() for name, row in by_id().items()}, path)


def pt_numpy(path):
    torch.save(by_id(), path)


def pt_records(path):
    torch.save([{"video_id": name, "feature": tensor} for name, tensor in tensors().items()], path)


def pt_nested(path):
    torch.save({name: {"clip": tensor, "fps": 25} for name, tensor in tensors().items()}, path)


def pkl_by_id(path):
    path.write_bytes(pickle.dumps(by_id()))


def pkl_old(path):
    path.write_bytes(pickle.dumps(OrderedDict(by_id()), protocol=2))


def pkl_factory(path):
    path.write_bytes(pickle.dumps(defaultdict(list, {name: row.tolist() for name, row in by_id().items()}), protocol=5))


def pkl_records(path):
    path.write_bytes(pickle.dumps([{"id": name, "features": row} for name, row in by_id().items()]))


def pkl_two(path):
    path.write_bytes(pickle.dumps((NAMES, V)))


def pt_pairs(path):
    torch.save(list(tensors().items()), path)


def npz_object_rows(path):
    rows = np.empty(N, dtype=object)
    rows[:] = list(V)
    np.savez(path, features=rows, names=np.array(NAMES))


def npy_structured(path):
    kind = [("id", "U8"), *((f"x{n}", "f4") for n in range(D))]
    np.save(path, np.array([(name, *row) for name, row in by_id().items()], dtype=kind))


def csv_index(path):
    lines = [f"{name},{','.join(map(str, row))}" for name, row in by_id().items()]
    path.write_text("\n".join([",0,1,2,3,4", *lines]))


def csv(path):
    lines = [f"{name},{','.join(map(str, row))}" for name, row in by_id().items()]
    path.write_text("\n".join(["id,0,1,2,3,4", *lines]))


def csv_lists(path):
    lines = [f'{name};"{row.tolist()}"' for name, row in by_id().items()]
    path.write_text("\n".join(["clip;embedding", *lines]))


def jsonl(path):
    path.write_text("\n".join(json.dumps({"id": name, "features": row.tolist()}) for name, row in by_id().items()))


def json_by_id(path):
    path.write_text(json.dumps({name: row.tolist() for name, row in by_id().items()}))


def json_printed(path):
    path.write_text(json.dumps([{"image_path": name, "emb": [float(str(x)) for x in row]} for name, row in by_id().items()]))


def parquet(path):
    pq.write_table(pa.table({"name": NAMES, "embedding": list(V), "label": np.arange(N)}), path)


def arrow(path):
    table = pa.table({"name": NAMES, "embedding": list(V)})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def mat_cells(path):
    savemat(path, {"features": V, "names": np.array(NAMES, dtype=object)[:, None], "note": "mine"})


def mat_characters(path):
    savemat(path, {"features": V, "names": np.array(NAMES)}, do_compression=True)


def mat_by_id(path):
    savemat(path, {name: row[None] for name, row in by_id().items()})


def mat_7_3(path):
    """As MATLAB writes it: axes reversed, cells as references to numbers of characters."""
    with h5py.File(path, "w", userblock_size=512) as file:
        file.create_dataset("features", data=V.T).attrs["MATLAB_class"] = np.bytes_("single")
        references = file.create_group("#refs#")
        cells = []
        for number, name in enumerate(NAMES):
            cell = references.create_dataset(f"c{number}", data=np.array([[ord(c)] for c in name], dtype=np.uint16))
            cell.attrs["MATLAB_class"] = np.bytes_("char")
            cells.append(cell.ref)
        ids = file.create_dataset("names", data=np.array([cells], dtype=h5py.ref_dtype), dtype=h5py.ref_dtype)
        ids.attrs["MATLAB_class"] = np.bytes_("cell")


def mat_struct(path):
    savemat(path, {"out": {"setup": {"rate": 0.1, "name": "x"}, "emb": {"features": V, "ids": np.array(NAMES, dtype=object)}}})


def mat_struct_array(path):
    rows = [(name, row, number) for number, (name, row) in enumerate(by_id().items())]
    savemat(path, {"items": np.array(rows, dtype=[("name", "O"), ("feat", "O"), ("label", "O")])})


def mat_cell_of_structs(path):
    savemat(path, {"items": [{"id": name, "features": row[:, None], "fps": 25} for name, row in by_id().items()]})


def mat_cell_of_vectors(path):
    cells = np.empty(N, dtype=object)
    cells[:] = [row[None] for row in V]
    savemat(path, {"feats": cells, "names": np.array(NAMES, dtype=object)})


def mat_struct_by_id(path):
    savemat(path, {"feats": by_id()})


def mat_7_3_struct_array(path):
    """As MATLAB writes an array of structs: for each field, references to its values."""
    with h5py.File(path, "w", userblock_size=512) as file:
        references, group = file.create_group("#refs#"), file.create_group("items")
        group.attrs["MATLAB_class"] = np.bytes_("struct")
        values = {
            "id": [np.array([[ord(c)] for c in name], dtype=np.uint16) for name in NAMES],
            "feat": [row[:, None] for row in V],
        }
        for field, cells in values.items():
            made = [references.create_dataset(f"{field}{number}", data=cell) for number, cell in enumerate(cells)]
            for cell in made:
                cell.attrs["MATLAB_class"] = np.bytes_("char" if field == "id" else "single")
            group.create_dataset(
                field, data=np.array([[cell.ref] for cell in made], dtype=h5py.ref_dtype), dtype=h5py.ref_dtype
            )


def pt_defaultdict(path):
    torch.save(defaultdict(list, tensors()), path)


def pt_defaultdict_of_dicts(path):
    held = defaultdict(dict, {name: {"clip": tensor} for name, tensor in tensors().items()})
    torch.save(held, path, _use_new_zipfile_serialization=False)


def frame():
    return pd.DataFrame(V, columns=[f"x{number}" for number in range(D)], index=NAMES)


def json_of_a_frame(orient):
    def write(path):
        frame().to_json(path, orient=orient, double_precision=15)

    write.__name__ = orient
    return write


def json_index_without_names(path):
    pd.DataFrame(V, index=NAMES).to_json(path, orient="index")


def json_split_of_lists(path):
    pd.DataFrame({"id": NAMES, "label": 1, "emb": V.tolist()}).to_json(path, orient="split")


def pkl_of_a_frame(path):
    path.write_bytes(pickle.dumps(frame().to_dict(orient="index")))


def folder_of_arrays(path):
    path.mkdir()
    for name, row in by_id().items():
        np.save(path / f"{name}.npy", row)
    (path / "._video0.npy").write_bytes(b"\0\5\x16\7")
    (path / ".DS_Store").write_bytes(b"x")
    (path / "readme.txt").write_text("x")


def shards(path):
    (path / "img_emb").mkdir(parents=True)
    (path / "metadata").mkdir()
    for number, part in enumerate((slice(0, 5), slice(5, 5), slice(5, 12))):
        np.save(path / "img_emb" / f"img_emb_{number}.npy", V[part])
        table = pa.table(
            {"image_path": pa.array(NAMES[part], pa.string()), "caption": pa.array(["x"] * len(NAMES[part]), pa.string())}
        )
        pq.write_table(table, path / "metadata" / f"metadata_{number}.parquet")


def shards_beside(path):
    path.mkdir()
    for number, part in enumerate((slice(0, 6), slice(6, 12))):
        np.save(path / f"img_emb_{number}.npy", V[part])
        pq.write_table(pa.table({"key": NAMES[part]}), path / f"metadata_{number}.parquet")


def tar(path):
    with tarfile.open(path, "w") as archive:
        for name, row in by_id().items():
            buffer = io.BytesIO()
            np.save(buffer, row)
            for ending, data in ((".npy", buffer.getvalue()), (".txt", b"a caption")):
                info = tarfile.TarInfo(f"{name}{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def tars(path):
    path.mkdir()
    for number, part in enumerate((slice(0, 7), slice(7, 12))):
        with tarfile.open(path / f"shard-{number:06}.tar", "w") as archive:
            for name, row in list(by_id().items())[part]:
                for ending, array in (("v.npy", row), ("other.npy", row[:2])):
                    buffer = io.BytesIO()
                    np.save(buffer, array)
                    info = tarfile.TarInfo(f"./{name}.{ending}")
                    info.size = buffer.tell()
                    archive.addfile(info, io.BytesIO(buffer.getvalue()))


def parquet_folder(path):
    path.mkdir()
    for number, part in enumerate((slice(0, 7), slice(7, 12))):
        pq.write_table(pa.table({"id": NAMES[part], "v": list(V[part])}), path / f"part-{number}.parquet")


def saved_dataset(path, rows=slice(None)):
    path.mkdir()
    arrow(path / "data-00000-of-00001.arrow")
    (path / "dataset_info.json").write_text("{}")
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": None}))


FORMS = {
    "npz": [npz, npz_compressed, npz_object_ids, npz_of_a_dict, npz_object_rows],
    "npy": [npy_dict, npy_dict_of_two, npy_structured],
    "h5": [h5_by_id, h5_group_an_item, h5_group_of_items],
    "safetensors": [safetensors_by_id],
    "pt": [pt_by_id, pt_one_by_d, pt_lists, pt_numpy, pt_records, pt_nested, pt_pairs, pt_defaultdict, pt_defaultdict_of_dicts],
    "pkl": [pkl_by_id, pkl_old, pkl_factory, pkl_records, pkl_two, pkl_of_a_frame],
    "csv": [csv, csv_lists, csv_index],
    "jsonl": [jsonl],
    "json": [
        json_by_id,
        json_printed,
        json_index_without_names,
        json_split_of_lists,
        *map(json_of_a_frame, ("index", "columns", "split", "table")),
    ],
    "parquet": [parquet, parquet_folder],
    "arrow": [arrow],
    "mat": [
        mat_cells,
        mat_characters,
        mat_by_id,
        mat_7_3,
        mat_struct,
        mat_struct_array,
        mat_cell_of_structs,
        mat_cell_of_vectors,
        mat_struct_by_id,
        mat_7_3_struct_array,
    ],
    "folder": [folder_of_arrays, shards, shards_beside, tars, saved_dataset],
    "tar": [tar],
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The digest of the store of the same features from .npy with ids."""
    folder = tmp_path_factory.mktemp("plain")
    np.save(folder / "v.npy", V)
    store = import_features(folder / "s.zarr", {"v": folder / "v.npy"}, ids=NAMES, encoders={"v": "mine"})
    return FeatureStore.open(store).digest


@pytest.mark.parametrize(
    ("ending", "write"), [pytest.param(e, w, id=f"{e}-{w.__name__}") for e, writers in FORMS.items() for w in writers]
)
def test_every_form_gives_the_same_bytes(tmp_path, plain, ending, write):
    path = tmp_path / f"v.{ending}"
    write(path)
    store = FeatureStore.open(import_features(tmp_path / "s.zarr", {"v": path}, encoders={"v": "mine"}))
    assert store.ids.tolist() == NAMES
    assert store.digest == plain


def test_every_format_has_a_form_here():
    covered = {"npy", "npz", "hdf5", "safetensors", "torch", "pickle", "csv", "json", "parquet", "matlab"}
    assert set(formats.names()) == covered | {"npy-folder", "part-folder", "shards", "webdataset", "datasets-folder"}
    assert all(description and not description.endswith(".") for description in formats.describe().values())


def test_whole_numbers_as_keys(tmp_path):
    torch.save({number: torch.from_numpy(row) for number, row in enumerate(V)}, tmp_path / "v.pt")
    (tmp_path / "v.pkl").write_bytes(pickle.dumps({np.int64(number): row for number, row in enumerate(V)}))
    for name in ("v.pt", "v.pkl"):
        store = FeatureStore.open(import_features(tmp_path / "s.zarr", {"v": tmp_path / name}, overwrite=True))
        assert store.ids.tolist() == [str(number) for number in range(N)]
        np.testing.assert_array_equal(store.features("v"), V)


def write_frames(folder, form, lengths):
    frames = {name: np.arange(2.0 * length, dtype=np.float32).reshape(length, 2) for name, length in lengths.items()}
    path = folder / f"v.{form}"
    if form == "npz":
        np.savez(path, **frames)
    elif form == "h5":
        with h5py.File(path, "w") as file:
            for name, rows in frames.items():
                file[f"{name}/c3d_features"] = rows
    elif form == "pt":
        torch.save({name: torch.from_numpy(rows) for name, rows in frames.items()}, path)
    elif form == "pkl":
        path.write_bytes(pickle.dumps(frames))
    return path, frames


@pytest.mark.parametrize("form", ["npz", "h5", "pt", "pkl"])
@pytest.mark.parametrize("lengths", [{"a": 3, "b": 3, "c": 3}, {"a": 1, "b": 4, "c": 2}, {"a": 2, "b": 5}])
def test_frames_are_pooled_or_kept_as_asked(tmp_path, form, lengths):
    path, frames = write_frames(tmp_path, form, lengths)
    with pytest.raises(CalmrlError) as caught:
        import_features(tmp_path / "s.zarr", {"v": path})
    assert "--pool mean" in caught.value.hint
    store = FeatureStore.open(import_features(tmp_path / "m.zarr", {"v": path}, pool="mean"))
    assert store.ids.tolist() == list(lengths)
    np.testing.assert_array_equal(store.features("v"), [rows.mean(axis=0) for rows in frames.values()])
    store = FeatureStore.open(import_features(tmp_path / "r.zarr", {"v": path}, pool="rows"))
    assert np.diff(store.offsets("v")).tolist() == list(lengths.values())
    np.testing.assert_array_equal(store.features("v"), np.concatenate(list(frames.values())))


def test_frames_in_one_array(tmp_path):
    frames = np.arange(24, dtype=np.float32).reshape(3, 4, 2)
    np.savez(tmp_path / "v.npz", features=frames, ids=np.array(["a", "b", "c"]), mask=np.array([1, 0, 1]))
    np.savez(tmp_path / "w.npz", features=frames[:, :1], ids=np.array(["a", "b", "c"]))
    files = {"v": tmp_path / "v.npz", "w": tmp_path / "w.npz"}
    with pytest.raises(CalmrlError, match="4 rows for every item"):
        import_features(tmp_path / "s.zarr", files)
    store = FeatureStore.open(import_features(tmp_path / "s.zarr", files, pool="rows"))
    assert store.offsets("v").tolist() == [0, 4, 4, 8]
    np.testing.assert_array_equal(store.features("w"), frames[:, 0])
    store = FeatureStore.open(import_features(tmp_path / "s.zarr", files, pool="mean", overwrite=True))
    np.testing.assert_array_equal(store.features("v"), frames[[0, 2]].mean(axis=1))


def test_a_saved_dataset_in_the_order_of_its_selection_and_with_its_splits(tmp_path):
    saved_dataset(tmp_path / "one")
    with pa.OSFile(str(tmp_path / "one" / "indices.arrow"), "wb") as sink:
        table = pa.table({"indices": pa.array([4, 2], pa.uint64())})
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    state = json.loads((tmp_path / "one" / "state.json").read_text())
    (tmp_path / "one" / "state.json").write_text(json.dumps({**state, "_indices_data_files": [{"filename": "indices.arrow"}]}))
    store = FeatureStore.open(import_features(tmp_path / "s.zarr", {"v": tmp_path / "one"}))
    assert store.ids.tolist() == ["video4", "video2"]
    (tmp_path / "both").mkdir()
    saved_dataset(tmp_path / "both" / "train")
    (tmp_path / "one").rename(tmp_path / "both" / "test")
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    store = FeatureStore.open(import_features(tmp_path / "s.zarr", {"v": tmp_path / "both"}, overwrite=True))
    assert set(store.split.tolist()) == {"train"}
    (tmp_path / "both" / "train" / "state.json").write_text('{"_data_files": [{"filename": "../../secret.arrow"}]}')
    with pytest.raises(CalmrlError, match="outside its folder"):
        import_features(tmp_path / "t.zarr", {"v": tmp_path / "both"})


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda p: (p / "img_emb" / "img_emb_1.npy").unlink(), "but not img_emb_1"),
        (lambda p: (p / "metadata" / "metadata_2.parquet").unlink(), "no metadata_2.parquet"),
        (lambda p: np.save(p / "img_emb" / "img_emb_2.npy", V[:2]), "has 7 rows; shard 2 has 2"),
        (lambda p: np.save(p / "img_emb" / "img_emb_1.npy", V[:0, :2]), "rows of different shapes"),
    ],
)
def test_shards_that_do_not_fit_together(tmp_path, spoil, said):
    shards(tmp_path / "v")
    spoil(tmp_path / "v")
    with pytest.raises(CalmrlError, match=said):
        import_features(tmp_path / "s.zarr", {"v": tmp_path / "v"})


def test_a_defaultdict_of_foreign_makings_is_refused(tmp_path):
    torch.save(defaultdict(os.getcwd, tensors()), tmp_path / "v.pt")
    with pytest.raises(CalmrlError, match="it was not executed"):
        import_features(tmp_path / "s.zarr", {"v": tmp_path / "v.pt"})


@pytest.mark.parametrize("ids", [np.arange(D), np.array(["a", "b", "c", "d", "e"])])
def test_ids_of_single_numbers_are_no_item(tmp_path, ids):
    np.savez(tmp_path / "v.npz", a=V[0], b=V[1], ID=ids)
    with pytest.raises(CalmrlError, match="like ids|does not say which"):
        import_features(tmp_path / "s.zarr", {"v": tmp_path / "v.npz"})


def test_numbers_by_two_names_of_which_either_may_be_the_item(tmp_path):
    (tmp_path / "v.json").write_text(json.dumps({"a": {"one": 1.0, "two": 2.0}, "b": {"one": 3.0, "two": 4.0}}))
    with pytest.raises(CalmrlError, match="does not say which of them are items: 'a', 'b' or 'one', 'two'"):
        import_features(tmp_path / "s.zarr", {"v": tmp_path / "v.json"})


def test_cells_of_frames_are_pooled(tmp_path):
    cells = np.empty(N, dtype=object)
    cells[:] = [np.stack([row] * (1 + number % 3)) for number, row in enumerate(V)]
    savemat(tmp_path / "v.mat", {"feats": cells, "names": np.array(NAMES, dtype=object), "note": "x"})
    store = FeatureStore.open(import_features(tmp_path / "s.zarr", {"v": tmp_path / "v.mat"}, pool="mean"))
    assert store.ids.tolist() == NAMES
    np.testing.assert_array_equal(store.features("v"), V)


def test_items_of_other_lengths_are_named(tmp_path):
    np.savez(tmp_path / "v.npz", **{**by_id(), "odd": V[0, :3]})
    with pytest.raises(CalmrlError, match=r"the array of the item 'odd' is \[3\]; 12 of 13 end in 5"):
        import_features(tmp_path / "s.zarr", {"v": tmp_path / "v.npz"})
    np.savez(tmp_path / "w.npz", a=V[0, :3], b=V[0, :2])
    with pytest.raises(CalmrlError, match="does not say which"):
        import_features(tmp_path / "s.zarr", {"v": tmp_path / "w.npz"})


def test_features_with_statistics_beside_them_are_no_items(tmp_path):
    np.savez(tmp_path / "v.npz", embeddings=V, mean=V.mean(0), std=V.std(0), ids=np.array(NAMES))
    store = FeatureStore.open(import_features(tmp_path / "s.zarr", {"v": tmp_path / "v.npz"}))
    assert store.ids.tolist() == NAMES


def test_a_folder_of_nothing(tmp_path):
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.jpg").touch()
    with pytest.raises(CalmrlError, match="holds no features"):
        import_features(tmp_path / "s.zarr", {"v": tmp_path / "v"})


def test_groups_with_ids_of_their_own_are_parts(tmp_path):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        for split, part in (("train", slice(0, 8)), ("val", slice(8, 10)), ("test", slice(10, 12))):
            file[f"{split}/features"] = V[part]
            file[f"{split}/names"] = NAMES[part]
    store = FeatureStore.open(import_features(tmp_path / "s.zarr", {"v": tmp_path / "v.h5"}))
    assert dict(zip(store.ids.tolist(), store.split.tolist(), strict=True)) == {
        name: "train" if n < 8 else "validation" if n < 10 else "test" for n, name in enumerate(NAMES)
    }
    order = [NAMES.index(name) for name in store.ids.tolist()]
    np.testing.assert_array_equal(store.features("v"), V[order])
