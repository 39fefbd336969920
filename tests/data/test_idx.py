"""IDX files: what is written comes back, and what is damaged is found."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fusedmlp.data import read_table
from fusedmlp.data.idx import DTYPES, find_labels, read_idx


def idx_bytes(array):
    """An IDX file, by the description of the format."""
    code = next(code for code, dtype in DTYPES.items() if np.dtype(dtype) == array.dtype.newbyteorder(">"))
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_pair(folder, images, labels, compress=False):
    """An images file and its labels file, by their usual names."""
    suffix = ".gz" if compress else ""
    paths = folder / f"train-images-idx3-ubyte{suffix}", folder / f"train-labels-idx1-ubyte{suffix}"
    for path, array in zip(paths, (images, labels), strict=True):
        data = idx_bytes(array)
        path.write_bytes(gzip.compress(data, mtime=0) if compress else data)
    return paths


@given(
    hnp.arrays(
        st.sampled_from(sorted(DTYPES.values())).map(np.dtype),
        hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5),
    ),
    st.booleans(),
)
def test_round_trip(tmp_path_factory, array, compress):
    path = tmp_path_factory.mktemp("idx") / "array-idx"
    data = idx_bytes(array)
    path.write_bytes(gzip.compress(data, mtime=0) if compress else data)
    back = read_idx(path)
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()
    assert isinstance(back, np.memmap) == (not compress and array.size > 0)


@pytest.mark.parametrize("compress", [False, True])
def test_images_and_labels_make_a_table(tmp_path, compress):
    images = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    path, _ = write_pair(tmp_path, images, np.array([7, 3], dtype=np.uint8), compress)
    table = read_table(path)
    assert np.array_equal(table.numeric, images.reshape(2, 12))
    assert table.require_target().tolist() == [7, 3]
    assert not table.schema.named


def test_labels_are_found_by_name_compressed_or_not(tmp_path):
    images, labels = write_pair(tmp_path, np.zeros((1, 2, 2), np.uint8), np.zeros(1, np.uint8))
    assert find_labels(images) == labels
    labels.rename(labels.with_name(labels.name + ".gz"))
    assert find_labels(images) == labels.with_name(labels.name + ".gz")
    assert find_labels(tmp_path / "other-idx3") is None


def test_labels_may_be_elsewhere(tmp_path):
    images, labels = write_pair(tmp_path, np.zeros((2, 2, 2), np.uint8), np.array([1, 0], np.uint8))
    elsewhere = labels.rename(tmp_path / "truth")
    with pytest.raises(ValueError, match="target: no labels found beside"):
        read_table(images)
    assert read_table(images, str(elsewhere)).require_target().tolist() == [1, 0]
    assert read_table(images, target_required=False).target is None


GOOD = idx_bytes(np.arange(6, dtype=np.uint8).reshape(2, 3))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an IDX file: its first 4 bytes are missing"),
        (b"hello", "not an IDX file: its first 4 bytes are 68 65 6c 6c"),
        (b"\0\0\x07\x02" + GOOD[4:], "not an IDX file: its first 4 bytes are 00 00 07 02"),
        (b"\0\0\x08\0", "not an IDX file"),
        (GOOD[:10], "header is truncated: expected the lengths of 2 axes"),
        (GOOD[:-1], "promises 6 bytes of data.*the file has 5"),
        (GOOD + b"x", "promises 6 bytes of data.*the file has 7"),
        (b"\0\0\x08\x04" + b"\xff" * 16, "promises .* bytes of data.*the file has 0"),
        (gzip.compress(GOOD, mtime=0)[:-9], "damaged or truncated"),
        (gzip.compress(GOOD[:-1], mtime=0), "promises 6 bytes of data.*the file has 5"),
        (gzip.compress(GOOD + b"xyz", mtime=0), "promises 6 bytes of data.*the file has more than that"),
        (gzip.compress(b"\0\0\x08\x04" + b"\xff" * 16, mtime=0), "promises .* bytes of data.*the file has 0"),
    ],
)
def test_damage_is_named(tmp_path, data, message):
    path = tmp_path / "x-idx"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_idx(path)


def test_as_many_labels_as_images(tmp_path):
    images, _ = write_pair(tmp_path, np.zeros((3, 2, 2), np.uint8), np.zeros(2, np.uint8))
    with pytest.raises(ValueError, match="3 rows of data, but 2 of the target"):
        read_table(images)
