"""``fusedmlp train``: what it prints, what it writes, and that the same seed gives the same bits."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from rich.console import Console

from fusedmlp import AdamW, Network, available_backends
from fusedmlp.backends import selection
from fusedmlp.cli.commands import cli
from fusedmlp.cli.splits import split_rows
from fusedmlp.data.predictor import Predictor
from fusedmlp.model.activations import HIDDEN_ACTIVATIONS


def rows_of(output):
    """The printed table: a dictionary per backend."""
    lines = output.splitlines()
    rule = next(i for i, line in enumerate(lines) if set(line) == {"─"})
    titles = re.split(r"\s{2,}", lines[rule - 1].strip())
    rows = [
        dict(zip(titles, re.split(r"\s{2,}", line.strip()), strict=True)) for line in lines[rule + 1 :] if "  " in line
    ]
    return {row["backend"]: row for row in rows}


@pytest.mark.parametrize("backend", available_backends())
def test_breast_cancer_by_default(run, backend):
    row = rows_of(run("train", "breast-cancer", "--backend", backend))[backend]
    assert float(row["held-out accuracy"]) >= 0.95
    assert row["epochs"] == "100"
    assert float(row["samples/s"].replace(",", "")) > 0


@pytest.mark.parametrize("backend", available_backends())
def test_digits(run, backend):
    output = run("train", "digits", "--hidden", "128", "--backend", backend)
    assert "64-128-10" in output
    assert float(rows_of(output)[backend]["held-out accuracy"]) >= 0.96


@pytest.mark.parametrize(("asked", "precision"), [("high", "high"), ("medium", "medium"), ("tf32", "medium")])
def test_a_precision_that_is_asked_for_is_in_the_table(run, monkeypatch, asked, precision):
    command = ("train", "wine", "--backend", "numpy", "--epochs", "2")
    assert rows_of(run(*command, "--precision", asked))["numpy"]["precision"] == precision
    assert "precision" not in rows_of(run(*command))["numpy"]
    monkeypatch.setenv("FUSEDMLP_PRECISION", asked)
    assert rows_of(run(*command))["numpy"]["precision"] == precision


def test_files(run, tmp_path):
    output = run(
        "train", "wine", "--backend", "numpy", "--out", "m.safetensors", "--plot", "l.png", "--metrics", "m.jsonl",
        "--epochs", "5",
    )  # fmt: skip
    assert "model of numpy: m.safetensors" in output
    assert {path.name for path in tmp_path.iterdir()} == {"m.safetensors", "l.png", "m.jsonl"}
    assert (tmp_path / "l.png").read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5]
    assert set(lines[0]) == {"backend", "epoch", "loss", "validation_loss", "learning_rate", "seconds"}
    assert lines[0]["learning_rate"] == 0.0015
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert all(line["backend"] == "numpy" and line["seconds"] > 0 and line["validation_loss"] > 0 for line in lines)


def test_the_same_seed_gives_the_same_bits(run, tmp_path):
    def model(seed):
        run("train", "iris", "--epochs", "4", "--out", "m.safetensors", "--random-state", seed)
        return (tmp_path / "m.safetensors").read_bytes()

    assert model(0) == model(0) != model(1)


def test_all_backends(run, tmp_path, monkeypatch):
    def no_gpu(name, real=selection.unavailable_reason):
        return "no GPU here: pip install one" if name == "cupy" else real(name)

    monkeypatch.setattr("fusedmlp.cli.experiment.unavailable_reason", no_gpu)
    arguments = ["train", "wine", "--all-backends", "--backend", "numpy", "--epochs", "3", "--out", "m.safetensors"]
    arguments += ["--metrics", "m.jsonl", "--plot", "l.svg"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0
    assert result.stderr == "cupy: not available: no GPU here: pip install one\n"
    rows = rows_of(result.stdout)
    assert list(rows) == ["numpy", "numba-cpu"]
    assert "model of numpy: m.safetensors" in result.stdout
    losses = [float(row["training loss"]) for row in rows.values()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    names = [json.loads(line)["backend"] for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert names == ["numpy"] * 3 + ["numba-cpu"] * 3
    single = (tmp_path / "m.safetensors").read_bytes()
    run("train", "wine", "--backend", "numpy", "--epochs", "3", "--out", "m.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == single


def test_the_environment_chooses(run, monkeypatch):
    monkeypatch.setenv("FUSEDMLP_BACKEND", "numpy")
    assert list(rows_of(run("train", "iris", "--epochs", "1"))) == ["numpy"]
    assert "Asked for: numpy (FUSEDMLP_BACKEND)\nChosen:    numpy\n" in run("info")


@pytest.mark.parametrize(
    ("arguments", "titles"),
    [
        (["iris"], {"held-out accuracy"}),
        (["diabetes"], {"held-out R²", "held-out RMSE"}),
        (["diabetes", "--loss", "poisson"], {"held-out mean Poisson deviance"}),
        (["diabetes", "--loss", "sum_squared_error"], {"held-out R²", "held-out RMSE"}),
        (["iris", "--loss", "sum_squared_error", "--no-bias"], {"held-out accuracy"}),
        (["breast-cancer", "--loss", "categorical_cross_entropy"], {"held-out accuracy"}),
    ],
)
def test_every_kind_of_target(run, arguments, titles):
    output = run("train", *arguments, "--epochs", "3", "--backend", "numpy")
    row = rows_of(output)["numpy"]
    common = {"backend", "engine", "epochs", "training loss", "held-out loss", "samples/s", "seconds"}
    assert set(row) == common | titles


@pytest.mark.parametrize(
    ("option", "value", "arguments"),
    [
        ("--optimizer", "adamw", {"optimizer": AdamW(learning_rate=0.0015)}),
        ("--clip-norm", "0.25", {"clip_norm": 0.25}),
        ("--dropout", "0.2", {"dropout": 0.2}),
        ("--dropout", "0.1,0.5", {"dropout": (0.1, 0.5)}),
    ],
)
def test_options_of_the_steps_reach_fit(run, monkeypatch, option, value, arguments):
    calls = []

    def fit(self, X, Y, optimizer, *args, real=Network.fit, **more):
        calls.append({"optimizer": optimizer, **more})
        return real(self, X, Y, optimizer, *args, **more)

    monkeypatch.setattr(Network, "fit", fit)
    run("train", "iris", option, value, "--epochs", "1", "--backend", "numpy")
    assert {name: calls[0][name] for name in arguments} == arguments


@pytest.mark.parametrize("activation", HIDDEN_ACTIVATIONS)
def test_every_activation(run, tmp_path, activation):
    run("train", "iris", "--activation", activation, "--epochs", "1", "--backend", "numpy", "--out", "m.safetensors")
    assert f"activation:   {activation} " in run("info", "m.safetensors")


def test_every_option_reaches_the_network(run, tmp_path):
    run(
        "train", "digits", "--hidden", "7, 5", "--activation", "relu", "--no-bias", "--dtype", "float64",
        "--optimizer", "nesterov", "--learning-rate", "0.02", "--schedule", "step", "--epochs", "6",
        "--batch-size", "100", "--alpha", "0.5", "--validation-fraction", "0.2", "--backend", "numpy",
        "--test-fraction", "0.5", "--no-standardize", "--out", "m.safetensors", "--metrics", "m.jsonl",
    )  # fmt: skip
    predictor = Predictor.load(tmp_path / "m.safetensors", backend="numpy")
    architecture = predictor.network.architecture
    assert architecture.layer_sizes == (64, 7, 5, 10)
    assert (architecture.hidden_activation, architecture.bias, architecture.dtype) == ("relu", False, "float64")
    assert not predictor.features.standardize
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [line["learning_rate"] for line in lines] == pytest.approx([0.02, 0.02, 0.002, 0.002, 0.0002, 0.0002])


@pytest.mark.parametrize("hidden", ["", "none", "NONE"])
def test_no_hidden_layer(run, hidden):
    assert "network: 13-3, categorical" in run("train", "wine", "--hidden", hidden, "--epochs", "2")


def test_early_stopping(run, tmp_path):
    output = run(
        "train", "diabetes", "--early-stopping", "--patience", "2", "--epochs", "500", "--metrics", "m.jsonl",
        "--backend", "numpy",
    )  # fmt: skip
    epochs = int(rows_of(output)["numpy"]["epochs"])
    assert epochs < 500
    assert len((tmp_path / "m.jsonl").read_text().splitlines()) == epochs


def test_nothing_held_out(run, tmp_path):
    output = run("train", "iris", "--test-fraction", "0", "--epochs", "2", "--metrics", "m.jsonl", "--plot", "l.pdf")
    assert "150 rows to train on, 0 held out" in output
    assert not any("held-out" in title for title in next(iter(rows_of(output).values())))
    assert json.loads((tmp_path / "m.jsonl").read_text().splitlines()[0])["validation_loss"] is None


def test_held_out_rows_are_not_learned_from(run, tmp_path):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 3)), np.arange(40) % 2
    np.savez(tmp_path / "train.npz", X=X, y=y)
    for name, shift in (("a", 0.0), ("b", 5.0)):
        np.savez(tmp_path / f"{name}.npz", X=X + shift, y=y)
        run("train", "train.npz", "--test-data", f"{name}.npz", "--epochs", "2", "--out", f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "squared_error"])
def test_rows_that_are_split_off_are_not_learned_from(run, tmp_path, loss):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 3)), np.arange(40) % 2
    np.savez(tmp_path / "d.npz", X=X, y=y)
    run("train", "d.npz", "--loss", loss, "--epochs", "1", "--out", "m.safetensors", "--random-state", "3")
    train, test = split_rows(40, 0.25, y if loss == "binary_cross_entropy" else None, 3)
    predictor = Predictor.load(tmp_path / "m.safetensors", backend="numpy")
    assert len(test) == 10
    assert predictor.features.mean == pytest.approx(X[train].mean(axis=0), rel=1e-12)
    assert predictor.features.scale == pytest.approx(X[train].std(axis=0), rel=1e-12)
    assert predictor.features.mean != pytest.approx(X.mean(axis=0), rel=1e-3)
    if loss == "squared_error":
        assert predictor.target.offset == pytest.approx([y[train].mean()], rel=1e-12)
        assert predictor.target.scale == pytest.approx([y[train].std()], rel=1e-12)


def test_an_output_may_be_called_like_the_target(run, tmp_path):
    (tmp_path / "d.csv").write_text("a,price\n1,2.5\n2,3.5\n3,4\n4,4.5\n")
    output = run("train", "d.csv", "--target", "price", "--epochs", "1", "--metrics", "price")
    assert "1 column; 'price' is a number" in output
    assert "3 rows to train on, 1 held out" in output
    assert (tmp_path / "price").is_file()


def test_test_data_with_a_target_of_its_own(run, tmp_path):
    np.save(tmp_path / "X.npy", np.eye(6))
    np.save(tmp_path / "y.npy", np.arange(6) % 2)
    arguments = ["X.npy", "--target", "y.npy", "--test-data", "X.npy", "--test-target", "y.npy", "--epochs", "1"]
    assert "6 rows to train on, 6 held out" in run("train", *arguments)


def test_a_table_of_everything(run, tmp_path):
    rng = np.random.default_rng(0)
    m = 200
    colour, size = rng.choice(["red", "green", "blue"], m), rng.normal(size=m)
    frame = pl.DataFrame(
        {
            "name": [f"n{i}" for i in range(m)],
            "colour": [None if i % 17 == 0 else str(c) for i, c in enumerate(colour)],
            "size": [None if i % 13 == 0 else float(s) for i, s in enumerate(size)],
            "heavy": rng.random(m) < 0.5,
            "price": np.where(colour == "red", 1000.0, 2000.0) + 100 * size,
        }
    )
    frame.write_csv(tmp_path / "d.csv")
    output = run("train", "d.csv", "--target", "price", "--drop", "name", "--out", "m.safetensors")
    assert "2 columns of numbers, 1 of categories; 'price' is a number" in output
    assert float(next(iter(rows_of(output).values()))["held-out R²"]) > 0.8
    shuffled = frame.select(reversed(frame.columns))
    shuffled.write_parquet(tmp_path / "d.parquet")
    assert (
        run("evaluate", "m.safetensors", "d.csv").split()[-2:]
        == run("evaluate", "m.safetensors", "d.parquet").split()[-2:]
    )
    predicted = run("predict", "m.safetensors", "d.csv").splitlines()
    shuffled.drop("price").write_csv(tmp_path / "new.csv")
    assert run("predict", "m.safetensors", "new.csv").splitlines() == predicted
    assert len(predicted) == m + 1
    assert 500 < float(predicted[1]) < 2500


@pytest.mark.parametrize("classes", [None, np.arange(100) % 3, np.array([0] * 50 + [1] * 50)])
def test_split(classes):
    train, test = split_rows(100, 0.2, classes, 0)
    assert sorted([*train, *test]) == list(range(100))
    assert (len(test), list(train), list(test)) == (20, sorted(train), sorted(test))
    if classes is not None:
        shares = np.bincount(classes[test]) / 20 - np.bincount(classes) / 100
        assert np.abs(shares).max() < 0.05
    again = split_rows(100, 0.2, classes, 0)
    assert np.array_equal(again[1], test)
    assert not np.array_equal(split_rows(100, 0.2, classes, 1)[1], test)


@pytest.mark.parametrize(("m", "classes"), [(2, None), (2, [0, 1]), (5, [0, 0, 0, 0, 1]), (10, list(range(10)))])
def test_split_of_few_rows(m, classes):
    train, test = split_rows(m, 0.25, None if classes is None else np.array(classes), 0)
    assert len(train) + len(test) == m
    assert len(train) >= 1
    assert len(test) >= 1


def test_progress_on_a_terminal(run, monkeypatch):
    screen = io.StringIO()

    def terminal(stderr=False, **options):
        return Console(file=screen, force_terminal=True, width=100) if stderr else Console(**options)

    with monkeypatch.context() as patch:
        patch.setattr("rich.console.Console", terminal)
        run("train", "diabetes", "--epochs", "3", "--backend", "numpy")
    assert "3/3" in screen.getvalue()
    assert "held-out" in screen.getvalue()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("data", [["diabetes"], ["diabetes", "--loss", "poisson"], ["wine"]])
def test_the_table_fits_a_terminal(run, monkeypatch, width, data):
    monkeypatch.setattr("fusedmlp.cli.report.PIPE_WIDTH", width)
    lines = run("train", *data, "--epochs", "2", "--backend", "numba-cpu").splitlines()
    rule = next(line for line in lines if set(line) == {"─"})
    assert len(rule) <= width
    (row,) = (line for line in lines if line.startswith("numba-cpu"))
    assert "…" not in row
    assert re.search(r"\d\.\d\d\s*$", row)
    words = set(" ".join(lines[lines.index(rule) - 4 : lines.index(rule)]).split())
    assert {"backend", "training", "held-out", "samples/s", "seconds"} <= words
