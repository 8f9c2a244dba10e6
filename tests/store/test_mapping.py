"""Arrays inside of files are mapped where they lie in one piece, and read where they do not; they are the same either way."""

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.convert.feature_files import read_source

ROWS = np.random.default_rng(0).standard_normal((40, 6))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["<f4", ">f4", "<f8", "<f2", "<i4", "|u1"]), st.integers(0, 5), st.integers(1, 4), st.booleans())
def test_an_npz_is_mapped_and_equal(tmp_path_factory, dtype, rows, columns, fortran):
    path = tmp_path_factory.mktemp("npz") / "v.npz"
    values = (100 * ROWS[:rows, :columns]).astype(dtype)
    np.savez(path, ids=np.array([str(i) for i in range(rows)]), features=np.asfortranarray(values) if fortran else values)
    found = read_source(path, "v")
    assert isinstance(found.rows, np.memmap) == (rows > 0)
    assert found.rows.dtype == values.dtype
    assert_array_equal(found.rows, values)


def test_a_compressed_npz_is_read(tmp_path):
    np.savez_compressed(tmp_path / "v.npz", features=ROWS)
    assert_array_equal(read_source(tmp_path / "v.npz", "v").rows, ROWS)


def test_a_flipped_byte_in_a_mapped_npz_is_found(tmp_path):
    np.savez(tmp_path / "v.npz", features=ROWS)
    content = bytearray((tmp_path / "v.npz").read_bytes())
    place = content.index(ROWS[20].tobytes())
    content[place] ^= 1
    (tmp_path / "v.npz").write_bytes(content)
    with pytest.raises(CalmrlError, match="cannot be read as npz: Bad CRC-32"):
        read_source(tmp_path / "v.npz", "v")


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2", "<i8", "|u1"])
@pytest.mark.parametrize("userblock", [0, 512])
def test_an_hdf5_dataset_in_one_piece_is_mapped(tmp_path, dtype, userblock):
    # Small arrays are read: one may be an item of many thousand.
    values = np.tile(100 * ROWS, (300, 1)).astype(dtype)
    if values.dtype.kind == "f":
        values[0, 0] = np.nan
    with h5py.File(tmp_path / "v.h5", "w", userblock_size=userblock) as file:
        file["other"] = ROWS
        file["features"] = values
    found = read_source(tmp_path / "v.h5", "v")
    assert isinstance(found.rows, np.memmap)
    assert found.rows.dtype == values.dtype
    assert_array_equal(found.rows, values)


def test_other_hdf5_datasets_are_read(tmp_path):
    short = h5py.h5t.STD_I32LE.copy()
    short.set_precision(24)
    short.set_offset(8)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_dataset("chunked", data=ROWS, chunks=(7, 3))
        file.create_dataset("compressed", data=ROWS, compression="gzip")
        file.create_dataset("unwritten", shape=ROWS.shape, dtype="f4")
        file.create_dataset("compact", data=ROWS[:2])
        # Whole numbers in the upper 24 of 32 bits.
        space = h5py.h5s.create_simple(ROWS.shape)
        numbers = (100 * ROWS).astype("i4")
        h5py.h5d.create(file.id, b"odd", short, space).write(h5py.h5s.ALL, h5py.h5s.ALL, numbers)
        kept = {name: file[name][()] for name in file}
    for name, values in kept.items():
        assert_array_equal(read_source(tmp_path / "v.h5", "v", name).rows, values)
    assert_array_equal(kept["odd"], numbers)
