"""CSV and Parquet: types, missing values, columns that are there or not."""

from __future__ import annotations

import datetime
import decimal
import gzip
import sys

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedmlp.data import read_table
from fusedmlp.data.table import is_number
from fusedmlp.extras import MissingExtraError

CSV = """age, city ,paid,code,empty,target
 31,Bonn,True,01,,yes
,"Köln, am Rhein",FALSE,02,NA,no
4.5,?,true,01,,yes
"""


@pytest.fixture
def write(tmp_path):
    """Write a file and give its path."""

    def write(text, name="d.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_types_and_missing_values(write):
    table = read_table(write(CSV))
    assert table.schema.numeric == ("age", "paid", "empty")
    assert table.schema.text == ("city", "code")
    expected = [[31, 1, np.nan], [np.nan, 0, np.nan], [4.5, 1, np.nan]]
    assert np.array_equal(table.numeric, expected, equal_nan=True)
    assert table.text[:, 0].tolist() == ["Bonn", "Köln, am Rhein", None]
    assert table.text[:, 1].tolist() == ["01", "02", "01"]
    assert table.target.tolist() == ["yes", "no", "yes"]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("bom", [False, True])
def test_separators_and_byte_order_mark(write, separator, bom):
    text = separator.join(["a", "b", "target"]) + "\n" + separator.join(["1", "x", "0"]) + "\n"
    table = read_table(write(text.encode("utf-8-sig" if bom else "utf-8")))
    assert table.schema.numeric == ("a",)
    assert table.schema.text == ("b",)


def test_compressed(write):
    table = read_table(write(gzip.compress(b"a;target\n1;2\n"), "d.csv.gz"))
    assert table.numeric.tolist() == [[1.0]]
    with pytest.raises(ValueError, match="damaged or truncated|cannot be read"):
        read_table(write(gzip.compress(b"a;target\n1;2\n")[:-10], "d.csv.gz"))
    with pytest.raises(ValueError, match="the compressed file is damaged or truncated"):
        read_table(write(gzip.compress(b"a;target\n" + b"1;2\n" * 100)[:-8], "d.csv"))


def test_numbers_that_are_categories(write):
    table = read_table(write(CSV), categorical=["code"])
    assert table.text[:, table.schema.text.index("code")].tolist() == ["01", "02", "01"]


def test_the_types_are_those_of_training(write):
    schema = read_table(write(CSV), categorical=["code"]).schema
    new = read_table(
        write("code,age,paid,extra,city,empty\n7,,,2020-01-01,12,\n", "new.csv"), schema=schema, target_required=False
    )
    assert new.schema.columns == schema.columns
    assert new.text[0, list(new.schema.text).index("code")] == "7"
    assert new.text[0, list(new.schema.text).index("city")] == "12"
    assert np.isnan(new.numeric).all()
    with pytest.raises(ValueError, match="column 'age': expected numbers, as in training; got 'old' in row 1"):
        read_table(
            write("age,city,paid,code,empty\n1,a,true,1,\nold,b,true,1,\n", "bad.csv"),
            schema=schema,
            target_required=False,
        )


@pytest.mark.parametrize(
    ("rows", "value", "row"),
    [(["1", "1_0", "x"], "1_0", 1), (["1", "٣"], "٣", 1), (["true", "x"], "true", 0), (["1", "True"], "True", 1)],
)
def test_the_row_that_is_no_number_is_named(write, rows, value, row):
    schema = read_table(write("a,target\n1,0\n2,1\n")).schema
    with pytest.raises(ValueError, match=f"column 'a': expected numbers, as in training; got '{value}' in row {row} "):
        read_table(
            write("a\n" + "".join(f"{text}\n" for text in rows), "new.csv"), schema=schema, target_required=False
        )


@given(st.text("0123456789+-._eEinfaINFATYty xٱ٣", max_size=9).filter(lambda text: text == text.strip()))
def test_a_number_is_what_polars_takes_for_one(text):
    assert is_number(text) == (pl.Series([text]).cast(pl.Float64, strict=False)[0] is not None)


@pytest.mark.parametrize("text", ["inf", "-Infinity", "NaN", "1.", ".5", "+1e-5", "1_0", "0x1", "1e", "", ".", "1 0"])
def test_numbers_that_are_hard_to_tell(text):
    test_a_number_is_what_polars_takes_for_one.hypothesis.inner_test(text)


def test_missing_columns_are_all_named(write):
    schema = read_table(write(CSV)).schema
    with pytest.raises(ValueError, match="missing columns that the model was trained on: empty, city, code"):
        read_table(write("age,paid\n1,true\n", "new.csv"), schema=schema, target_required=False)


def test_parquet(tmp_path):
    frame = pl.DataFrame(
        {
            "i": pl.Series([1, None, 3], dtype=pl.Int16),
            "f": [0.5, float("nan"), None],
            "b": [True, None, False],
            "d": [decimal.Decimal("1.5"), None, decimal.Decimal("2.5")],
            "n": [None, None, None],
            "s": ["1", None, "x"],
            "c": pl.Series(["u", "v", None], dtype=pl.Categorical),
            "e": pl.Series(["u", "v", None], dtype=pl.Enum(["u", "v"])),
            "target": ["01", "02", "01"],
        }
    )
    frame.write_parquet(tmp_path / "d.parquet")
    table = read_table(tmp_path / "d.parquet")
    nan = np.nan
    assert table.schema.numeric == ("i", "f", "b", "d", "n")
    expected = [[1, 0.5, 1, 1.5, nan], [nan, nan, nan, nan, nan], [3, nan, 0, 2.5, nan]]
    assert np.array_equal(table.numeric, expected, equal_nan=True)
    assert table.text.tolist() == [["1", "u", "u"], [None, "v", "v"], ["x", None, None]]
    assert table.target.tolist() == ["01", "02", "01"]


def test_a_table_is_the_same_in_csv_and_parquet(tmp_path, write):
    path = write(CSV)
    table = read_table(path, categorical=["code"])
    frame = pl.DataFrame(
        {"target": ["yes"], "city": ["Bonn"], "code": ["01"], "paid": [True], "empty": [None], "age": [31]}
    )
    frame.write_parquet(tmp_path / "d.parquet")
    other = read_table(tmp_path / "d.parquet", schema=table.schema)
    assert np.array_equal(other.numeric, table.numeric[:1], equal_nan=True)
    assert other.text.tolist() == table.text[:1].tolist()
    assert other.target.tolist() == ["yes"]


def test_columns_of_other_types_can_be_dropped(tmp_path):
    frame = pl.DataFrame({"day": [[1, 2]] * 2, "a": [1, 2], "target": [0, 1]})
    frame.write_parquet(tmp_path / "d.parquet")
    with pytest.raises(ValueError, match="column 'day' is of type List.*; expected numbers, booleans, text or dates"):
        read_table(tmp_path / "d.parquet")
    table = read_table(tmp_path / "d.parquet", drop=["day"])
    assert table.schema.columns == ("a",)
    assert read_table(tmp_path / "d.parquet", schema=table.schema).schema.columns == ("a",)


@pytest.mark.parametrize("values", ["dates", "times", "zoned"])
def test_dates_of_a_parquet_file(tmp_path, values):
    days = [datetime.datetime(2024, 2, 1, 6 * (values != "dates")), None]
    column = pl.Series(days)
    column = column.cast(pl.Date) if values == "dates" else column
    column = column.dt.replace_time_zone("Europe/Berlin") if values == "zoned" else column
    pl.DataFrame({"d": column, "target": [0, 1]}).write_parquet(tmp_path / "d.parquet")
    table = read_table(tmp_path / "d.parquet")
    assert table.schema.columns == ("d",)
    expected = [2024, 32, 4, 19754] if values == "dates" else [2024, 32, 4, 19754.25, 6]
    assert table.numeric[0].tolist() == expected
    assert np.isnan(table.numeric[1]).all()
    again = read_table(tmp_path / "d.parquet", schema=table.schema)
    assert np.array_equal(again.numeric, table.numeric, equal_nan=True)


def test_midnight_in_a_zone_is_no_time_of_day(tmp_path):
    column = pl.Series([datetime.datetime(2024, 2, 1), None]).dt.replace_time_zone("Europe/Berlin")
    pl.DataFrame({"d": column, "target": [0, 1]}).write_parquet(tmp_path / "d.parquet")
    assert read_table(tmp_path / "d.parquet").numeric[0].tolist() == [2024, 32, 4, 19754]


def test_texts_for_missing_values_are_kept_with_the_schema(write):
    text = "a,b,target\n" + "".join(f"{-1 if i == 3 else i},{'-1' if i % 2 else 'x'},{i % 2}\n" for i in range(9))
    table = read_table(write(text), missing=["-1"])
    again = read_table(write(text), schema=table.schema)
    for read in (table, again):
        assert np.isnan(read.numeric[:, 0]).sum() == 1
        assert read.text[:2, 0].tolist() == ["x", None]


def test_columns_of_names_are_refused(write):
    rows = "".join(f"person {i},note {i},{i % 2}\n" for i in range(30))
    path = write("name,note,target\n" + rows)
    with pytest.raises(ValueError, match="'name' has 30 different values in 30 rows.*'note'.*--drop name --drop note"):
        read_table(path)
    with pytest.raises(ValueError, match="at least one column besides the target"):
        read_table(path, drop=["name", "note"])


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ("1,2", "i", [1, 2]),
        ("1,2.5", "f", [1.0, 2.5]),
        ("true,False", "b", [True, False]),
        ("01,a", "O", ["01", "a"]),
    ],
)
def test_types_of_targets(write, values, kind, expected):
    rows = "".join(f"1,{value}\n" for value in values.split(","))
    target = read_table(write("a,target\n" + rows)).target
    assert target.dtype.kind == kind
    assert target.tolist() == expected


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("", {}, "the file is empty; expected a line of column names"),
        ("a,target\n", {}, "at least one row of data"),
        ("a,b\n1,2\n", {}, "target: .*none was given; the columns are a, b"),
        ("a,b\n1,2\n", {"target": "c"}, "target: .*there is no 'c'; the columns are a, b"),
        ("a,target\n1,2\n", {"drop": ["x"]}, "drop: .* has no column x; the columns are a, target"),
        ("a,target\n1,2\n", {"categorical": ["x"]}, "categorical: .* has no column x"),
        ("target\n1\n", {}, "at least one column besides the target"),
        ("a,a,target\n1,2,3\n", {}, "expected different column names; 'a' comes twice"),
        ("a,a ,target\n1,2,3\n", {}, "expected different column names; 'a' comes twice"),
        ("1,2\n3,4\n", {"target": "2"}, "expected column names in the first line; got numbers"),
        ("a,target\n1,2,3\n", {}, "this CSV cannot be read: line 2 has 3 fields; the first line names 2$"),
        ('a,target\n1,2\n"x\ny",3\n1,2,3,4\n', {}, "cannot be read: line 5 has 4 fields; the first line names 2$"),
        ("a;target\n1;2\n1,0;2;3\n", {}, "cannot be read: line 3 has 3 fields; the first line names 2$"),
        ('a,target\n1,"2\n', {}, "cannot be read: could not parse"),
        ("a\rb,target\n1,2\n", {}, "cannot be read: new-line character seen .*, in line 1$"),
        (
            "a,target\né,2\n".encode("latin-1"),
            {},
            "this CSV cannot be read: expected text in UTF-8; got byte 0xe9 in line 2$",
        ),
        ("a,target\n1,\n2,NA\n", {}, "target: .*column 'target': 2 values are missing, the first in row 0"),
        ("a,target\n1,\n2,x\n", {"require_every_target": True}, "target: .*1 value is missing, the first in row 0"),
        ("a,target\n1,inf\n2,1.5\n", {}, "target: .*finite numbers; got inf in row 0"),
    ],
)
def test_bad_csv(write, text, arguments, message):
    with pytest.raises(ValueError, match=message):
        read_table(write(text), **arguments)


def test_bad_parquet(tmp_path, write):
    pl.DataFrame({"a": [1], "target": [1]}).write_parquet(tmp_path / "d.parquet")
    data = (tmp_path / "d.parquet").read_bytes()
    for damaged in (b"", b"hello", data[:-20], data[20:]):
        with pytest.raises(ValueError, match="not a Parquet file, or a damaged one"):
            read_table(write(damaged, "x.parquet"))


def test_a_flipped_bit_of_a_parquet_file_is_one_line_or_nothing(tmp_path, write, capfd):
    """polars panics at some of them, and says so on standard error."""
    rng = np.random.default_rng(0)
    columns = {"a": np.arange(200), "s": [f"w{i % 7}" for i in range(200)], "target": np.arange(200) % 2}
    pl.DataFrame(columns).write_parquet(tmp_path / "d.parquet")
    data = (tmp_path / "d.parquet").read_bytes()
    messages = []
    for place in rng.integers(len(data), size=60):
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(8))
        try:
            read_table(write(bytes(damaged), "x.parquet"))
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 5
    assert not any("\n" in message for message in messages)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["read_csv", "read_parquet"])
def test_a_panic_of_polars_is_a_damaged_file(write, monkeypatch, name):
    def panic(*args, **kwargs):
        raise pl.exceptions.PanicException("assertion failed")  # a BaseException

    monkeypatch.setattr(pl, name, panic)
    with pytest.raises(ValueError, match="assertion failed"):
        read_table(write(CSV, "d.csv" if name == "read_csv" else "d.parquet"))


def test_without_polars_the_pip_command_is_named(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(
        MissingExtraError, match=r"reading CSV and Parquet needs polars: pip install 'fusedmlp\[data\]'"
    ):
        read_table(write(CSV))
