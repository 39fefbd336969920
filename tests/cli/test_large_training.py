"""Commands on tables that are read in pieces: they print and write what they do on tables that are read whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from fusedmlp.cli import large_tables
from fusedmlp.cli.commands import cli
from fusedmlp.cli.splits import held_out_rows, split_rows, strata
from fusedmlp.data.large import reading

TRAIN = ("--target", "y", "--epochs", 3, "--batch-size", 64, "--backend", "numpy")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch, tmp_path):
    """Pieces of some rows; a table is large from 20 kB on."""
    for function in (reading.read_large_table, reading.tables_of_model):
        monkeypatch.setitem(function.__kwdefaults__, "piece_bytes", 2000)
    monkeypatch.setattr(reading.is_large, "__defaults__", (20_000,))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    yield
    assert list(scratch.iterdir()) == []


def table(m=900, seed=0):
    generator = np.random.default_rng(seed)
    x, word = generator.normal(size=(m, 3)), generator.integers(0, 3, m)
    frame = pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "word": pl.Series([f"w{i}" for i in word])})
    return frame.with_columns(
        y=pl.Series(np.where(x[:, 0] + word > 1, "yes", "no")), number=pl.Series(x[:, 0] * 3 + x[:, 1] + 1e4)
    )


@pytest.fixture
def data(tmp_path):
    table().drop("number").write_csv(tmp_path / "d.csv")
    return tmp_path / "d.csv"


def append(path, text):
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


def without_reading_and_times(output):
    """The output without the line of reading, and without the columns of speed and seconds."""
    lines = [line for line in output.splitlines() if not line.startswith("reading")]
    return ["  ".join(line.split()[:-2]) if line.startswith("num") else line.rstrip(" ─") for line in lines]


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--early-stopping", "--patience", 2),
        ("--test-fraction", 0, "--loss", "sum_squared_error"),
        ("--no-standardize", "--dtype", "float64", "--validation-fraction", 0.2),
    ],
)
def test_the_model_is_the_same(run, data, tmp_path, options):
    outputs, models = [], []
    for stream in ("--no-stream", "--stream"):
        outputs.append(run("train", data, *TRAIN, *options, stream, "--out", "m.safetensors"))
        models.append((tmp_path / "m.safetensors").read_bytes())
    assert models[0] == models[1]
    assert without_reading_and_times(outputs[0])[:6] == without_reading_and_times(outputs[1])[:6]
    assert outputs[1].startswith(f"reading: {data}, in pieces; its numbers are kept in {tmp_path / 'scratch'}")


def test_numbers_as_target_and_test_data_in_pieces(run, tmp_path):
    table().drop("y").write_parquet(tmp_path / "d.parquet")
    table(200, 1).drop("y").select("number", "word", "c", "b", "a").write_csv(tmp_path / "test.csv")
    models = []
    for stream in ("--no-stream", "--stream"):
        run("train", "d.parquet", *TRAIN, "--target", "number", "--test-data", "test.csv", stream, "--out", "m.st")
        models.append((tmp_path / "m.st").read_bytes())
    assert models[0] == models[1]


def test_large_tables_are_read_in_pieces_unless_the_user_says_otherwise(run, data, tmp_path):
    table(60).drop("number").write_csv(tmp_path / "small.csv")
    assert run("train", data, *TRAIN).startswith("reading: ")
    assert not run("train", data, *TRAIN, "--no-stream").startswith("reading: ")
    assert not run("train", "small.csv", *TRAIN).startswith("reading: ")
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(3):
        table().drop("number")[300 * number : 300 * (number + 1)].write_csv(folder / f"{number}.csv")
    output = run("train", "folder", *TRAIN)
    assert output.startswith("reading: folder: 3 files, in pieces; ")
    assert without_reading_and_times(output)[1:] == without_reading_and_times(run("train", data, *TRAIN))[1:]


def test_every_output(run, data, tmp_path):
    run("train", data, *TRAIN, "--plot", "l.png", "--metrics", "m.jsonl", "--out", "m.st")
    assert (tmp_path / "l.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "m.jsonl").read_text().splitlines()) == 3


def test_a_checkpoint_goes_on(run, data, tmp_path):
    constant = ("--schedule", "constant", "--backend", "numpy", "--target", "y", "--batch-size", 64, "--stream")
    run("train", data, *constant, "--epochs", 4, "--out", "whole.st")
    run("train", data, *constant, "--epochs", 2, "--checkpoint", "c.st")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    output = run("resume", "c.st", "--epochs", 4, "--out", "m.st", "--scratch", elsewhere)
    assert f"kept in {elsewhere}" in output
    assert list(elsewhere.iterdir()) == []
    assert (tmp_path / "m.st").read_bytes() == (tmp_path / "whole.st").read_bytes()


@pytest.mark.parametrize("target", ["y", "number"])
def test_predictions_and_scores(run, data, tmp_path, target):
    table().drop("number" if target == "y" else "y").write_csv(data)
    run("train", data, *TRAIN, "--target", target, "--out", "m.st")
    new = table(800, 2).with_columns(word=pl.lit("w1"))
    new.write_csv(tmp_path / "new.csv")
    append(tmp_path / "new.csv", ",,,,,\n")
    proba = ("--proba",) if target == "y" else ()
    outputs = {}
    for stream in ("--no-stream", "--stream"):
        results = []
        for command in (("predict", *proba), ("predict", "--out", "p.csv"), ("evaluate",)):
            result = CliRunner().invoke(cli, [command[0], "m.st", "new.csv", *command[1:], stream])
            assert result.exit_code == 0, result.output
            assert "1 empty row: left out" in result.stderr
            results.append(result.stdout)
        outputs[stream] = results, (tmp_path / "p.csv").read_bytes()
    assert outputs["--stream"] == outputs["--no-stream"]
    assert len(outputs["--stream"][1].splitlines()) == 801


def test_categories_that_are_new_are_counted_over_all_pieces(data, run, tmp_path, caplog):
    run("train", data, *TRAIN, "--out", "m.st")
    table(800, 2).with_columns(word=pl.lit("new")).write_csv(tmp_path / "new.csv")
    caplog.clear()
    assert CliRunner().invoke(cli, ["predict", "m.st", "new.csv"]).exit_code == 0
    (record,) = [each for each in caplog.records if "did not occur" in each.getMessage()]
    assert "column 'word': 800 values, such as 'new', did not occur in training" in record.getMessage()


def test_predictions_that_fail_leave_the_old_file(data, run, tmp_path):
    run("train", data, *TRAIN, "--out", "m.st")
    table(800, 2).write_csv(tmp_path / "new.csv")
    append(tmp_path / "new.csv", "1,2,3\n")
    (tmp_path / "p.csv").write_text("old")
    result = CliRunner().invoke(cli, ["predict", "m.st", "new.csv", "--out", "p.csv"])
    assert result.exit_code != 0
    assert "line 802 has 3 fields" in result.stderr
    assert (tmp_path / "p.csv").read_text() == "old"


REFUSED = [
    ("iris --stream", "--stream: expected a CSV or Parquet file, or a folder of them; got iris"),
    ("d.csv --target y --stream --folds 3", "--folds and --stream exclude each other"),
    ("d.csv --target y --stream --members 3", "--members and --stream exclude each other"),
    ("d.csv --target y --stream --scratch nowhere", "--scratch: expected a folder; there is no folder nowhere"),
    ("d.csv --target z --stream", "there is no 'z'"),
    ("d.csv --target y --test-data other.csv", "target: expected one of the classes no, yes; got 'perhaps'"),
    ("infinite.csv --target y --stream", "infinite.csv: column 'a': expected finite numbers .* got inf in row 700"),
]


@pytest.mark.parametrize(("command", "message"), REFUSED)
def test_what_cannot_be(data, tmp_path, monkeypatch, command, message):
    monkeypatch.chdir(tmp_path)
    table(50, 1).with_columns(y=pl.lit("perhaps")).write_csv("other.csv")
    lines = data.read_text().splitlines()
    lines[701] = "inf" + lines[701][lines[701].index(",") :]
    (tmp_path / "infinite.csv").write_text("\n".join(lines))
    result = CliRunner().invoke(cli, ["train", *command.split(), "--out", "m.st"], standalone_mode=False)
    with pytest.raises(Exception, match=message):
        raise result.exception
    assert not (tmp_path / "m.st").exists()


def test_the_picture_of_predictions_needs_the_whole_table(data, run, tmp_path):
    run("train", data, *TRAIN, "--out", "m.st")
    result = CliRunner().invoke(cli, ["evaluate", "m.st", str(data), "--plot", "p.png"])
    assert "expected a table that is read whole (--no-stream)" in result.stderr


def test_nothing_is_looked_at_to_see_that_a_bundled_table_is_small(monkeypatch):
    monkeypatch.setattr(large_tables, "is_large", None)
    assert not large_tables.reads_in_pieces("iris", None)
    assert not large_tables.reads_in_pieces("no such file.csv", True)  # which reading it says


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_remove_the_scratch_folder(data, tmp_path, number, status):
    scratch = tmp_path / "other"
    scratch.mkdir()
    options = ["--target", "y", "--stream", "--scratch", str(scratch), "--epochs", "1000000", "--backend", "numpy"]
    command = [sys.executable, "-m", "fusedmlp", "train", str(data), *options, "--out", str(tmp_path / "m.st")]
    process = subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(scratch.glob("*/train-inputs.npy")) and time.monotonic() < deadline:
        time.sleep(0.02)
    stderr = b""
    while process.poll() is None and time.monotonic() < deadline + 60:
        process.send_signal(number)
        try:
            _, stderr = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:  # Python drops a KeyboardInterrupt that comes in a callback of the importer
            assert number == signal.SIGINT
    assert process.returncode == status, stderr
    assert list(scratch.iterdir()) == []
    assert not (tmp_path / "m.st").exists()


# Rows that are held out -----------------------------------------------------------------------------------------------


def test_many_rows_are_drawn_block_by_block():
    m = 200_000
    classes = np.random.default_rng(0).choice(4, m, p=[0.7, 0.2, 0.0999, 0.0001]).astype(np.uint8)
    held_out = held_out_rows(m, 0.25, classes, 0, many=1000)
    assert held_out.sum() == m // 4
    for number in range(4):
        size = int((classes == number).sum())
        assert abs(int(held_out[classes == number].sum()) - size / 4) < 1
    assert np.array_equal(held_out, held_out_rows(m, 0.25, classes, 0, many=1000))
    assert not np.array_equal(held_out, held_out_rows(m, 0.25, classes, 1, many=1000))
    of_parts = [held_out_rows(m, 0.25, None, seed, many=1000).reshape(100, -1).mean(axis=1) for seed in range(5)]
    assert np.std(of_parts) == pytest.approx(np.sqrt(0.25 * 0.75 / 2000), rel=0.15)  # as chance has it


def test_few_rows_are_those_of_scikit_learn():
    from sklearn.model_selection import train_test_split

    classes = np.arange(100) % 3
    _, test = train_test_split(np.arange(100), test_size=25, random_state=5, stratify=classes)
    assert split_rows(100, 0.25, classes, 5)[1].tolist() == sorted(test.tolist())


def test_strata_of_small_numbers():
    classes = np.array([0] * 10 + [1] * 5 + [2], np.uint8)
    assert strata(classes, 4).tolist() == [0] * 10 + [1] * 5 + [0]
    assert strata(np.zeros(9, np.uint8), 4) is None
