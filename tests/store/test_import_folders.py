"""Folders: parts of one table, one file per item in any form, and folders of splits give what one file of all would give."""

from __future__ import annotations

import gzip
import json
import pickle

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
from calmrl_lab.store.convert.feature_files import read_source
from calmrl_lab.store.convert.import_arrays import import_features
from calmrl_lab.store.convert.reading.source import ReadOptions

N, D = 12, 5
V = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)
NAMES = [f"video{number}" for number in range(N)]
CUTS = [slice(0, 5), slice(5, 9), slice(9, 12)]


def frame(part):
    return pd.DataFrame(V[part], columns=[f"x{number}" for number in range(D)]).assign(id=NAMES[part])


def by_id(part):
    return dict(zip(NAMES[part], V[part].copy(), strict=True))


def csv(file, part):
    frame(part).to_csv(file, index=False)


def headless(file, part):
    frame(part).to_csv(file, index=False, header=False)


def first_heading(file, part):
    frame(part).to_csv(file, index=False, header=part.start == 0)


def zipped(file, part):
    file.write_bytes(gzip.compress(frame(part).to_csv(index=False, sep="\t").encode()))


def lines(file, part):
    file.write_text("\n".join(json.dumps({"id": name, "features": row.tolist()}) for name, row in by_id(part).items()))


def document(file, part):
    file.write_text(json.dumps({name: row.tolist() for name, row in by_id(part).items()}))


def h5(file, part):
    with h5py.File(file, "w") as held:
        held["features"], held["ids"] = V[part], NAMES[part]


def h5_items(file, part):
    with h5py.File(file, "w") as held:
        for name, row in by_id(part).items():
            held[name] = row


def npz(file, part):
    np.savez(file, features=V[part], names=NAMES[part])


def pt(file, part):
    torch.save({name: torch.from_numpy(row) for name, row in by_id(part).items()}, file)


def pkl(file, part):
    file.write_bytes(pickle.dumps(by_id(part)))


def safetensors(file, part):
    save_file({name: torch.from_numpy(row) for name, row in by_id(part).items()}, file)


PARTS = {
    "part-{}.csv": csv,
    "part-0000{}-c000.csv": headless,
    "chunk{}.csv": first_heading,
    "{}.tsv.gz": zipped,
    "part-{}.jsonl": lines,
    "part-{}.json": document,
    "features_{}.h5": h5,
    "part-{}.h5": h5_items,
    "batch_{}.npz": npz,
    "{}.pt": pt,
    "{}.pkl": pkl,
    "model-0000{}-of-00003.safetensors": safetensors,
    "part-{}.txt": csv,
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    np.save(folder / "v.npy", V)
    return FeatureStore.open(
        import_features(folder / "s.zarr", {"v": folder / "v.npy"}, ids=NAMES, encoders={"v": "mine"})
    ).digest


@pytest.mark.parametrize("name", list(PARTS))
def test_parts_are_one_file(name, tmp_path, plain):
    (tmp_path / "v").mkdir()
    for number, part in enumerate(CUTS):
        PARTS[name](tmp_path / "v" / name.format(number), part)
    (tmp_path / "v" / "_SUCCESS").touch()
    if name.startswith("part-0000"):
        (tmp_path / "v" / name.format(3)).touch()
    (tmp_path / "v" / "README.md").write_text("x")
    store = FeatureStore.open(import_features(tmp_path / "s.zarr", {"v": tmp_path / "v"}, encoders={"v": "mine"}))
    assert store.ids.tolist() == NAMES
    assert store.digest == plain


def item_txt(file, row):
    file.write_text("\n".join(map(str, row)))


def item_csv(file, row):
    file.write_text(",".join(map(str, row)))


def item_json(file, row):
    file.write_text(json.dumps(row.tolist()))


def item_mat(file, row):
    savemat(file, {"feat": row})


def item_h5(file, row):
    with h5py.File(file, "w") as held:
        held["feat"] = row


def item_pkl(file, row):
    file.write_bytes(pickle.dumps(row))


ITEMS = {".txt": item_txt, ".csv": item_csv, ".json": item_json, ".mat": item_mat, ".h5": item_h5, ".pkl": item_pkl}


@pytest.mark.parametrize("ending", list(ITEMS))
def test_one_file_per_item(ending, tmp_path, plain):
    (tmp_path / "v").mkdir()
    for name, row in by_id(slice(None)).items():
        ITEMS[ending](tmp_path / "v" / f"{name}{ending}", row)
    store = FeatureStore.open(import_features(tmp_path / "s.zarr", {"v": tmp_path / "v"}, encoders={"v": "mine"}))
    assert store.digest == plain


def test_files_of_several_arrays_per_item(tmp_path):
    (tmp_path / "v").mkdir()
    for name, row in by_id(slice(None)).items():
        np.savez(tmp_path / "v" / f"{name}.npz", vision=row, text=row[:2])
    store = FeatureStore.open(import_features(tmp_path / "s.zarr", {"vision": tmp_path / "v", "text": tmp_path / "v"}))
    assert store.ids.tolist() == NAMES
    np.testing.assert_array_equal(store.features("text"), V[:, :2])


def test_frames_as_text(tmp_path):
    (tmp_path / "v").mkdir()
    for number, name in enumerate(NAMES):
        pd.DataFrame([V[number]] * (1 + number % 3)).to_csv(tmp_path / "v" / f"{name}.csv", index=False)
    np.testing.assert_array_equal(read_source(tmp_path / "v", "v", options=ReadOptions(pool="mean")).rows, V)


def folder_of_items(place, part):
    place.mkdir()
    for name, row in by_id(part).items():
        np.save(place / f"{name}.npy", row)


def folder_of_parts(place, part):
    place.mkdir()
    csv(place / "part-0.csv", slice(part.start, part.start + 2))
    csv(place / "part-1.csv", slice(part.start + 2, part.stop))


def hub_files(place, part):
    middle = (part.start + part.stop) // 2
    for number, piece in enumerate((slice(part.start, middle), slice(middle, part.stop))):
        table = pa.table({"id": NAMES[piece], "features": list(V[piece])})
        pq.write_table(table, place.parent / f"{place.name}-{number:05}-of-00002.parquet")


SPLITS = {
    "items": folder_of_items,
    "parts": folder_of_parts,
    "hub": hub_files,
    "npz": lambda p, part: npz(p.with_suffix(".npz"), part),
}


@pytest.mark.parametrize("form", list(SPLITS))
def test_folders_and_files_of_splits_give_the_splits(form, tmp_path):
    (tmp_path / "v").mkdir()
    for name, part in zip(("train", "val", "test"), CUTS, strict=True):
        SPLITS[form](tmp_path / "v" / name, part)
    (tmp_path / "v" / "logs").mkdir()
    store = FeatureStore.open(import_features(tmp_path / "s.zarr", {"v": tmp_path / "v"}))
    assert store.ids.tolist() == NAMES
    assert store.split.tolist() == ["train"] * 5 + ["validation"] * 4 + ["test"] * 3
    np.testing.assert_array_equal(store.features("v"), V)


def test_an_id_of_two_splits_is_two_items(tmp_path):
    (tmp_path / "v").mkdir()
    folder_of_items(tmp_path / "v" / "train", slice(0, 8))
    folder_of_items(tmp_path / "v" / "test", slice(7, 12))
    source = read_source(tmp_path / "v", "v")
    assert {"train/video7", "test/video7"} <= set(source.ids.tolist())
    assert "1 ids stand in more than one split" in source.told


def spoilt_columns(folder):
    frame(CUTS[1]).rename(columns={"x4": "y"}).to_csv(folder / "part-1.csv", index=False)


def spoilt_width(folder):
    frame(CUTS[1]).drop(columns="x4").to_csv(folder / "part-1.csv", index=False, header=False)


def item_again(folder):
    for file in folder.iterdir():
        file.unlink()
    pt(folder / "part-0.pt", CUTS[0])
    pt(folder / "part-1.pt", slice(4, 9))


def piece_missing(folder):
    for number in (0, 2):
        (folder / f"part-{number}.csv").rename(folder / f"x-{number}-of-3.csv")
    (folder / "part-1.csv").unlink()


SPOILT = {
    "has other columns": spoilt_columns,
    "has 5 columns, 'part-0.csv' has 6": spoilt_width,
    "'video4' in more than one of its parts": item_again,
    "has 2 of 3 parts; number 1 is missing": piece_missing,
}


@pytest.mark.parametrize("said", list(SPOILT))
def test_parts_that_do_not_fit_together(said, tmp_path):
    (tmp_path / "v").mkdir()
    for number, part in enumerate(CUTS):
        csv(tmp_path / "v" / f"part-{number}.csv", part)
    SPOILT[said](tmp_path / "v")
    with pytest.raises(CalmrlError) as refused:
        import_features(tmp_path / "s.zarr", {"v": tmp_path / "v"})
    assert said in refused.value.message
    assert refused.value.hint


def test_features_beside_the_splits_are_refused(tmp_path):
    (tmp_path / "v").mkdir()
    for name, part in zip(("train", "extra", "test"), CUTS, strict=True):
        folder_of_items(tmp_path / "v" / name, part)
    with pytest.raises(CalmrlError, match="has the splits train, test, and 'extra'"):
        read_source(tmp_path / "v", "v")


def test_ids_of_all_parts_decide_what_they_are(tmp_path):
    (tmp_path / "v").mkdir()
    for number, names in enumerate((["1", "2"], ["1e3", "b"])):
        pd.DataFrame(V[:2], columns=[f"x{n}" for n in range(D)]).assign(id=names).to_csv(
            tmp_path / "v" / f"{number}.csv", index=False
        )
    assert read_source(tmp_path / "v", "v").ids.tolist() == ["1", "2", "1e3", "b"]


def names_beside(place):
    np.save(place / "features.npy", V)
    (place / "ids.txt").write_text("\n".join(NAMES))


def array_of_names_beside(place):
    np.save(place / "features.npy", V)
    np.save(place / "video_ids.npy", np.array(NAMES))


def table_beside(place):
    np.save(place / "embeddings.npy", V)
    pd.DataFrame({"video_id": NAMES, "caption": "x"}).to_csv(place / "metadata.csv", index=False)


def shards_of_ids(place):
    for number, part in enumerate(CUTS):
        np.save(place / f"feats_{number}.npy", V[part])
        np.save(place / f"ids_{number}.npy", np.array(NAMES[part]))


def metadata_as(ending):
    def write(place):
        for number, part in enumerate(CUTS):
            np.save(place / f"img_emb_{number}.npy", V[part])
            table = pd.DataFrame({"key": NAMES[part], "caption": "x"})
            file = place / f"metadata_{number}.{ending}"
            table.to_csv(file, index=False) if ending == "csv" else table.to_json(file, orient="records")

    return write


def in_the_only_folder(place):
    (place / "extracted").mkdir()
    for name, row in by_id(slice(None)).items():
        np.save(place / "extracted" / f"{name}.npy", row)


def in_the_folder_of_the_modality(place):
    for modality, columns in (("v", D), ("text", 2)):
        (place / modality).mkdir()
        for name, row in by_id(slice(None)).items():
            np.save(place / modality / f"{name}.npy", row[:columns])


@pytest.mark.parametrize(
    "write",
    [
        metadata_as("csv"),
        metadata_as("json"),
        in_the_only_folder,
        in_the_folder_of_the_modality,
        names_beside,
        array_of_names_beside,
        table_beside,
        shards_of_ids,
    ],
)
def test_ids_in_files_of_their_own_are_not_passed_over(write, tmp_path, plain):
    (tmp_path / "v").mkdir()
    write(tmp_path / "v")
    store = FeatureStore.open(import_features(tmp_path / "s.zarr", {"v": tmp_path / "v"}, encoders={"v": "mine"}))
    assert store.digest == plain


@pytest.mark.parametrize("ending", ["npy", "pt", "json"])
def test_an_empty_file_among_items_is_named(ending, tmp_path):
    (tmp_path / "v").mkdir()
    for name, row in by_id(slice(None)).items():
        np.save(tmp_path / "v" / f"{name}.npy", row)
    if ending != "npy":
        for file in list((tmp_path / "v").iterdir()):
            row = np.load(file)
            item_json(file.with_suffix(".json"), row) if ending == "json" else torch.save(
                torch.from_numpy(row), file.with_suffix(".pt")
            )
            file.unlink()
    (tmp_path / "v" / f"video3.{ending}").write_bytes(b"")
    with pytest.raises(CalmrlError, match="video3"):
        read_source(tmp_path / "v", "v")


def test_shards_of_ids_that_do_not_fit(tmp_path):
    (tmp_path / "v").mkdir()
    shards_of_ids(tmp_path / "v")
    np.save(tmp_path / "v" / "ids_1.npy", np.array(NAMES[:2]))
    with pytest.raises(CalmrlError, match="shards ids_0 to ids_2, whose lengths are not those of the features"):
        read_source(tmp_path / "v", "v")


def test_files_of_another_ending_are_told(tmp_path):
    (tmp_path / "v").mkdir()
    for number, (name, row) in enumerate(by_id(slice(None)).items()):
        if number % 2:
            np.save(tmp_path / "v" / f"{name}.npy", row)
        else:
            torch.save(torch.from_numpy(row), tmp_path / "v" / f"{name}.pt")
    assert "left out: 6 files of other endings, the first is video0.pt" in read_source(tmp_path / "v", "v").told


def test_groups_of_items_that_are_called_like_splits(tmp_path):
    with h5py.File(tmp_path / "v.h5", "w") as held:
        for split, part in zip(("train", "val", "test"), CUTS, strict=True):
            for name in NAMES[part]:
                held[f"{split}/{name}"] = by_id(part)[name]
    store = FeatureStore.open(import_features(tmp_path / "s.zarr", {"v": tmp_path / "v.h5"}))
    assert store.ids.tolist() == NAMES
    assert store.split.tolist() == ["train"] * 5 + ["validation"] * 4 + ["test"] * 3


@pytest.mark.parametrize("inner", ["data", "split=train"])
def test_folders_around_the_features(inner, tmp_path):
    (tmp_path / "v" / inner).mkdir(parents=True)
    if inner == "data":
        for name, part in zip(("train", "val", "test"), CUTS, strict=True):
            hub_files(tmp_path / "v" / inner / name, part)
    else:
        csv(tmp_path / "v" / inner / "part-0.csv", slice(0, 9))
        (tmp_path / "v" / "split=test").mkdir()
        csv(tmp_path / "v" / "split=test" / "part-0.csv", slice(9, 12))
    store = FeatureStore.open(import_features(tmp_path / "s.zarr", {"v": tmp_path / "v"}))
    assert store.ids.tolist() == NAMES
    assert set(store.split[9:].tolist()) == {"test"}


def test_names_in_another_group_are_no_reason_to_match_by_position(tmp_path):
    savemat(tmp_path / "v.mat", {"db": {"feats": V, "info": {"names": np.array(NAMES, dtype=object)}}})
    with pytest.raises(CalmrlError, match="does not say which of its arrays names the rows of 'v': db/info/names"):
        import_features(tmp_path / "s.zarr", {"v": tmp_path / "v.mat"})
    store = FeatureStore.open(import_features(tmp_path / "s.zarr", {"v": tmp_path / "v.mat"}, id_columns="db/info/names"))
    assert store.ids.tolist() == NAMES


def test_a_part_that_breaks_off_is_named(tmp_path):
    (tmp_path / "v").mkdir()
    for number, part in enumerate(CUTS):
        (tmp_path / "v" / f"part-{number}.csv").write_text(frame(part).to_csv(index=False)[: -30 if number == 1 else None])
    with pytest.raises(CalmrlError, match="part-1.csv', line 5 has") as caught:
        read_source(tmp_path / "v", "v")
    assert "it is the last line" in caught.value.hint
