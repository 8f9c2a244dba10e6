"""The restricted reader of pickles: plain data comes back, and everything else is refused without being run or allocated."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import pathlib
import pickle
import struct
import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.convert.import_arrays import import_features
from calmrl_lab.store.convert.reading.plain_pickle import load_plain

PATH = pathlib.Path("x.pkl")


def same(one, two) -> bool:
    if isinstance(two, np.ndarray):
        return (
            isinstance(one, np.ndarray) and one.dtype == two.dtype and np.array_equal(one, two, equal_nan=one.dtype.kind == "f")
        )
    if isinstance(two, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in two)
    if isinstance(two, (list, tuple)):
        return type(one) is type(two) and len(one) == len(two) and all(map(same, one, two))
    return type(one) is type(two) and (one == two or one != one)


ARRAYS = hnp.arrays(
    st.sampled_from(["f2", "<f4", ">f4", "f8", "i1", "i8", "u2", "?", "U5", "S3"]), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
)  # fmt: skip
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5) | ARRAYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(PLAIN, st.integers(0, 5))
def test_plain_data_comes_back_in_every_protocol(value, protocol):
    assert same(load_plain(PATH, pickle.dumps(value, protocol)), value)


@settings(max_examples=150, deadline=None)
@given(PLAIN, st.data())
def test_damaged_bytes_are_refused_or_plain(value, data):
    """Whatever a flipped, cut or foreign byte makes of it: a value or one sentence, never another error."""
    content = bytearray(pickle.dumps(value, data.draw(st.integers(2, 5))))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(CalmrlError):
        load_plain(PATH, bytes(content[: data.draw(st.integers(1, len(content)))]))


def test_scalars_shared_parts_and_fortran_order():
    row = np.arange(3.0)
    value = {"a": row, "b": row, "c": np.float32(0.5), np.str_("d"): np.int64(3), "e": np.asfortranarray(np.eye(3)[:, :2])}
    loaded = load_plain(PATH, pickle.dumps(value))
    assert loaded["a"] is loaded["b"]
    assert (loaded["c"], loaded["d"]) == (0.5, 3)
    np.testing.assert_array_equal(loaded["e"], value["e"])
    texts = np.array(["x", "yy", None], dtype=object)
    assert load_plain(PATH, pickle.dumps(texts)).tolist() == ["x", "yy", None]


class Call:
    def __init__(self, function, *arguments):
        self.parts = (function, arguments)

    def __reduce__(self):
        return self.parts

    def __repr__(self):
        # Names of tests must not depend on the process: several collect them.
        return f"{self.parts[0].__qualname__}{self.parts[1]}"


class State:
    def __repr__(self):
        return "State()"

    def __setstate__(self, state):
        raise AssertionError("executed")

    def __getstate__(self):
        return {"x": 1}


def forms(thing):
    """An object that is no plain data, alone and inside of what is."""
    inside = np.empty(2, dtype=object)
    inside[:] = [thing, 1]
    return [thing, {"features": np.ones(2), "x": thing}, [thing], inside, {"a": {"b": (thing,)}}]


@pytest.mark.parametrize(
    "thing",
    [
        Call(os.system, "touch executed"),
        Call(subprocess.run, ["touch", "executed"]),
        Call(open, "executed", "w"),
        Call(eval, "open('executed', 'w')"),
        Call(exec, "open('executed', 'w')"),
        Call(getattr, "", "format"),
        Call(np.fromfile, "/etc/hostname"),
        Call(np.load, "/etc/hostname"),
        Call(np.zeros, 10**10),
        Call(np.ndarray, (10**10,)),
        Call(bytearray, 10**10),
        Call(bytes, 10**10),
        Call(list, range(3)),
        Call(int, "9" * 4000),
        Call(str, 5),
        State(),
        pathlib.Path("x"),
        np.array([("a", 1)], dtype=[("x", "U1"), ("y", "i4")]),
        np.array(["2020-01-01"], dtype="M8[D]"),
        np.array([1j]),
        torch.ones(2),
        slice(1),
        print,
        dict,
        collections.Counter("aab"),
        ValueError("x"),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_anything_else_is_refused_and_not_run(tmp_path, monkeypatch, thing, protocol):
    monkeypatch.chdir(tmp_path)
    for value in forms(thing):
        with pytest.raises(CalmrlError) as caught:
            load_plain(PATH, pickle.dumps(value, protocol))
        assert caught.value.hint
        assert "\n" not in caught.value.message
    assert os.listdir(tmp_path) == []


def claim(opcodes: bytes) -> bytes:
    return b"\x80\x05" + opcodes + b"."


@pytest.mark.parametrize(
    "program",
    [
        claim(b"N" + b"r" + struct.pack("<I", 2**32 - 1)),  # a place in the memo
        claim(b"Np4000000000\n"),
        claim(b"\x96" + struct.pack("<Q", 2**40)),  # a bytearray
        claim(b"\x8e" + struct.pack("<Q", 2**40)),  # bytes
        claim(b"\x8d" + struct.pack("<Q", 2**40)),  # a text
        claim(b"\x95" + struct.pack("<Q", 2**40) + b"N"),  # a frame
        claim(b"\x8b" + struct.pack("<i", 2**31 - 1)),  # a number
        claim(b"\x97"),  # a buffer from outside
        claim(b"\x82\x01"),  # an extension
        claim(b"Px\n"),  # a persistent id
        claim(b"N" * 3 + b"\x81"),
        b"",
        b"\x80\x05",
        b"\x80\x05N",
        b"hello",
        b"\x80\x05(((((.",
        b"\x80\x05h\x07.",
    ],
)
def test_what_a_program_claims_is_looked_at_before_it_runs(program):
    with pytest.raises(CalmrlError):
        load_plain(PATH, program)


def array_program(shape: bytes, dtype: bytes, values: bytes) -> bytes:
    """A pickle of one array by hand, with whatever shape, type and bytes."""
    begin = b"\x80\x03cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR(K\x01"
    kind = (
        b"cnumpy\ndtype\nX"
        + struct.pack("<I", len(dtype))
        + dtype
        + b"\x89\x88\x87R(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    return begin + shape + kind + b"\x89B" + struct.pack("<I", len(values)) + values + b"tb."


def test_an_array_is_as_large_as_its_bytes():
    good = array_program(b"K\x02\x85", b"f4", np.float32([1, 2]).tobytes())
    assert load_plain(PATH, good).tolist() == [1, 2]
    for shape, dtype, values in (
        (b"J\xff\xff\xff\x7f\x85", b"f4", b"1234"),
        (b"K\x02\x85", b"f4", b"1234"),
        (b"J\xff\xff\xff\xff\x85", b"f4", b""),
        (b"K\x01\x85", b"U999999999", b""),
        (b"K\x00\x85", b"f4,(1000000)f4", b""),
        (b"K\x01\x85", b"O8", b"12345678"),
        (b"K\x01\x85", b"V8", b"12345678"),
        (b"N", b"f4", b"1234"),
    ):
        with pytest.raises(CalmrlError):
            load_plain(PATH, array_program(shape, dtype, values))


def test_parts_that_hold_themselves_or_each_other():
    loop: list = []
    loop.append(loop)
    with pytest.raises(CalmrlError, match="nests"):
        load_plain(PATH, pickle.dumps(loop))
    program = b"\x80\x04" + b"]" * 5000 + b"a" * 4999 + b"."
    with pytest.raises(CalmrlError, match="nest"):
        load_plain(PATH, program)
    # Ten lists of ten times the list before: 10^8 entries if each were copied.
    many: list = [0.5]
    for _ in range(8):
        many = [many] * 10
    with pytest.raises(CalmrlError, match="more numbers than it has bytes"):
        load_plain(PATH, pickle.dumps(many))


def test_files_of_each_kind_are_refused_in_one_sentence(tmp_path):
    bomb = {"features": np.ones((2, 2)), "ids": Call(open, str(tmp_path / "executed"), "w")}
    buffer = io.BytesIO()
    np.save(buffer, np.array(bomb, dtype=object), allow_pickle=True)
    (tmp_path / "a.npy").write_bytes(buffer.getvalue())
    (tmp_path / "b.pkl").write_bytes(pickle.dumps(bomb))
    np.savez(tmp_path / "c.npz", features=np.ones((2, 2)), ids=np.array([bomb["ids"], "x"], dtype=object))
    torch.save(bomb, tmp_path / "d.pt")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(CalmrlError, match="holds Python objects"):
            import_features(tmp_path / "s.zarr", {"v": path})
    assert not (tmp_path / "executed").exists()
    (tmp_path / "e.pkl").write_bytes(pickle.dumps({"a": torch.ones(2)}))
    with pytest.raises(CalmrlError) as caught:
        import_features(tmp_path / "s.zarr", {"v": tmp_path / "e.pkl"})
    assert "torch.save" in caught.value.hint


def test_headers_that_claim_more_than_there_is(tmp_path):
    """Damaged or hostile sizes in .npy, .npz and HDF5 are found before memory is asked for."""
    import zipfile

    import h5py

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"shape": (2**40, 8), "fortran_order": False, "descr": "<f4"})
    (tmp_path / "a.npy").write_bytes(header.getvalue() + b"x" * 64)
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("features.npy", header.getvalue() + b"x" * 64)
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file.create_dataset("features", shape=(2**40, 8), dtype="f4", chunks=(16, 8), compression="gzip")
    torch.save({"features": torch.ones(1, 8).expand(2**30, 8)}, tmp_path / "d.pt")
    for path in sorted(tmp_path.iterdir())[:3]:
        with pytest.raises(CalmrlError):
            import_features(tmp_path / "s.zarr", {"v": path})


def test_a_pickled_data_frame_is_named_as_what_it_is():
    pd = pytest.importorskip("pandas")
    with pytest.raises(CalmrlError, match="pandas") as caught:
        load_plain(PATH, pickle.dumps(pd.DataFrame({"x": [1.0]})))
    assert "to_parquet" in caught.value.hint
