"""Tables read in pieces: everything is as if they were read whole, and takes little memory."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedmlp.data import predictor
from fusedmlp.data.columns import texts
from fusedmlp.data.columns.finding import Choices
from fusedmlp.data.features import FeatureEncoder
from fusedmlp.data.frame_files import bytes_of
from fusedmlp.data.large import scratch as scratch_files
from fusedmlp.data.large.encoding import class_numbers, encoded_features, encoded_target, row_numbers
from fusedmlp.data.large.reading import is_large, read_large_table, tables_of_model
from fusedmlp.data.large.scratch import scratch_folder
from fusedmlp.data.predictor import Predictor
from fusedmlp.data.reading import read_table
from fusedmlp.data.targets import fit_target
from processes import run_python

FOLDER = Path(__file__).parent / "awkward"
EXPECTED = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture
def scratch(tmp_path):
    with scratch_folder(tmp_path) as scratch:
        yield scratch


def outcome(read):
    """All that is known of a table that is read, or the error."""
    try:
        table = read()
    except ValueError as error:
        return str(error)
    target = None if table.target is None else (table.target.dtype, table.target[:].tolist())
    return table.schema, table.numeric.tobytes(), table.text[:].tolist(), target, table.notes


def in_pieces(path, scratch, piece_bytes, target=None, require_every_target=False, **choices):
    """As `read_table`, by pieces of a few rows."""
    number = len(list(scratch.folder.iterdir()))
    options = {"require_every_target": require_every_target, "choices": Choices(**choices)}
    return read_large_table(path, target, scratch, name=f"t{number}", piece_bytes=piece_bytes, **options)


def assert_same(path, scratch, piece_bytes, **options):
    whole = outcome(lambda: read_table(path, **options))
    assert outcome(lambda: in_pieces(path, scratch, piece_bytes, **options)) == whole
    return whole


@pytest.mark.parametrize("name", EXPECTED)
def test_an_awkward_table_is_the_same_in_pieces(name, scratch):
    assert_same(FOLDER / name, scratch, 40, **EXPECTED[name]["options"])


@pytest.mark.parametrize(
    "options", [{"missing": ["0"]}, {"decimal": ","}, {"require_every_target": True}, {"drop": ["x"]}]
)
@pytest.mark.parametrize("name", ["stray_unknown.csv", "no_target_in_rows.csv", "target_marker.csv", "blank_lines.csv"])
def test_with_other_options(name, options, scratch):
    assert_same(FOLDER / name, scratch, 25, target="y", **options)


WORDS = ("red", "green", "5 %", "n/a", "unknown", "-", "inf", "NAN", "3+", "true", "False", "", "NA", "1e5", ".5")
NUMBERS = ("1", "2", "3.5", "-4", "1,5", "1,234", "12,345", "1,234.5", "1.234.567", "007", "12345678901234567890", "$5")
DATES = ("2024-02-01", "1/2/2024", "13/2/2024", "2/13/2024", "2024-02-01 10:30:00", "01.02.2024")
POOLS = st.one_of(
    *(st.lists(st.sampled_from(pool), min_size=1, max_size=5) for pool in (WORDS, NUMBERS, DATES)),
    st.just([str(n) for n in range(12)]),
    st.just([f"2024-01-{n:02}" for n in range(1, 20)]),
)
TABLES = st.builds(
    lambda pools, rows, seed, name: (pools, rows, seed, name),
    st.lists(POOLS, min_size=2, max_size=4),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["", "id", "x"]),
)


@settings(max_examples=25)
@given(TABLES, st.integers(1, 200), st.sampled_from([1, 3, 10_000]))
def test_any_table_is_the_same_in_pieces(tmp_path_factory, table, piece_bytes, kept):
    """Also where the different texts of a column are too many to be kept, so that the file is read once more."""
    pools, m, seed, first = table
    generator = np.random.default_rng(seed)
    file = io.StringIO()
    writer = csv.writer(file, delimiter=";", lineterminator="\n")
    writer.writerow([first, *(f"c{i}" for i in range(len(pools) - 1)), "y"])
    for row in range(m):
        cells = [pool[generator.integers(len(pool))] for pool in pools]
        writer.writerow([*([row, *cells[1:]] if first else cells), generator.integers(2) if row % 7 else ""])
    folder = tmp_path_factory.mktemp("any")
    path = folder / "any.csv"
    path.write_text(file.getvalue(), encoding="utf-8")
    with scratch_folder(folder) as scratch, pytest.MonkeyPatch.context() as patch:
        whole = outcome(lambda: read_table(path, "y"))
        patch.setattr(texts, "MOST_DIFFERENT", kept)
        pieces = outcome(lambda: in_pieces(path, scratch, piece_bytes, "y"))
    if "has more than" not in pieces:  # a column of a few categories has too many, where few texts are kept
        assert pieces == whole


def numbers_frame(m=300):
    generator = np.random.default_rng(1)
    return pl.DataFrame(
        {
            "a": generator.normal(size=m),
            "n": generator.integers(0, 9, m),
            "word": pl.Series([("ab", "cd", None, "007")[i] for i in generator.integers(0, 4, m)]),
            "kind": pl.Series([("u", "v")[i] for i in generator.integers(0, 2, m)], dtype=pl.Categorical),
            "day": pl.datetime_range(pl.datetime(2024, 1, 1), pl.datetime(2024, 12, 1), "1h", eager=True)[:m],
            "some": pl.Series([None if i % 3 else float(i) for i in range(m)]),
            "y": generator.normal(size=m),
        }
    )


@pytest.mark.parametrize("form", ["csv", "csv.gz", "parquet", "folder of csv", "folder of parquet"])
def test_every_kind_of_file(tmp_path, scratch, form):
    frame = numbers_frame()
    path = tmp_path / form
    parts = [frame]
    if form.startswith("folder"):
        path.mkdir()
        (path / "_SUCCESS").touch()
        parts = [frame[:100], frame[100:110], frame[110:].select(reversed(frame.columns))]
    else:
        path = tmp_path / f"d.{form}"
    for number, part in enumerate(parts):
        place = path / f"{number}.{form.split()[-1]}" if form.startswith("folder") else path
        if form.endswith("parquet"):
            part.write_parquet(place, row_group_size=64)
        else:
            text = part.write_csv().encode()
            place.write_bytes(gzip.compress(text) if form.endswith("gz") else text)
    schema, *_ = assert_same(path, scratch, 500, target="y")
    assert schema.numeric[:2] == ("a", "n")
    assert schema.text[0] == "word"
    assert len(read_table(path, "y")) == 300


def test_the_rows_of_a_model_in_other_order(tmp_path, scratch):
    frame = numbers_frame()
    frame.write_csv(tmp_path / "d.csv")
    schema = read_table(tmp_path / "d.csv", "y").schema
    other = tmp_path / "other.csv"
    frame.select(reversed(frame.columns)).with_columns(extra=pl.lit("z")).write_csv(other)
    whole = read_table(other, schema=schema)
    large = read_large_table(other, None, scratch, schema=schema, piece_bytes=400).aligned(schema)
    assert outcome(lambda: large) == outcome(lambda: whole)
    for with_target in (False, True):
        notes = []
        tables = list(tables_of_model(other, schema, notes, with_target=with_target, piece_bytes=400))
        assert len(tables) > 10
        assert np.array_equal(np.vstack([t.numeric for t in tables]), whole.numeric, equal_nan=True)
        assert np.vstack([t.text for t in tables]).tolist() == whole.text.tolist()
        if with_target:
            assert np.concatenate([t.target for t in tables]).tolist() == whole.target.tolist()


def test_encoded_rows_have_the_same_bits(tmp_path, scratch):
    path = tmp_path / "d.csv"
    frame = numbers_frame().with_columns(y=pl.when(pl.col("a") > 0).then(pl.lit("up")).otherwise(pl.lit("down")))
    frame.write_csv(path)
    whole, large = read_table(path, "y"), in_pieces(path, scratch, 700, "y")
    chosen = np.arange(300) % 3 > 0
    rows = row_numbers(chosen, scratch, "rows")
    assert rows.tolist() == np.flatnonzero(chosen).tolist()
    results = []
    for table, folder in ((whole, None), (large, scratch)):
        encoder, loss = fit_target(table.target)
        features = FeatureEncoder.fit(table, rows)
        X = encoded_features(features, table, rows, "float32", folder, "X")
        Y = encoded_target(encoder, table.target, rows, "float32", folder, "Y")
        classes = class_numbers(encoder, table.target)
        results.append((features.state()[1], features.mean.tolist(), loss, X.tobytes(), Y.tobytes(), classes.tolist()))
        assert isinstance(X, np.memmap) == (folder is not None)
    assert results[0] == results[1]
    scratch.release()
    assert X.tobytes() == results[1][3]


@pytest.mark.parametrize("loss", [None, "poisson", "sum_squared_error", "absolute_error"])
@pytest.mark.parametrize("target", ["classes", "numbers", "constant"])
def test_scores_are_added_up_over_blocks(monkeypatch, target, loss):
    from sklearn.metrics import r2_score, root_mean_squared_error

    generator = np.random.default_rng(2)
    X = generator.normal(size=(200, 3))
    numbers = {"classes": X[:, 0] > 0, "numbers": 1e4 + generator.normal(size=200), "constant": np.full(200, 3.5)}
    if target == "classes" and loss is not None and loss != "sum_squared_error":
        loss = None
    trained = Predictor.train(X, numbers[target], loss=loss, hidden=(4,), epochs=2, backend="numpy")
    whole, predicted = trained.evaluate(X, numbers[target]), trained.predict(X)
    monkeypatch.setattr(predictor, "_BLOCK_BYTES", 12 * 30)
    parts = trained.evaluate(X, numbers[target])
    assert parts == pytest.approx(whole, rel=1e-6)
    if target != "classes" and "rmse" in whole:
        assert whole["rmse"] == pytest.approx(root_mean_squared_error(numbers[target], predicted), rel=1e-12)
        assert whole["r2"] == pytest.approx(r2_score(numbers[target], predicted), rel=1e-6)


# Faults ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (b"a,c,y\n1,2,0\n", "2.csv: expected the columns of .*1.csv; this file lacks b and has c besides"),
        (b"a;b;y\n1;2;0\n", "2.csv: expected fields separated by ',', as in .*1.csv; got ';'"),
        (b"", "2.csv: the file is empty"),
        (b"a,b,y\n", "2.csv: expected at least one row of data; got none"),
        (b"a,b,y\n1,2,0\n1,2\n", "2.csv: this CSV cannot be read: line 3 has 2 fields; the first line names 3"),
        (b"a,b,y\n1,2,0\n\n1,2,0,4\n", "2.csv: this CSV cannot be read: line 4 has 4 fields; the first line names 3"),
        (
            b"a,b,y\n1,2,0\n1,\xff,0\n",
            "2.csv: this CSV cannot be read: expected text in UTF-8; got byte 0xff in line 3",
        ),
        (b"a,b,y\n1,2,0\n,,\n1,oops,1\n", "column 'b': 12 numbers, and 'oops' in row 1 of .*2.csv .counted from 0; 1"),
        (b"a,b,y\n1,2,inf\n1,3,\n1,0,-inf\n", "column 'y': expected finite numbers; got inf in row 0 of .*2.csv"),
        (b'a,b,y\n1,2,0\n1,"2,0\n' + b"1,2,0\n" * 99, "2.csv: .*begins in line 3 is longer: a quote may not be closed"),
    ],
)
@pytest.mark.parametrize("piece_bytes", [None, 8])
def test_a_file_of_a_folder_that_does_not_fit(tmp_path, scratch, monkeypatch, second, message, piece_bytes):
    from fusedmlp.data import csv_records

    if piece_bytes is None and "quote" in message:
        pytest.skip("polars reads such a file whole")
    monkeypatch.setattr(csv_records, "_LONGEST_RECORD", 100)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "1.csv").write_bytes(b"a,b,y\n" + b"".join(b"%d,%d,%d\n" % (n, n, n % 2) for n in range(11)))
    (folder / "2.csv").write_bytes(second)
    with pytest.raises(ValueError, match=message):
        read_table(folder, "y") if piece_bytes is None else in_pieces(folder, scratch, piece_bytes, "y")


def test_an_infinite_number_is_named_by_its_file_and_row(tmp_path, scratch):
    for name, last in (("1.csv", "5"), ("2.csv", "inf"), ("3.csv", "4")):
        (tmp_path / name).write_text("a,y\n" + "1,0\n2,1\n,\n7,\n" * 9 + f"{last},1\n")
    for table in (read_table(tmp_path, "y"), in_pieces(tmp_path, scratch, 20, "y")):
        with pytest.raises(ValueError, match=r"column 'a': .* got inf in row 18 of .*2.csv \(counted from 0"):
            FeatureEncoder.fit(table)
    tables = list(tables_of_model(tmp_path / "2.csv", table.schema, [], piece_bytes=20))
    assert len(tables) > 3
    with pytest.raises(ValueError, match=r"got inf in row 27 \(counted from 0"):
        FeatureEncoder.fit(tables[-1])


def test_folders_of_other_files(tmp_path):
    frame = numbers_frame(9)
    frame.write_parquet(tmp_path / "1.parquet")
    frame.with_columns(pl.col("n").cast(pl.Float64), pl.col("a").cast(pl.Float32)).write_parquet(tmp_path / "2.parquet")
    assert len(read_table(tmp_path, "y")) == 18
    frame.with_columns(n=pl.lit("x")).write_parquet(tmp_path / "3.parquet")
    with pytest.raises(
        ValueError, match="3.parquet: expected column 'n' to be of type Float64, as in the files before; got S"
    ):
        read_table(tmp_path, "y")
    frame.write_csv(tmp_path / "4.csv")
    with pytest.raises(ValueError, match="expected files of one kind; got 1.parquet and 4.csv"):
        read_table(tmp_path, "y")
    (tmp_path / "0.txt").touch()
    with pytest.raises(ValueError, match="expected a folder of .csv or .parquet files alone; got 0.txt"):
        read_table(tmp_path, "y")


def test_a_file_that_changes_while_it_is_read(tmp_path, scratch, monkeypatch):
    path = tmp_path / "d.csv"
    path.write_text("a,y\n" + "1,0\n2,1\n" * 50)
    require = scratch.require

    def append(*arguments):
        with open(path, "a") as file:
            file.write("3,1\n")
        require(*arguments)

    monkeypatch.setattr(scratch, "require", append)
    with pytest.raises(ValueError, match="d.csv: the file changed while it was read: expected 100 rows; got 101"):
        in_pieces(path, scratch, 50, "y")


def test_a_compressed_file_that_is_damaged(tmp_path, scratch):
    path = tmp_path / "d.csv.gz"
    path.write_bytes(gzip.compress(b"a,y\n" + b"1,0\n2,1\n" * 5000)[:-12])
    with pytest.raises(ValueError, match="d.csv.gz: the compressed file is damaged or truncated"):
        in_pieces(path, scratch, 1000, "y")


# Scratch files --------------------------------------------------------------------------------------------------------


def test_too_little_space(tmp_path, scratch, monkeypatch):
    path = tmp_path / "d.csv"
    path.write_text("a,b,c,y\n" + "1,2,u,0\n3,4,v,1\n" * 50)
    monkeypatch.setattr(scratch_files.shutil, "disk_usage", lambda folder: SimpleNamespace(free=64 * 2**20 + 4000))
    with pytest.raises(OSError, match=r"--scratch: the 100 rows of .*, as numbers, need 5.6 kB in .*got 67.1 MB"):
        read_large_table(path, "y", scratch, beside=4)
    assert [each.name for each in scratch.folder.iterdir()] == ["lock"]


def test_the_folder_is_removed_whatever_happens(tmp_path):
    with pytest.raises(KeyboardInterrupt), scratch_folder(tmp_path) as scratch:
        with scratch.writing("x", "float32", (2, 1)) as writer:
            writer.write(np.ones((2, 1)))
        assert scratch.array("x").tolist() == [[1.0], [1.0]]
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="locks")
def test_folders_of_killed_processes_are_removed(tmp_path):
    code = f"""
        import os
        from fusedmlp.data.large.scratch import scratch_folder
        with scratch_folder({str(tmp_path)!r}) as scratch:
            print(scratch.folder, flush=True)
            os._exit(0)
    """
    left = Path(run_python(code, dict(os.environ)))
    assert left.is_dir()
    with scratch_folder(tmp_path) as first:
        assert not left.exists()
        with scratch_folder(tmp_path) as second:
            assert first.folder.is_dir()
            assert second.folder.is_dir()
    assert list(tmp_path.iterdir()) == []


# Sizes ----------------------------------------------------------------------------------------------------------------


def test_what_is_large(tmp_path):
    (tmp_path / "d.csv").write_bytes(b"a,y\n" + b"1,0\n" * 1000)
    (tmp_path / "z.csv.gz").write_bytes(gzip.compress(b"a,y\n" + b"1,0\n" * 1000))
    pl.DataFrame({"a": np.zeros(1000), "y": np.zeros(1000)}).write_parquet(tmp_path / "d.parquet")
    assert bytes_of(pl, tmp_path / "d.csv") == bytes_of(pl, tmp_path / "z.csv.gz") == 4004
    assert bytes_of(pl, tmp_path / "d.parquet") == 16_000
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("1.csv", "2.csv"):
        (folder / name).write_bytes((tmp_path / "d.csv").read_bytes())
    assert bytes_of(pl, folder) == 8008
    assert is_large(tmp_path / "d.csv", 4003)
    assert not is_large(tmp_path / "d.csv", 4004)
    assert not is_large(tmp_path / "d.csv")
    assert not is_large(tmp_path / "d.npy", 0)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory of a process")
def test_memory_does_not_grow_with_the_file(tmp_path):
    """30 MB of text, and 24 MB of numbers, of which a process holds a few pieces at a time."""
    block = numbers_frame(2000).drop("day", "kind", "some").write_csv().encode()
    header, _, rows = block.partition(b"\n")
    path = tmp_path / "d.csv"
    with open(path, "wb") as file:
        file.write(header + b"\n")
        for _ in range(30_000_000 // len(rows)):
            file.write(rows)
    code = f"""
        import re, threading, time
        from pathlib import Path
        import numpy as np
        from fusedmlp.data import features, targets
        from fusedmlp.data.features import FeatureEncoder
        from fusedmlp.data.large import encoding
        from fusedmlp.data.large.encoding import encoded_features, encoded_target, row_numbers
        from fusedmlp.data.large.reading import read_large_table
        from fusedmlp.data.large.scratch import scratch_folder
        from fusedmlp.data.targets import fit_target

        features._BLOCK_BYTES, encoding._BLOCK_ROWS, targets._BLOCK_ROWS = 2**20, 2**15, 2**15

        def anonymous_bytes():
            return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1))

        peak, done = 0, threading.Event()

        def watch():
            global peak
            while not done.wait(0.01):
                peak = max(peak, anonymous_bytes())

        def run(path, size):
            with scratch_folder(path.parent) as scratch:
                table = read_large_table(path, "y", scratch, piece_bytes=size)
                rows = row_numbers(np.arange(len(table)) % 4 > 0, scratch, "rows")
                encoder, loss = fit_target(table.target, None, None, rows)
                fitted = FeatureEncoder.fit(table, rows)
                encoded_features(fitted, table, rows, "float32", scratch, "X")
                encoded_target(encoder, table.target, rows, "float32", scratch, "Y")
                return len(table)

        path = Path({str(path)!r})
        small = path.with_name("small.csv")
        with open(path) as file:
            small.write_text("".join(file.readlines(2**22)))
        run(small, 2**20)  # what libraries load is not counted
        before = anonymous_bytes()
        threading.Thread(target=watch).start()
        rows = run(path, 2**20)
        done.set()
        print(rows, peak - before)
    """
    rows, grown = map(int, run_python(code, dict(os.environ)).split())
    assert rows > 500_000
    assert grown < 60e6
