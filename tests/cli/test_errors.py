"""Bad usage and bad data: exit status 2, one line on stderr that says what is wrong, nothing written."""

from __future__ import annotations

import gzip
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from fusedmlp import Network, TrainingDivergedError
from fusedmlp.cli.commands import cli
from fusedmlp.files.model_files import FORMAT
from fusedmlp.files.tensor_files import read_tensors, write_tensors


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with one good and many bad files."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(12, 3)), np.arange(12) % 2
    np.savez("d.npz", X=X, y=y)
    np.save("X.npy", X)
    frame = pl.DataFrame(X, schema=["a", "b", "c"]).with_columns(target=pl.Series(y))
    frame.write_csv("d.csv")
    frame.write_parquet("d.parquet")
    (tmp_path / "half.parquet").write_bytes((tmp_path / "d.parquet").read_bytes()[:100])
    (tmp_path / "half.npz").write_bytes((tmp_path / "d.npz").read_bytes()[:100])
    (tmp_path / "half.npy").write_bytes((tmp_path / "X.npy").read_bytes()[:200])
    (tmp_path / "half-idx.gz").write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x05" + b"12345")[:-10])
    (tmp_path / "idx3").write_bytes(b"\0\0\x08\x03" + b"\0\0\0\x05" * 3 + b"123")
    (tmp_path / "text.dat").write_text("hello")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text("a,target\n")
    (tmp_path / "one.csv").write_text("a,target\n1,0.5\n")
    (tmp_path / "same.csv").write_text("a,target\n1,x\n2,x\n")
    (tmp_path / "hole.csv").write_text("a,target\n1,x\n2,\n")
    (tmp_path / "negative.csv").write_text("a,target\n1,-1.5\n2,3\n3,1\n")
    (tmp_path / "infinite.csv").write_text("a,target\n1,1.5\ninf,3\n3,1\n")
    (tmp_path / "other.csv").write_text("x,target\n1,0\n2,1\n")
    (tmp_path / "classes.csv").write_text("a,b,c,target\n1,2,3,7\n")
    (tmp_path / "words.csv").write_text("a,b,c\n1,2,many\n")
    os.mkdir("folder")
    os.mkfifo("fifo")
    Network([3, 1], backend="numpy").save("network.safetensors")
    result = CliRunner().invoke(cli, ["train", "d.csv", "--epochs", "1", "--out", "m.safetensors"])
    assert result.exit_code == 0
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "m.safetensors").read_bytes()[:-5])
    file = read_tensors("m.safetensors", FORMAT)
    file.tensors["W1"][1, 2] = np.nan
    write_tensors("nan.safetensors", FORMAT, file.tensors, file.metadata)
    return tmp_path


CASES = [
    ("bogus", "No such command 'bogus'"),
    ("train", "Missing argument 'DATA'"),
    ("train d.csv --nonsense", "No such option"),
    ("train nothing", "nothing: no such file, and not one of the bundled data sets: breast-cancer"),
    ("train nothing.csv", "nothing.csv: no such file"),
    ("train folder", "folder: expected .csv or .parquet files in this folder; it has none"),
    ("train text.dat", "unknown format; expected a bundled name"),
    ("train d.csv --target price", "target: d.csv: expected the name of the target's column; there is no 'price'"),
    ("train words.csv", "target: words.csv: expected the name of the target's column; none was given"),
    ("train d.csv --drop z", "drop: d.csv has no column z; the columns are a, b, c, target"),
    ("train empty.csv", "empty.csv: the file is empty"),
    ("train header.csv", "header.csv: expected at least one row"),
    ("train one.csv", "--test-fraction: 0.25 of 1 row leaves none to train on"),
    ("train same.csv", "target: expected at least 2 classes; every row has 'x'"),
    ("train hole.csv --require-target", "1 value is missing, the first in row 1"),
    ("train hole.csv --target a --numeric target", "column 'target': 0 numbers, and 'x' in row 0"),
    ("train negative.csv --loss poisson", "target: poisson expects numbers >= 0; the smallest is -1.5"),
    ("train infinite.csv", "column 'a': expected finite numbers (a missing one is fine); got inf in row 1"),
    ("train half.parquet", "not a Parquet file, or a damaged one"),
    ("train half.npz", "not a .npz archive, or a truncated one"),
    ("train half.npy --target -1", "or a truncated one"),
    ("train X.npy", "target: X.npy: expected the number of the target's column"),
    ("train X.npy --target 3", "expected a column from -3 to 2; got 3"),
    ("train X.npy --target y.npy", "y.npy: No such file or directory"),
    ("train half-idx.gz --target half-idx.gz", "damaged or truncated"),
    ("train idx3 --target idx3", "the header promises 125 bytes of data"),
    ("train d.npz --test-data X.npy --test-target -1", "trained on 3 columns; got 2"),
    ("train d.csv --test-data other.csv", "missing columns that the model was trained on: a, b, c"),
    ("train d.csv --test-data classes.csv", "expected one of the classes 0, 1; got 7"),
    ("train d.csv --test-data d.csv --test-fraction 0.5", "exclude each other"),
    ("train d.csv --test-target y", "--test-target is for --test-data"),
    ("train d.csv --patience 3", "--patience is for --early-stopping"),
    ("train iris --target x", "target: the bundled data set iris brings its own"),
    ("train iris --loss binary_cross_entropy", "binary_cross_entropy expects 2 classes; the target has 3"),
    ("train iris --loss squared_error", "squared_error expects a target of numbers; got text such as 'setosa'"),
    ("train iris --loss mse", "expected one of binary_cross_entropy, categorical_cross_entropy"),
    ("train iris --activation swish", "'swish' is not one of 'sigmoid', 'tanh', 'relu', 'identity', 'leaky_relu'"),
    ("train iris --hidden 0", "'0' is no list of layer sizes"),
    ("train iris --hidden 64,,2", "'64,,2' is no list of layer sizes"),
    ("train iris --epochs 0", "0 is not in the range x>=1"),
    ("train iris --batch-size x", "'x' is not a valid integer"),
    ("train iris --learning-rate 0", "0.0 is not in the range x>0"),
    ("train iris --learning-rate nan", "--learning-rate: expected a number in (0, inf); got nan"),
    ("train iris --learning-rate inf", "--learning-rate: expected a number in (0, inf); got inf"),
    ("train iris --alpha nan", "--alpha: expected a number in [0, inf); got nan"),
    ("train nothing --alpha inf", "--alpha: expected a number in [0, inf); got inf"),
    ("train iris --clip-norm 0", "0.0 is not in the range x>0"),
    ("train nothing --clip-norm nan", "--clip-norm: expected a number in (0, inf); got nan"),
    ("train iris --dropout x", "'x' is no number and no list of numbers"),
    ("train nothing --dropout 1", "--dropout: expected a number in [0, 1); got 1.0"),
    ("train nothing --dropout 0.1,0.2,0.3", "--dropout: expected a number, or 2 of them"),
    ("train iris --test-fraction nan", "--test-fraction: expected a number in [0, 1); got nan"),
    ("train nothing --validation-fraction nan", "--validation-fraction: expected a number in [0, 1); got nan"),
    ("train iris --test-fraction 1", "1.0 is not in the range 0<=x<1"),
    ("train iris --test-fraction 0.999", "leaves none to train on"),
    ("train iris --validation-fraction 0.999", "leaves none to train on"),
    ("train iris --random-state -1", "-1 is not in the range"),
    ("train iris --backend tpu", "unknown backend 'tpu'"),
    ("train iris --out nowhere/m.safetensors", "--out: the folder nowhere does not exist"),
    ("train iris --out folder", "--out: folder: expected the name of a new file or of a regular one; got a folder"),
    ("train iris --plot nowhere/l.png", "--plot: the folder nowhere does not exist"),
    ("train iris --plot l.bmp", "l.bmp: expected a picture whose name ends in .png"),
    ("train iris --metrics text.dat/m.jsonl", "--metrics: the folder text.dat does not exist"),
    ("train iris --out x.png --plot x.png", "--plot: expected a file of its own; got x.png, which is --out too"),
    ("train d.csv --metrics d.csv", "--metrics: expected a file of its own; got d.csv, which is read as DATA"),
    (
        "train X.npy --target d.npz --out d.npz",
        "--out: expected a file of its own; got d.npz, which is read as --target",
    ),
    ("train diabetes --optimizer sgd --learning-rate 1e9", "the loss became"),
    ("predict nothing.safetensors d.csv", "nothing.safetensors: no such file"),
    ("predict d.csv d.csv", "d.csv: not a model file, or a truncated one"),
    ("predict half.safetensors d.csv", "half.safetensors: the file is damaged or truncated"),
    ("predict network.safetensors d.csv", "a network without its preprocessing"),
    ("predict m.safetensors other.csv", "missing columns that the model was trained on: a, b, c"),
    ("predict m.safetensors iris", "missing columns that the model was trained on: a, b, c"),
    ("predict m.safetensors d.csv --out nowhere/p.csv", "--out: the folder nowhere does not exist"),
    ("predict m.safetensors d.csv --out m.safetensors", "got m.safetensors, which is read as MODEL"),
    ("predict m.safetensors d.csv --out d.csv", "got d.csv, which is read as DATA"),
    ("predict nan.safetensors d.csv", "nan.safetensors: expected finite weights"),
    ("predict m.safetensors d.csv --backend x", "unknown backend 'x'"),
    ("evaluate m.safetensors words.csv", "none was given; the columns are a, b, c"),
    ("evaluate m.safetensors words.csv --target b", "missing columns that the model was trained on: b"),
    ("evaluate m.safetensors classes.csv", "expected one of the classes 0, 1; got 7"),
    ("info nothing", "nothing: no such file"),
    ("info half.safetensors", "half.safetensors: the file is damaged or truncated"),
    ("info --shape 9-x-1", "'9-x-1' is no shape such as 784-128-10"),
    ("info --shape 9", "'9' is no shape such as 784-128-10"),
    ("info --shape 9-0-1", "'9-0-1' is no shape such as 784-128-10"),
    ("info --shape 9--1", "'9--1' is no shape such as 784-128-10"),
    ("info --shape 9-4-1 --loss categorical_cross_entropy", "needs at least 2 outputs (one per class); got 1"),
    ("info --shape 9-4-1 --loss hinge", "loss: expected one of binary_cross_entropy"),
    ("info --shape 9-4-1 --activation swish", "'swish' is not one of 'sigmoid'"),
    ("info --shape 9-4-1 --card k80", "'k80' is not one of 'h200'"),
    ("info --shape 9-4-1 --samples 0", "0 is not in the range x>=1"),
    ("info --shape 9-4-1 --batch 8", "No such option --batch: did you mean --batch-size?"),
    ("info --shape 99999999-99999999-1", "parameters: too many"),
    ("info m.safetensors --shape 9-4-1", "expected MODEL or --shape, not both"),
    ("info --card a100", "--card describes a network: it needs --shape"),
    ("info m.safetensors --no-bias", "--bias describes a network: it needs --shape"),
]


def test_every_mistake_is_one_line(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for command, message in CASES:
        result = CliRunner().invoke(cli, command.split())
        assert result.exit_code == 2, (command, result.output)
        assert result.stderr.startswith("fusedmlp: "), (command, result.stderr)
        assert result.stderr.count("\n") == 1, (command, result.stderr)
        assert message in result.stderr, command
        assert "Traceback" not in result.output
        if command.startswith("predict"):
            assert result.stdout == ""
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert after == before


@pytest.mark.parametrize(
    "command", ["train iris", "predict m.safetensors d.csv", "evaluate m.safetensors d.csv", "info"]
)
@pytest.mark.parametrize(
    ("value", "message"),
    [("tpu", "FUSEDMLP_BACKEND: unknown backend 'tpu'"), ("cupy", "backend 'cupy' is unavailable: no GPU")],
)
def test_a_backend_that_cannot_be_had(folder, monkeypatch, command, value, message):
    def no_gpu(name):
        return "no GPU" if name == "cupy" else None

    monkeypatch.setattr("fusedmlp.backends.selection.unavailable_reason", no_gpu)
    monkeypatch.setattr("fusedmlp.cli.info.unavailable_reason", no_gpu)
    monkeypatch.setenv("FUSEDMLP_BACKEND", value)
    result = CliRunner().invoke(cli, command.split())
    assert result.exit_code == 2
    assert result.stderr.startswith(f"fusedmlp: {message}")
    assert result.stderr.count("\n") == 1


def test_a_missing_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "polars", None)
    result = CliRunner().invoke(cli, ["train", "d.csv"])
    assert result.exit_code == 2
    assert "needs polars: pip install 'fusedmlp[data]'" in result.stderr


def test_a_training_that_fails_leaves_the_old_model(folder, monkeypatch):
    old = (folder / "m.safetensors").read_bytes()

    def diverge(*args, **kwargs):
        raise TrainingDivergedError("the loss became nan\nin the middle")

    monkeypatch.setattr("fusedmlp.cli.settings.Network.fit", diverge)
    result = CliRunner().invoke(cli, ["train", "d.csv", "--out", "m.safetensors"])
    assert result.exit_code == 2
    assert result.stderr == "fusedmlp: the loss became nan in the middle\n"
    assert (folder / "m.safetensors").read_bytes() == old


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError("Unable to allocate 1 PiB"), "not enough memory: Unable to allocate 1 PiB"),
        (OSError(28, "No space left on device", "m.safetensors"), "m.safetensors: No space left on device"),
        (OSError("odd"), "odd"),
        (EOFError("Ran out of input"), "a file ended too early: Ran out of input"),
        (RuntimeError("the device is lost"), "the device is lost"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_what_the_system_refuses(folder, monkeypatch, error, message):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr("fusedmlp.cli.training_run.train_all", refuse)
    result = CliRunner().invoke(cli, ["train", "d.csv"])
    assert result.exit_code == 2
    assert result.stderr == f"fusedmlp: {message}\n"


@pytest.mark.parametrize("error", [AssertionError, TypeError, RecursionError, NotImplementedError, KeyError])
def test_a_bug_is_not_hidden(folder, monkeypatch, error):
    def bug(*args, **kwargs):
        raise error("ours")

    monkeypatch.setattr("fusedmlp.cli.training_run.train_all", bug)
    result = CliRunner().invoke(cli, ["train", "d.csv"])
    assert isinstance(result.exception, error)


def test_a_warning_is_one_line(folder):
    shutil.copy(Path(__file__).parents[1] / "files" / "predictor_0_1_0.safetensors", "old.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        result = CliRunner().invoke(cli, ["info", "old.safetensors"])
    assert result.exit_code == 0
    assert result.stderr.startswith("fusedmlp: warning: old.safetensors: a model file of fusedmlp 0.1.0")
    assert result.stderr.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(folder):
    os.chmod("folder", 0o500)
    result = CliRunner().invoke(cli, ["train", "iris", "--out", "folder/m.safetensors"])
    assert result.exit_code == 2
    assert "--out: folder/m.safetensors cannot be written" in result.stderr
