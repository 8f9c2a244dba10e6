"""Tables: which columns are features, what is missing in them, which splits people mean."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_array_equal

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store import FeatureStore
from calmrl_lab.store.convert.import_arrays import import_features

N = 12
V = np.random.default_rng(0).standard_normal((N, 12)).astype(np.float32)
NAMES = [f"video{number}" for number in range(N)]
WIDE = {"id": NAMES, **{f"x{n}": V[:, n] for n in range(12)}}


def imported(folder, files, **options) -> FeatureStore:
    return FeatureStore.open(import_features(folder / "s.zarr", files, overwrite=True, **options))


def refusal(folder, files, **options) -> CalmrlError:
    with pytest.raises(CalmrlError) as caught:
        import_features(folder / "refused.zarr", files, **options)
    assert not (folder / "refused.zarr").exists()
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    "more",
    [
        {"label": np.arange(N)},
        {"__index_level_0__": np.arange(N)},
        {"start_time": np.arange(N), "duration": np.arange(1.0, N + 1)},
        {"x": np.arange(N)},
        {"y0": np.arange(N)},
        {"mask0": np.ones(N), "split": ["train"] * 8 + ["test"] * 4},
    ],
)
@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_other_numbers_beside_a_numbered_family_are_no_features(tmp_path, more, form, capfd):
    # In another order than their numbers: x10 comes before x2 where columns are sorted by letters.
    columns = dict(sorted({**WIDE, **more}.items()))
    path = tmp_path / f"v.{form}"
    if form == "parquet":
        pq.write_table(pa.table(columns), path)
    elif form == "csv":
        path.write_text(
            "\n".join([",".join(columns), *(",".join(map(str, cells)) for cells in zip(*columns.values(), strict=True))])
        )
    else:
        rows = zip(*(np.asarray(values).tolist() for values in columns.values()), strict=True)
        path.write_text("\n".join(json.dumps(dict(zip(columns, cells, strict=True))) for cells in rows))
    store = imported(tmp_path, {"v": path})
    assert store.ids.tolist() == NAMES
    assert_array_equal(store.features("v"), V)
    left = [name for name in more if name != "split"]
    assert f"'x0' to 'x11' [12, 12], ids from 'id'; left out: {', '.join(sorted(left))}" in capfd.readouterr().err
    if "split" in more:
        assert store.split.tolist() == more["split"], "the file brings its splits"


def test_one_list_column_is_the_features_and_several_are_asked_for(tmp_path):
    pq.write_table(pa.table({"key": NAMES, "clip": list(V), "x0": V[:, 0], "x1": V[:, 1]}), tmp_path / "v.parquet")
    assert_array_equal(imported(tmp_path, {"v": tmp_path / "v.parquet"}).features("v"), V)
    assert_array_equal(imported(tmp_path, {"v": f"{tmp_path}/v.parquet:x"}).features("v"), V[:, :2])
    assert_array_equal(imported(tmp_path, {"v": f"{tmp_path}/v.parquet:x1,x0"}).features("v"), V[:, [1, 0]])
    pq.write_table(pa.table({"key": NAMES, "clip": list(V), "clap": list(V)}), tmp_path / "w.parquet")
    assert "does not say which" in refusal(tmp_path, {"v": tmp_path / "w.parquet"}).message
    assert_array_equal(imported(tmp_path, {"clap": tmp_path / "w.parquet"}).features("clap"), V)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"id": NAMES, "height": V[:, 0], "width": V[:, 1]}, "no numbered columns"),
        (
            {"id": NAMES, "x0": V[:, 0], "x1": V[:, 1], "y0": V[:, 0], "y1": V[:, 1]},
            "numbered columns of 2 kinds (x0..., y0...)",
        ),
        ({"id": NAMES, "x0": V[:, 0], "x1": V[:, 1], "x3": V[:, 0]}, "but no x2"),
        ({"id": NAMES, "x2": V[:, 0], "x3": V[:, 1]}, "but no x0"),
        ({"id": NAMES, "x1": V[:, 0], "x01": V[:, 1]}, "numbers two columns alike"),
    ],
)
def test_columns_that_are_not_one_family_are_refused(tmp_path, columns, said):
    pq.write_table(pa.table(columns), tmp_path / "v.parquet")
    assert said in refusal(tmp_path, {"v": tmp_path / "v.parquet"}).message


def test_two_families_are_told_apart_by_the_modality(tmp_path):
    columns = {f"{name}_{n}": V[:, n] for name in ("vision", "text") for n in range(3)}
    pq.write_table(pa.table({"id": NAMES, **columns}), tmp_path / "v.parquet")
    assert_array_equal(imported(tmp_path, {"text": tmp_path / "v.parquet"}).features("text"), V[:, :3])


def test_text_that_needs_float64_stays_float64(tmp_path):
    lines = [f"{name},{','.join(map(repr, row))}" for name, row in zip(NAMES, V.astype(np.float64).tolist(), strict=True)]
    (tmp_path / "a.csv").write_text("\n".join(["id,0,1,2,3,4,5,6,7,8,9,10,11", *lines]))
    assert imported(tmp_path, {"v": tmp_path / "a.csv"}).features("v").dtype == np.float32
    long = np.random.default_rng(1).standard_normal((N, 12))
    lines = [f"{name},{','.join(map(repr, row))}" for name, row in zip(NAMES, long.tolist(), strict=True)]
    (tmp_path / "b.csv").write_text("\n".join(["id,0,1,2,3,4,5,6,7,8,9,10,11", *lines]))
    assert_array_equal(imported(tmp_path, {"v": tmp_path / "b.csv"}).features("v"), long)


def test_tables_without_a_heading_and_cells_that_are_missing(tmp_path):
    lines = [f"{name}\t" + "\t".join(map(str, row)) for name, row in zip(NAMES, V, strict=True)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    store = imported(tmp_path, {"v": tmp_path / "a.txt"})
    assert (store.ids.tolist(), store.features("v").tolist()) == (NAMES, V.tolist())
    np.savetxt(tmp_path / "b.txt", V)
    assert_array_equal(imported(tmp_path, {"v": tmp_path / "b.txt"}, ids=NAMES).features("v"), V)
    lines[4] = "video4" + 12 * "\tNaN"
    (tmp_path / "c.tsv").write_text("\n".join(["\t".join(WIDE), *lines]))
    (tmp_path / "w.csv").write_text("\n".join(["id,features", *(f'{name},"[1, 2.5]"' for name in NAMES)]))
    store = imported(tmp_path, {"v": tmp_path / "c.tsv", "w": tmp_path / "w.csv"})
    assert store.mask[:, 0].tolist() == [n != 4 for n in range(N)]
    (tmp_path / "d.csv").write_text("id,features\na,[0.1 0.2 ... 0.9]\n")
    assert "cut short to '...'" in refusal(tmp_path, {"v": tmp_path / "d.csv"}).message


@pytest.mark.parametrize("missing", [float("nan"), None, "NaN", "nan", "None", "", " ", "<NA>"])
@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "parquet"])
def test_missing_is_missing_in_groups_and_labels(tmp_path, missing, form, capfd):
    np.savez(tmp_path / "v.npz", features=V, ids=np.array(NAMES))
    rows = [
        {"id": name, "group": f"g{n}" if n % 2 else missing, "label": "dog" if n % 2 else missing, "split": "train"}
        for n, name in enumerate(NAMES)
    ]
    path = tmp_path / f"items.{form}"
    if form == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif form == "json":
        path.write_text(json.dumps(rows))
    elif form == "csv":
        cells = [",".join("" if v is None else str(v) for v in row.values()) for row in rows]
        path.write_text("\n".join([",".join(rows[0]), *cells]))
    else:
        if isinstance(missing, float):
            rows = [{k: None if v is missing else v for k, v in row.items()} for row in rows]
        pq.write_table(pa.Table.from_pylist(rows), path)
    store = imported(tmp_path, {"v": tmp_path / "v.npz"}, table=path)
    assert store.group.tolist() == [f"g{n}" if n % 2 else NAMES[n] for n in range(N)]
    assert store.labels["label"].tolist() == ["dog" if n % 2 else "" for n in range(N)]
    if isinstance(missing, str) and missing.strip():
        assert "12 cells are words like NaN or None and count as missing" in capfd.readouterr().err


def test_splits_as_people_spell_them(tmp_path):
    np.savez(tmp_path / "v.npz", features=V, ids=np.array(NAMES))
    spelled = ["Train", "training", "TRAIN", "val", "dev", "Valid", "validation", "Test", "testing", "test", "train ", "DEV"]
    meant = ["train"] * 3 + ["validation"] * 4 + ["test"] * 3 + ["train", "validation"]
    (tmp_path / "t.csv").write_text("\n".join(["id,split", *map(",".join, zip(NAMES, spelled, strict=True))]))
    assert imported(tmp_path, {"v": tmp_path / "v.npz"}, table=tmp_path / "t.csv").split.tolist() == meant
    np.savez(tmp_path / "w.npz", features=V, ids=np.array(NAMES), split=np.array(spelled))
    assert imported(tmp_path, {"v": tmp_path / "w.npz"}).split.tolist() == meant
    for odd, said in (("holdout", "has the split 'holdout'"), ("NaN", "gives no split to 1 of 12 items")):
        spelled[5] = odd
        (tmp_path / "t.csv").write_text("\n".join(["id,split", *map(",".join, zip(NAMES, spelled, strict=True))]))
        assert said in refusal(tmp_path, {"v": tmp_path / "v.npz"}, table=tmp_path / "t.csv").message


def test_rows_of_one_id_are_one_item(tmp_path, capfd):
    np.savez(tmp_path / "v.npz", features=V[:2], ids=np.array(NAMES[:2]))
    (tmp_path / "t.csv").write_text("video_id,split,sentence,kind\nvideo0,train,a,dog\nvideo0,train,b,dog\nvideo1,test,c,cat\n")
    store = imported(tmp_path, {"v": tmp_path / "v.npz"}, table=tmp_path / "t.csv")
    assert store.labels["kind"].tolist() == ["dog", "cat"]
    assert set(store.labels) == {"kind"}
    said = capfd.readouterr().err
    assert "3 rows are 2 items" in said
    assert "'sentence' differs between rows of one item and is left out" in said
    (tmp_path / "t.csv").write_text("id,split\nvideo0,train\nvideo0,test\nvideo1,test\n")
    assert (
        "puts the item 'video0' into the splits"
        in refusal(tmp_path, {"v": tmp_path / "v.npz"}, table=tmp_path / "t.csv").message
    )


@pytest.mark.parametrize("cell", ["", "NaN", "None"])
def test_a_row_of_a_table_without_id_is_refused(tmp_path, cell):
    np.savez(tmp_path / "v.npz", features=V[:1], ids=np.array(NAMES[:1]))
    (tmp_path / "t.csv").write_text(f"id,kind\nvideo0,dog\n{cell},cat\n")
    assert "line 3 has no id" in refusal(tmp_path, {"v": tmp_path / "v.npz"}, table=tmp_path / "t.csv").message


def test_the_id_under_another_name(tmp_path):
    np.savez(tmp_path / "v.npz", features=V[:1], ids=np.array(NAMES[:1]))
    for heading in ("video_id", "videoID", "filename", "key", "ID"):
        (tmp_path / "t.csv").write_text(f"{heading},kind\nvideo0,dog\n")
        assert imported(tmp_path, {"v": tmp_path / "v.npz"}, table=tmp_path / "t.csv").labels["kind"].tolist() == ["dog"]
    (tmp_path / "t.csv").write_text("vid_id,clip_id,kind\nx,video0,dog\n")
    assert "--id-column" in refusal(tmp_path, {"v": tmp_path / "v.npz"}, table=tmp_path / "t.csv").hint
    store = imported(tmp_path, {"v": tmp_path / "v.npz"}, table=tmp_path / "t.csv", id_columns="clip_id", ids=["video0"])
    assert store.ids.tolist() == ["video0"]
