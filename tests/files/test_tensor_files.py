"""Files of tensors: what is written comes back, every changed bit is found, and lies in a header do no harm."""

from __future__ import annotations

import json
import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fusedmlp import ModelFileError
from fusedmlp.files import tensor_files
from fusedmlp.files.tensor_files import MOST_BRACKETS, read_tensors, write_tensors

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
ARRAYS = hnp.arrays(
    st.sampled_from(["<f8", "<f4", "<f2", "<i8", "<i4", "<i1", "<u8", "<u1", ">f8", ">i2"]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


@given(
    st.dictionaries(st.text(max_size=5), st.tuples(ARRAYS, st.booleans()), max_size=4),
    st.dictionaries(st.text(max_size=5).filter(lambda key: key not in ("format", "sha256")), JSON, max_size=3),
)
def test_round_trip(tmp_path_factory, arrays, metadata):
    tensors = {name: array.T if transposed else array for name, (array, transposed) in arrays.items()}
    path = tmp_path_factory.mktemp("round") / "file"
    write_tensors(path, "state-1", tensors, metadata)
    file = read_tensors(path, "state-1")
    assert file.format == "state-1"
    assert file.metadata == metadata
    assert file.tensors.keys() == tensors.keys()
    for name, array in tensors.items():
        back = file.tensors[name]
        assert (back.shape, back.dtype) == (array.shape, array.dtype.newbyteorder("<"))
        assert back.tobytes() == array.astype(back.dtype).tobytes()
        assert back.flags.aligned
    first = path.read_bytes()
    write_tensors(path, "state-1", dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert path.read_bytes() == first


def test_they_are_safetensors_files(tmp_path):
    tensors = {"a": np.arange(6.0).reshape(2, 3), "b": np.arange(3, dtype=np.int8), "none": np.empty((0, 2), "f4")}
    write_tensors(tmp_path / "file", "state-1", tensors, {"x": [1, None]})
    back = safetensors.numpy.load_file(tmp_path / "file")
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)
    with safetensors.safe_open(tmp_path / "file", framework="numpy") as file:
        assert {"format": "state-1", "x": "[1, null]"}.items() <= file.metadata().items()


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"t": np.zeros(1, complex)}, {}, "tensors: 't' of dtype complex128"),
        ({"t": np.array(["a"])}, {}, "tensors: 't' of dtype <U1"),
        ({"t": np.array([None])}, {}, "tensors: 't' of dtype object"),
        ({"__metadata__": np.zeros(1)}, {}, "tensors: '__metadata__'"),
        ({}, {"x": float("nan")}, "not JSON compliant"),
        ({}, {"sha256": "0"}, "metadata: 'format' and 'sha256' are taken"),
        ({}, {"x": "y" * tensor_files.LONGEST_HEADER}, "metadata: expected at most 16,777,216 bytes"),
        ({}, {"x": "[" * 10**6}, "metadata: expected at most 524,288 lists and objects; got 1,000,00"),
    ],
)
def test_what_cannot_be_written(tmp_path, tensors, metadata, message):
    with pytest.raises(ValueError, match=message):
        write_tensors(tmp_path / "file", "state-1", tensors, metadata)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small(tmp_path):
    """A small file."""
    path = tmp_path / "small"
    write_tensors(path, "state-1", {"W": np.arange(3.0), "n": np.ones(3, "i1")}, {"names": ["a", "b"], "x": 1.5})
    return path


def test_every_changed_bit_is_found(small):
    whole = small.read_bytes()
    read_tensors(small, "state-1", without_checksum=["state-0"])
    for i in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[i // 8] ^= 1 << i % 8
        small.write_bytes(changed)
        with pytest.raises(ModelFileError, match="small: "):
            read_tensors(small, "state-1", without_checksum=["state-0"])


def test_every_truncation_and_every_addition_is_found(small):
    whole = small.read_bytes()
    for changed in (*(whole[:length] for length in range(len(whole))), whole + b"\0", whole + b" ", b"\0" + whole):
        small.write_bytes(changed)
        with pytest.raises(ModelFileError, match="not a model file, or a truncated one|damaged or truncated"):
            read_tensors(small, "state-1")


def test_formats(small, tmp_path):
    with pytest.raises(ModelFileError, match="expected a file of format 'other'; got .* of format 'state-1'"):
        read_tensors(small, "other")
    safetensors.numpy.save_file({"a": np.ones(2)}, tmp_path / "old", metadata={"format": "old", "x": "1"})
    assert read_tensors(tmp_path / "old", "state-1", without_checksum=["old"]).metadata == {"x": 1}
    with pytest.raises(ModelFileError, match="expected a file of format 'state-1'"):
        read_tensors(tmp_path / "old", "state-1")
    with pytest.raises(ModelFileError, match="its checksum is missing"):
        read_tensors(tmp_path / "old", "old")
    safetensors.numpy.save_file({}, tmp_path / "old", metadata={"format": "old", "sha256": "0" * 64})
    with pytest.raises(ModelFileError, match="its checksum is"):
        read_tensors(tmp_path / "old", "state-1", without_checksum=["old"])


class Canary:
    """Fails the test if it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


@pytest.mark.parametrize(
    "data",
    [b"", b"not a model", pickle.dumps(Canary()), b"PK\x03\x04" + bytes(100), os.urandom(1000), bytes(8), bytes(1000)],
)
def test_other_files(tmp_path, data):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ModelFileError, match="file: not a model file, or a truncated one"):
        read_tensors(tmp_path / "file", "state-1")


def test_missing_files_and_folders(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name, message in (("no", "no such file"), (".", "expected a file; got a folder"), ("fifo", "a regular file")):
        with pytest.raises(ModelFileError, match=message):
            read_tensors(tmp_path / name, "state-1")


def entry(dtype="U8", shape=(4,), offsets=(0, 4), **more):
    """The entry of a tensor in a header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)} | more


TENSOR = f'"t": {json.dumps(entry())}'
HEADERS = [
    "[]",
    "{",
    "1",
    '{"a": 1}',
    "[" * 10**6,
    '{"a":[' + '"ab",' * (3 * 2**20) + "1]}",
    '{"a":[' + "[]," * (MOST_BRACKETS - 2) + "[]]}",
    '{"a":' * 10**6,
    '{"a":[' + "[]," * (10 * 2**20) + "[]]}",
    '{"__metadata__": {"format": ' + "9" * 10**6 + "}}",
    '{"__metadata__": []}',
    '{"__metadata__": {"format": 1}}',
    *(f'{{"__metadata__": {{"format": "old", "x": "[{x}]"}}, {TENSOR}}}' for x in ("NaN", "-Infinity", "1e999")),
    f'{{"__metadata__": {{"format": "old", "x": "{"[" * 10**6}"}}, {TENSOR}}}',
    f'{{"__metadata__": {{"format": "old", "format": "old"}}, {TENSOR}}}',
    f"{{{TENSOR}, {TENSOR}}}",
    '{"t": {"dtype": "U8", "dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}',
    json.dumps({}),
    json.dumps({"t": entry("U7")}),
    json.dumps({"t": entry("O")}),
    json.dumps({"t": entry(["U8"])}),
    json.dumps({"t": entry("F64")}),
    json.dumps({"t": entry("BF16", [2])}),
    json.dumps({"t": entry(shape=[2**62, 2**62, 0, 1], offsets=[0, 0])}),
    json.dumps({"t": entry(shape=[2**62, 4])}),
    json.dumps({"t": entry(shape=[2**63, 2], offsets=[0, 2**64])}),
    json.dumps({"t": entry(shape=[-4], offsets=[4, 0])}),
    json.dumps({"t": entry(shape=[-2, -2])}),
    json.dumps({"t": entry(shape=[4.0])}),
    json.dumps({"t": entry(shape=[True, 4])}),
    json.dumps({"t": entry(shape=[4, *[1] * 10**5])}),
    json.dumps({"t": entry(offsets=[0, 4, 4])}),
    json.dumps({"t": entry(offsets=[0])}),
    json.dumps({"t": entry(offsets=[1, 5])}),
    json.dumps({"t": entry(offsets=[2**62, 2**62 + 4])}),
    json.dumps({"t": entry(shape=[3], offsets=[0, 3])}),
    json.dumps({"t": entry(shape=[3], offsets=[1, 4])}),
    json.dumps({"t": entry(), "u": entry()}),
    json.dumps({"t": entry(shape=[3], offsets=[0, 3]), "u": entry(shape=[3], offsets=[1, 4])}),
    json.dumps({"t": entry(), "u": entry(shape=[0], offsets=[2, 2])}),
]


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: header[:40])
def test_headers_that_lie(tmp_path, header):
    if "__metadata__" not in header and header[0] == "{":
        header = header.replace("{", '{"__metadata__": {"format": "old"}, ', 1)
    path = tmp_path / "file"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + b"1234")
    with pytest.raises(ModelFileError, match="file: "):
        read_tensors(path, "state-1", without_checksum=["old"])


@pytest.mark.parametrize("n", [2**62, 2**63, 2**64 - 1, 10**9, 101, tensor_files.LONGEST_HEADER])
def test_headers_that_are_too_long(tmp_path, n):
    path = tmp_path / "file"
    path.write_bytes(struct.pack("<Q", n) + bytes(100))
    tracemalloc.start()
    with pytest.raises(ModelFileError, match="not a model file, or a truncated one"):
        read_tensors(path, "state-1")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
