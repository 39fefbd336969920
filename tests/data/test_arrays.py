"""NumPy's files and the bundled data sets."""

from __future__ import annotations

import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fusedmlp.data import BUNDLED, read_table

X = np.arange(12, dtype=np.float32).reshape(4, 3)
Y = np.array([0, 1, 0, 1])


def is_mapped(array):
    """Whether the numbers lie in a file."""
    while array is not None and not isinstance(array, np.memmap):
        array = array.base
    return array is not None


@pytest.mark.parametrize("column", [-1, 0, 1, 3, -4])
def test_npy_with_the_target_in_a_column(tmp_path, column):
    array = np.arange(12.0).reshape(3, 4)
    np.save(tmp_path / "a.npy", array)
    table = read_table(tmp_path / "a.npy", str(column))
    assert np.array_equal(table.numeric, np.delete(array, column, axis=1))
    assert np.array_equal(table.target, array[:, column])
    assert is_mapped(table.numeric) == (column in (-1, 0, 3, -4))


def test_npy_with_the_target_in_a_file(tmp_path):
    np.save(tmp_path / "X.npy", np.asfortranarray(X))
    np.save(tmp_path / "y.npy", np.array(["a", "b", "a", "b"]))
    table = read_table(tmp_path / "X.npy", str(tmp_path / "y.npy"))
    assert is_mapped(table.numeric)
    assert table.target.tolist() == ["a", "b", "a", "b"]


def test_a_model_of_an_array_with_its_target_reads_it_without(tmp_path):
    np.save(tmp_path / "Xy.npy", np.column_stack([X, Y]))
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "wide.npy", np.column_stack([X, X]))
    schema = read_table(tmp_path / "Xy.npy", "-1").schema
    assert read_table(tmp_path / "X.npy", schema=schema, target_required=False).target is None
    assert read_table(tmp_path / "Xy.npy", schema=schema).target.tolist() == Y.tolist()
    with pytest.raises(ValueError, match="expected the target in column -1, as in training"):
        read_table(tmp_path / "X.npy", schema=schema)
    with pytest.raises(ValueError, match="the model was trained on 3 columns; got 5"):
        read_table(tmp_path / "wide.npy", schema=schema)


@given(
    hnp.arrays(
        st.sampled_from(["f4", "f8", "i2", "u1", "?", ">f4"]).map(np.dtype),
        hnp.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=4),
    ),
    st.sampled_from([np.savez, np.savez_compressed]),
    st.booleans(),
)
def test_npz_round_trip(tmp_path_factory, array, save, fortran):
    path = tmp_path_factory.mktemp("npz") / "d.npz"
    save(path, y=np.arange(len(array)), X=np.asfortranarray(array) if fortran else array, other=np.zeros(3))
    table = read_table(path)
    assert table.numeric.tobytes() == array.reshape(len(array), -1).tobytes()
    assert table.target.tolist() == list(range(len(array)))
    if array.ndim == 2:
        assert is_mapped(table.numeric) == (save is np.savez)


def test_npz_names(tmp_path):
    np.savez(tmp_path / "d.npz", X=X, y=Y, z=X[:, :2])
    assert read_table(tmp_path / "d.npz", "z").target.shape == (4, 2)
    schema = read_table(tmp_path / "d.npz", "z").schema
    assert read_table(tmp_path / "d.npz", schema=schema).target.shape == (4, 2)
    np.savez(tmp_path / "x.npz", X=X)
    assert read_table(tmp_path / "x.npz", schema=schema, target_required=False).target is None
    with pytest.raises(ValueError, match="expected an array named 'y'; the file has X"):
        read_table(tmp_path / "x.npz")


class Bomb:
    """What runs when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_objects_are_never_loaded(tmp_path):
    bombs = np.array([[Bomb()]], dtype=object)
    np.save(tmp_path / "o.npy", bombs, allow_pickle=True)
    np.savez(tmp_path / "o.npz", X=bombs)
    np.savez_compressed(tmp_path / "oc.npz", X=bombs)
    (tmp_path / "p.npy").write_bytes(pickle.dumps(Bomb()))
    for name in ("o.npy", "o.npz", "oc.npz", "p.npy"):
        with pytest.raises(ValueError, match=name):
            read_table(tmp_path / name, target_required=False)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.npy", b"", "not a .npy file: it begins with b''"),
        ("a.npy", b"hello", "not a .npy file: it begins with b'hello'"),
        ("a.npy", b"\x93NUMPY\x01\x00", "not an array of numbers or text, or a truncated one"),
        ("a.npz", b"hello", "not a .npz archive, or a truncated one"),
        ("a.dat", b"hello", "unknown format; expected a bundled name"),
    ],
)
def test_files_that_are_something_else(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / name, target_required=False)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_archives(tmp_path, save):
    path = tmp_path / "d.npz"
    save(path, X=X, y=Y)
    whole = path.read_bytes()
    for length in (10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"d\.npz"):
            read_table(path)
    directory = whole.index(b"PK\x01\x02")
    path.write_bytes(whole[: directory + 6] + b"\xc4" + whole[directory + 7 :])  # a version that zipfile does not know
    with pytest.raises(ValueError, match=r"d\.npz: .*zip file version"):
        read_table(path)
    path.write_bytes(whole.replace(b"\x93NUMPY", b"\x93BUMPY").replace(b"'<f4'", b"'|O4'"))
    if path.read_bytes() != whole:
        with pytest.raises(ValueError, match=r"d\.npz: X"):
            read_table(path)


def test_a_header_that_is_no_literal(tmp_path):
    np.save(tmp_path / "X.npy", X)
    data = (tmp_path / "X.npy").read_bytes()
    for old, new in ((b"}", b" "), (b"{", b"("), (b"'shape'", b"'shap' "), (b"<f4", b"<f5")):
        (tmp_path / "X.npy").write_bytes(data.replace(old, new))
        with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
            archive.write(tmp_path / "X.npy", "X.npy")
        for name in ("X.npy", "d.npz"):
            with pytest.raises(ValueError, match=name):
                read_table(tmp_path / name, target_required=False)


def test_the_archives_of_keras(tmp_path):
    rng = np.random.default_rng(0)
    parts = {"x_train": rng.random((6, 2, 2)), "y_train": [0, 1, 2] * 2, "x_test": rng.random((3, 2, 2))}
    np.savez(tmp_path / "mnist.npz", **parts, y_test=[2, 1, 0])
    table = read_table(tmp_path / "mnist.npz")
    assert (table.numeric.shape, table.target.tolist()) == ((6, 4), [0, 1, 2] * 2)
    assert (table.held_out.numeric.shape, table.held_out.target.tolist()) == ((3, 4), [2, 1, 0])
    again = read_table(tmp_path / "mnist.npz", schema=table.schema)
    assert (again.target.tolist(), again.held_out) == ([2, 1, 0], None)
    np.savez(tmp_path / "half.npz", **parts)
    assert read_table(tmp_path / "half.npz").held_out is None


def test_an_archive_whose_header_promises_too_much(tmp_path):
    np.save(tmp_path / "X.npy", X)
    data = (tmp_path / "X.npy").read_bytes().replace(b"(4, 3)", b"(9, 3)")
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("X.npy", data)
    with pytest.raises(ValueError, match="promises 108 bytes, the archive has 48"):
        read_table(tmp_path / "d.npz", target_required=False)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((0, 3)), "at least one row"),
        (np.zeros((3, 0)), "at least one column"),
        (np.zeros(3), r"two axes or more, \(rows, columns\)"),
        (np.zeros((2, 2), complex), "real numbers; got dtype complex128"),
        (np.array([["a"]]), "real numbers; got dtype <U1"),
        (np.zeros(2, [("a", "f4")]), "real numbers"),
    ],
)
def test_arrays_that_are_no_table(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "a.npy", target_required=False)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (np.array([1.0, np.nan, 2.0, np.nan]), "target: .*2 values are missing, the first in row 1"),
        (np.array([1.0, 2.0, np.inf, 3.0]), "target: .*finite numbers; got inf in row 2"),
        (np.zeros(3), "4 rows of data, but 3 of the target"),
        (np.zeros((4, 2, 2)), r"target: .*a value per row; got shape \(4, 2, 2\)"),
        (np.zeros((4, 0)), "target: .*a value per row"),
        (np.zeros(4, complex), "target: .*numbers, booleans or text; got dtype complex128"),
        (np.zeros(4, "M8[D]"), "target: .*numbers, booleans or text"),
    ],
)
def test_targets_that_are_none(tmp_path, target, message):
    np.savez(tmp_path / "d.npz", X=X, y=target)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "d.npz")


@pytest.mark.parametrize("spec", ["3", "-4"])
def test_a_column_that_is_not_there(tmp_path, spec):
    np.save(tmp_path / "a.npy", X)
    with pytest.raises(ValueError, match="expected a column from -3 to 2"):
        read_table(tmp_path / "a.npy", spec)


@pytest.mark.parametrize("name", list(BUNDLED))
def test_bundled_sets_are_as_described(name):
    table = read_table(name)
    about = BUNDLED[name].about
    assert about.startswith(str(len(table)))
    if table.classification:
        assert f"{len(set(table.target.tolist()))} classes" in about
    assert len(table.schema.numeric) == table.numeric.shape[1]
    assert read_table(name, schema=table.schema).schema == table.schema


def test_bundled_classes_have_their_names():
    assert set(read_table("breast-cancer").target.tolist()) == {"malignant", "benign"}
    assert set(read_table("digits").target.tolist()) == set(range(10))
    with pytest.raises(ValueError, match="target: the bundled data set iris brings its own; got 'y'"):
        read_table("iris", "y")
    with pytest.raises(ValueError, match="drop, numeric, categorical, missing, decimal: these are for columns of CSV"):
        read_table("iris", drop=["a"])


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file, and not one of the bundled data sets: breast-cancer"):
        read_table("brest-cancer")
    with pytest.raises(ValueError, match="expected .csv or .parquet files in this folder; it has none"):
        read_table(tmp_path)
