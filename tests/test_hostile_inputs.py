"""Hostile, damaged and odd inputs through the real command line: exit code 1 or 2, one sentence, no traceback, nothing written."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zipfile

import numpy as np
import pytest

DEEP = "[" * 3000 + "]" * 3000
HUGE = str(2**64)


@pytest.fixture
def refused(cli, tmp_path, monkeypatch):
    """refused(words, name): runs the command, which has to refuse in one sentence that names `name`; every call is counted."""
    monkeypatch.chdir(tmp_path)

    def check(words, name=None):
        words = [str(word) for word in (words.split() if isinstance(words, str) else words)]
        code, out, err = cli(*words)
        said = " ".join(err.split())
        assert code in (1, 2), (words, out, err)
        assert "Traceback" not in err, (words, err)
        assert out == "", (words, out)
        errors = [line for line in err.splitlines() if line.startswith(("error:", "Usage"))]
        assert len(errors) == 1, (words, err)
        assert name is None or name in said.replace("│ │", ""), (words, err)
        check.count += 1

    check.count = 0
    return check


def npy(descr="<f4", shape=(6, 3), data=None, header=None, version=b"\x01\x00"):
    """The bytes of a .npy file that says what it is told to say."""
    text = header or f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    text = text + " " * (-(len(text) + 11) % 64) + "\n"
    body = np.zeros((6, 3), dtype="<f4").tobytes() if data is None else data
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text.encode("latin1") + body


def saved(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def archive(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in members.items():
            file.writestr(name.replace("__", "/") + ".npy", data)
    return buffer.getvalue()


def safetensors(header, data=b"\0" * 72, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


TENSOR = {"dtype": "F32", "shape": [6, 3], "data_offsets": [0, 72]}
IDS = saved(np.array([f"i{n}" for n in range(6)]))
GOOD = saved(np.ones((6, 3), dtype=np.float32))

FEATURE_FILES = {
    "empty.npy": b"",
    "magic.npy": b"\x93NUMPY",
    "text.npy": b"not an array at all",
    "cut-header.npy": GOOD[:40],
    "cut.npy": GOOD[:-5],
    "more.npy": npy(shape=(10**12, 3)),
    "overflow.npy": npy(shape=(2**62, 2**62)),
    "negative.npy": npy(shape=(-6, 3)),
    "version.npy": npy(version=b"\x09\x09"),
    "code.npy": npy(header="__import__('os').system('touch harm')"),
    "nested.npy": npy(header="{'descr': " + "(" * 500 + ")" * 500 + "}"),
    "odd-dtype.npy": npy(descr="<q77"),
    "object.npy": saved(np.array([{"a": 1}] * 6, dtype=object), allow_pickle=True),
    "strings.npy": saved(np.array([["a", "b"]] * 6)),
    "complex.npy": saved(np.ones((6, 3), dtype=complex)),
    "dates.npy": saved(np.zeros((6, 3), dtype="datetime64[s]")),
    "record.npy": saved(np.zeros(6, dtype=[("a", "f4"), ("b", "i4")])),
    "scalar.npy": saved(np.float32(3)),
    "no-rows.npy": saved(np.zeros((0, 3), dtype=np.float32)),
    "no-columns.npy": saved(np.zeros((6, 0), dtype=np.float32)),
    "five-dimensions.npy": saved(np.zeros((6, 2, 1, 2, 3), dtype=np.float32)),
    "nan.npy": saved(np.full((6, 3), np.nan, dtype=np.float32)),
    "infinite.npy": saved(np.full((6, 3), np.inf, dtype=np.float32)),
    "empty.npz": b"",
    "no-member.npz": archive(),
    "cut.npz": archive(features=GOOD, ids=IDS)[:-30],
    "more.npz": archive(features=npy(shape=(10**12, 3)), ids=IDS),
    "object.npz": archive(features=saved(np.array([{}] * 6, dtype=object), allow_pickle=True), ids=IDS),
    "other-length.npz": archive(features=GOOD, ids=saved(np.array(["a", "b"]))),
    "number-ids.npz": archive(features=GOOD, ids=saved(np.full(6, np.nan))),
    "nan.npz": archive(features=saved(np.full((6, 3), np.nan)), ids=IDS),
    "mask.npz": archive(features=GOOD, ids=IDS, mask=saved(np.ones(4, dtype=bool))),
    "flipped.npz": bytes(byte ^ (8 if place == 150 else 0) for place, byte in enumerate(archive(features=GOOD, ids=IDS))),
    "empty.h5": b"",
    "signature.h5": b"\x89HDF\r\n\x1a\n",
    "garbage.h5": b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 4,
    "empty.safetensors": b"",
    "longer-header.safetensors": safetensors({"a": TENSOR}, length=10**15),
    "no-json.safetensors": safetensors(b"{{{{"),
    "deep.safetensors": safetensors(DEEP.encode()),
    "more.safetensors": safetensors({"a": {**TENSOR, "shape": [10**12, 3], "data_offsets": [0, 12 * 10**12]}}),
    "outside.safetensors": safetensors({"a": {**TENSOR, "data_offsets": [72, 144]}}),
    "backwards.safetensors": safetensors({"a": {**TENSOR, "data_offsets": [72, 0]}}),
    "dtype.safetensors": safetensors({"a": {**TENSOR, "dtype": "F99"}}),
    "negative.safetensors": safetensors({"a": {**TENSOR, "shape": [-6, -3]}}),
    "list.safetensors": safetensors([1, 2]),
    "no-tensor.safetensors": safetensors({}, data=b""),
    "cut.safetensors": safetensors({"a": TENSOR})[:-5],
    "empty.parquet": b"",
    "magic.parquet": b"PAR1PAR1",
    "garbage.parquet": b"PAR1" + bytes(range(256)) + b"PAR1",
    "long-footer.parquet": b"PAR1" + b"\0" * 64 + struct.pack("<I", 2**31 - 1) + b"PAR1",
    "empty.csv": b"",
    "heading.csv": b"id,f0,f1\n",
    "ragged.csv": b"id,f0,f1\na,1,2\nb,3\n",
    "nul.csv": b"id,f0,f1\na,1,\x00\n",
    "latin.csv": b"id,f0,f1\n\xff\xfe\xfa,1,2\n",
    "words.csv": b"id,f0,f1\na,one,two\n",
    "too-large.csv": b"id,f0,f1\na,1e999,2\n",
    "quote.csv": b'id,f0,f1\n"a,1,2\n',
    "twice.csv": b"id,f0,f0\na,1,2\n",
    "empty.jsonl": b"",
    "broken.jsonl": b'{"id": "a", "features": [1, 2]\n',
    "deep.jsonl": b'{"id": "a", "features": ' + DEEP.encode() + b"}\n",
    "scalar.jsonl": b"17\n",
    "huge-number.jsonl": b'{"id": "a", "features": [1' + b"0" * 5000 + b"]}\n",
    "empty.pt": b"",
    "garbage.pt": b"PK\x03\x04 and no more",
    "code.pkl": b"cos\nsystem\n(S'touch harm'\ntR.",
    "empty.pkl": b"",
    "cut.pkl": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
    "empty.tar": b"",
    "garbage.tar": b"x" * 1024,
    "unknown.xyz": b"1 2 3",
    "no-ending": b"1 2 3",
}


@pytest.mark.slow
def test_feature_files(refused, tmp_path):
    for name, data in FEATURE_FILES.items():
        (tmp_path / name).write_bytes(data)
        refused(["store", "import", "--out", "out.zarr", "--modality", f"a={name}"], name)
    assert not (tmp_path / "harm").exists()
    assert not (tmp_path / "out.zarr").exists()
    assert refused.count >= 70


def test_hdf5_files(refused, tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File("claims.h5", "w") as file:
        file.create_dataset("a", shape=(10**11, 300), dtype="f4", chunks=(100, 300))
    with h5py.File("loop.h5", "w") as file:
        file["group/again"] = file["/"]
    with h5py.File("nowhere.h5", "w") as file:
        file["a"] = h5py.SoftLink("/b")
        file["b"] = h5py.ExternalLink("other.h5", "/a")
    with h5py.File("words.h5", "w") as file:
        file["a"] = ["x", "y"]
    with h5py.File("records.h5", "w") as file:
        file["a"] = np.zeros(3, dtype=[("x", "f4", (2, 2)), ("y", "S3")])
    with h5py.File("nothing.h5", "w"):
        pass
    with h5py.File("nan.h5", "w") as file:
        file["a"] = np.full((4, 2), np.nan)
    with h5py.File("whole.h5", "w") as file:
        file["a"] = np.ones((4000, 20))
    (tmp_path / "cut.h5").write_bytes((tmp_path / "whole.h5").read_bytes()[:-9000])
    for name in ("claims", "loop", "nowhere", "words", "records", "nothing", "nan", "cut"):
        refused(["store", "import", "--out", "out.zarr", "--modality", f"a={name}.h5"], f"{name}.h5")


def odd_places(tmp_path):
    """Paths that are no file that could be read."""
    (tmp_path / "folder").mkdir(exist_ok=True)
    (tmp_path / "file").write_bytes(b"\x00\x01 nothing of use")
    for name in ("loop", "loop.npy", "loop.yaml"):
        if not os.path.lexists(tmp_path / name):
            os.symlink(name, tmp_path / name)
    return [
        "nowhere", "folder", "file", "loop", "loop/inside", "file/inside", "x" * 300, "/".join(["y" * 200] * 30), "line\nbreak",
        "\u202egnol", "nul\0byte", "", ".", "~", "\udcff", "-",
    ]  # fmt: skip


@pytest.mark.slow
def test_places_that_are_nothing(refused, tmp_path):
    commands = (
        ("train-heads", "--store", "{}"), ("store", "info", "{}"), ("store", "verify", "{}"), ("evaluate", "--run", "{}"),
        ("impute", "--store", "{}", "--out", "out.zarr"), ("search", "--index", "{}", "--item", "a"), ("report", "--runs", "{}", "--out", "out"),
        ("experiment", "{}"), ("store", "import", "--out", "out.zarr", "--modality", "a={}"), ("train-heads", "--config", "{}"),
        ("train-heads", "--resume", "{}"), ("index", "--run", "{}", "--out", "out"), ("compare", "{}", "{}"), ("diagnose", "--run", "{}"),
        ("store", "export", "{}", "--out", "out.npz"), ("store", "merge", "{}", "{}", "--out", "out.zarr"), ("track", "--runs", "{}"),
    )  # fmt: skip
    for words in commands:
        for place in odd_places(tmp_path):
            if words[0] == "store" and words[1] == "import" and place in ("", "."):
                continue
            refused([word.format(place) for word in words])
    assert not (tmp_path / "out").exists()
    assert refused.count >= 200


def test_stores(refused, tmp_path, small_store):
    def zarr(name, change):
        shutil.copytree(small_store, tmp_path / name)
        change(tmp_path / name)
        for words in (["store", "info", name], ["train-heads", "--store", name, "--method", "clip", "--run", "out"]):
            refused(words, name)

    def metadata(text):
        return lambda path: (path / "zarr.json").write_text(text)

    def attributes(**values):
        def change(path):
            found = json.loads((path / "zarr.json").read_text())
            found["attributes"] |= values
            (path / "zarr.json").write_text(json.dumps(found))

        return change

    def shape(count):
        def change(path):
            place = path / "mask" / "zarr.json"
            found = json.loads(place.read_text())
            found["shape"] = [count, *found["shape"][1:]]
            place.write_text(json.dumps(found))

        return change

    changes = {
        "empty": metadata(""), "null": metadata("null"), "list": metadata("[]"), "deep": metadata(DEEP), "number": metadata("1" + "0" * 6000),
        "binary": lambda path: (path / "zarr.json").write_bytes(b"\xff\xfe\x00"), "version": attributes(version=99), "format": attributes(format="x"),
        "modalities": attributes(modalities="vision"), "no-modality": attributes(modalities=[]), "long": shape(10**15), "negative": shape(-1),
        "digest": lambda path: (path / "digest.json").write_text("{}"), "gone": lambda path: shutil.rmtree(path / "mask"),
        "folder": lambda path: ((path / "zarr.json").unlink(), (path / "zarr.json").mkdir()),
    }  # fmt: skip
    for name, change in changes.items():
        zarr(f"{name}.zarr", change)
    assert refused.count >= 30


YAML = {
    "list": b"- a\n- b\n", "word": b"hello", "number": b"17", "tab": b"store:\t- x\n\t- y: z", "unclosed": b"store: [a, b", "binary": bytes(range(256)),
    "nul": b"store: a\0b", "latin": b"store: \xff\xfe", "deep": b"store: " + DEEP.encode(), "indented": b"".join(b" " * n + b"a:\n" for n in range(400)),
    "bomb": b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n".encode() for n in range(9)
    ),
    "itself": b"store: &a [*a]\n", "python": b"store: !!python/object/apply:os.system ['touch harm']\n", "digits": b"seed: 1" + b"0" * 5000,
    "date": b"store: 2026-13-40", "key": b"? [a, b]\n: c\n", "unknown": b"store: s\nnonsense: 1\n", "two": b"a: 1\n---\nb: 2\n", "anchor": b"a: *b\n",
}  # fmt: skip


@pytest.mark.slow
def test_yaml_files(refused, tmp_path):
    for name, data in YAML.items():
        (tmp_path / f"{name}.yaml").write_bytes(data)
        refused(["train-heads", "--config", f"{name}.yaml"], None if name == "digits" else f"{name}.yaml")
        refused(["experiment", f"{name}.yaml"], f"{name}.yaml")
    assert not (tmp_path / "harm").exists()
    assert refused.count >= 36


SETTINGS = (
    f"seed={HUGE}", "seed=-1", "seed=1.5", "seed=1" + "0" * 5000, f"split_seed={HUGE}", "learning_rate=.inf", "learning_rate=.nan",
    "learning_rate=-1", "learning_rate=0", "learning_rate=1e400", "epochs=-1", "epochs=1e99", "epochs=99999999999", "dim=0", "dim=1", "dim=99999999",
    "batch_size=0", "batch_size=1", "weight_decay=.inf", "warm_up_share=1", "clip_norm=.nan", "objective_options={temperature: .nan}",
    "objective_options={temperature: 0}", "objective_options={temperature: -1}", "objective_options={nonsense: 1}", "objective_options=[1]", "impute_options={x: .inf}",
    "modalities=vision", "modalities=[]", "modalities=[vision, vision]", "modalities=[vision]", "modalities=[smell, taste]", "scenario=pairs:nan",
    "scenario=pairs:2", "scenario=pairs:-1", "scenario=random:inf", "scenario=", "scenario=+", "scenario=drop:", "head=x",
    "init=x", "features=x", "similarity=x", "patience=0", "checkpoint_every=0", "device=cuda:99", "device=banana", "mix={nowhere: 1}", "mix={STORE: .inf}",
    "members=[1]", "members=[{nonsense: 1}]", "gate_level=0", "memory=x", "=1", "epochs", "epochs.x=1", "a.b.c=1", "seed=[", "seed={a: &x [*x]}", "store=",
    "seed=true", "split_seed=false", "epochs=True", "dim=yes", "batch_size=on", "learning_rate=true", "clip_norm=false", "mix={STORE: true}", "refresh=no",
    "members=[{learning_rate: true}, {}]", "objective_options={temperature: true}", "init_options={latent_dim: true}", "init_options={noise_scale: -1}",
    "scenario=drop:vision,audio,subtitle,keywords", "scenario=pattern:vision/caption", "scenario=random:1", "warm_up=nowhere", "method=x", "objective=x", "impute=x",
)  # fmt: skip


def test_settings(refused, tmp_path, small_store):
    for setting in SETTINGS:
        words = ["train-heads", "--store", small_store, "--method", "clip", "--run", "out"]
        refused([*words, "--set", setting.replace("STORE", str(small_store))])
    assert not (tmp_path / "out").exists()
    assert refused.count >= 60


EXPERIMENTS = (
    {"methods": []}, {"methods": "clip"}, {"methods": [1]}, {"methods": [{}]}, {"methods": [{"name": "a/b"}]}, {"methods": [{"name": ""}]},
    {"methods": [{"name": ".."}]}, {"methods": [{"name": ".hidden"}]}, {"methods": [{"name": "a", "method": "x"}]}, {"methods": [{"name": "a"}, {"name": "a"}]},
    {"methods": [{"name": "x" * 300}]}, {"methods": [{"name": "line\nbreak"}]}, {"methods": [{"name": "\u202ea"}]}, {"seeds": []}, {"seeds": [0, 0]},
    {"seeds": [2**64]}, {"seeds": [-1]}, {"seeds": ["a"]}, {"seeds": 3}, {"directions": [["caption"]]}, {"directions": [["caption", "smell"]]}, {"split": "x"},
    {"store": 7}, {"common": [1]}, {"common": {"learning_rate": float("inf")}}, {"common": {"epochs": 10**30}}, {"data": {"a": 1}},
    {"data": {}}, {"probes": {"label": "nonsense"}}, {"title": ["x"]}, {"methods": [{"name": "a", "grid": {"dim": []}}]}, {"methods": [{"name": "a", "grid": {"dim": 3}}]},
    {"methods": [{"name": "a", "settings": 3}]}, {"tuning_seeds": [2**64]}, {"nonsense": 1},
)  # fmt: skip


def test_experiment_files(refused, tmp_path, small_store):
    whole = {"title": "t", "store": str(small_store), "methods": [{"name": "a", "method": "clip"}], "common": {"epochs": 0}}
    for number, change in enumerate(EXPERIMENTS):
        (tmp_path / f"e{number}.yaml").write_text(json.dumps({**whole, **change}))
        refused(["experiment", f"e{number}.yaml", "--runs", "out", "--dry-run"])
    assert not (tmp_path / "out").exists()
    assert refused.count >= 33


def test_questions_to_a_run_and_an_index(refused, trained, tmp_path):
    run, index = shutil.copytree(trained.path, tmp_path / "run"), tmp_path / "index"
    from calmrl_lab.evaluation.evaluate import evaluate
    from calmrl_lab.search.index_folder import build_gallery

    build_gallery(trained, index, split="test")
    evaluate(run)
    queries = {
        "object": saved(np.array([{}], dtype=object), allow_pickle=True), "narrow": saved(np.ones((2, 3))), "words": saved(np.array(["a"])), "empty": b"",
        "nan": saved(np.full((1, 384), np.nan)), "more": npy(shape=(10**12, 384)), "none": saved(np.zeros((0, 384))), "cube": saved(np.ones((2, 2, 384))),
        "complex": saved(np.ones((1, 384), dtype=complex)), "large": saved(np.full((1, 384), 1e300)),
    }  # fmt: skip
    for name, data in queries.items():
        (tmp_path / f"{name}.npy").write_bytes(data)
        refused(["search", "--index", index, "--features", f"{name}.npy", "--modality", "caption"])
    for words in (
        "--item nowhere", "--item nowhere -k 0", "--text x --item y", "--features nowhere.npy", "--item a --modality smell", "--item a --store nowhere",
        f"--item a -k {10**30}",
    ):  # fmt: skip
        refused(["search", "--index", index, *words.split()])
    for words in (
        "--split x", "--direction caption", "--direction caption:smell", "--direction caption:caption", "--similarity x", "--store nowhere", "--device x",
        "--direction :", "--rerank x", "--direction caption:vision:audio",
    ):  # fmt: skip
        refused(["evaluate", "--run", run, *words.split()])
    for words in (
        "--split x",
        "--kind x",
        "--scorer x",
        "--modalities x",
        "--set lists=0",
        "--set lists=x",
        "--set nonsense=1",
        "--modalities ,",
        "--store nowhere",
    ):
        refused(["index", "--run", run, "--out", tmp_path / "other", *words.split()])
    for words in ("--split x", "--slice x", "--device x"):
        refused(["diagnose", "--run", run, *words.split()])
    for words in ("--scorer x", "--scenario x", "--scenario random:2", "--query x", "--impute x", "--split x"):
        refused(["curves", "--run", run, *words.split()])
    for words in ("--label x", "--kind x", "--text x", "--split x"):
        refused(["classify", "--run", run, *words.split()])
    assert refused.count >= 48


def test_options_of_imputers(refused, small_store, tmp_path):
    for words in (
        "--impute x", "--set latent_dim=0", "--set latent_dim=-3", "--set latent_dim=1e99", "--set nonsense=1", "--impute knn --set neighbours=0",
        "--impute ridge --set ridge=-1", "--impute ridge --set ridge=.nan", "--impute ppca --set latent_dim=.inf", "--impute ppca --set latent_dim=two",
        "--fit-on x", "--modalities x", "--modalities vision,vision", "--impute none", "--impute random --set seed=-1", f"--impute random --set seed={HUGE}",
        "--impute ppca-mixture --set components=0", "--impute attention --set epochs=-1", "--impute mvae --set epochs=.inf", "--impute soft-impute --set rank=-1",
    ):  # fmt: skip
        refused(["impute", "--store", small_store, "--out", "out.zarr", *words.split()])
    assert os.listdir(tmp_path) == []
