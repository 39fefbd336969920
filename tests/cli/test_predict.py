"""``fusedmlp predict``, ``evaluate`` and ``info``, and the help."""

from __future__ import annotations

import csv
import io
import re

import numpy as np
import pytest
from click.testing import CliRunner

import fusedmlp
from fusedmlp import Network
from fusedmlp.backends import selection
from fusedmlp.backends.cupy import kernel_sources
from fusedmlp.cli.commands import COMMANDS, cli
from fusedmlp.data import read_table
from fusedmlp.data.predictor import Predictor


def records(text):
    """The rows of a CSV as dictionaries."""
    return list(csv.DictReader(io.StringIO(text)))


def test_classes_and_probabilities(run, tmp_path):
    run("train", "wine", "--out", "m.safetensors", "--backend", "numpy")
    rows = records(run("predict", "m.safetensors", "wine", "--proba"))
    classes = ["class_0", "class_1", "class_2"]
    assert list(rows[0]) == ["prediction", *(f"probability_{name}" for name in classes)]
    for row in rows:
        probabilities = [float(row[f"probability_{name}"]) for name in classes]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert row["prediction"] == classes[int(np.argmax(probabilities))]
    truth = read_table("wine").target
    accuracy = np.mean([row["prediction"] == label for row, label in zip(rows, truth, strict=True)])
    output = run("evaluate", "m.safetensors", "wine")
    assert float(output.split()[-1]) == pytest.approx(accuracy, abs=1e-4)
    assert [row["prediction"] for row in records(run("predict", "m.safetensors", "wine"))] == [
        row["prediction"] for row in rows
    ]


def test_binary_probabilities_agree_with_the_labels(run):
    run("train", "breast-cancer", "--out", "m.safetensors", "--epochs", "3")
    for row in records(run("predict", "m.safetensors", "breast-cancer", "--proba", "--backend", "numpy")):
        expected = "malignant" if float(row["probability_malignant"]) >= 0.5 else "benign"
        assert row["prediction"] == expected


def test_labels_and_probabilities_agree_in_the_middle(run):
    run("train", "breast-cancer", "--out", "m.safetensors", "--epochs", "1")
    predictor = Predictor.load("m.safetensors", "numpy")
    predictor.network.parameters.flat[...] = 0  # the output is 0.5 for every row
    predictor.save("m.safetensors")
    rows = records(run("predict", "m.safetensors", "breast-cancer", "--proba"))
    assert {(row["probability_benign"], row["probability_malignant"]) for row in rows} == {("0.5", "0.5")}
    assert [row["prediction"] for row in rows] == [
        row["prediction"] for row in records(run("predict", "m.safetensors", "breast-cancer"))
    ]
    assert {row["prediction"] for row in rows} == {"malignant"}  # the class of label 1


def test_to_a_file(run, tmp_path):
    run("train", "diabetes", "--out", "m.safetensors", "--epochs", "3")
    text = run("predict", "m.safetensors", "diabetes")
    assert run("predict", "m.safetensors", "diabetes", "--out", "p.csv") == "442 predictions: p.csv\n"
    assert (tmp_path / "p.csv").read_text() == text
    values = [float(row["prediction"]) for row in records(text)]
    assert 25 < np.mean(values) < 346


def test_awkward_class_names(run, tmp_path):
    names = ['a,"b"', "c\nd", "é"]
    np.savez(tmp_path / "d.npz", X=np.eye(9), y=np.array(names * 3))
    run("train", "d.npz", "--out", "m.safetensors", "--epochs", "2")
    rows = records(run("predict", "m.safetensors", "d.npz", "--proba"))
    assert {row["prediction"] for row in rows} <= set(names)
    assert set(rows[0]) == {"prediction", *(f"probability_{name}" for name in names)}


def test_several_outputs(run, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", X=rng.normal(size=(20, 3)), y=rng.normal(size=(20, 2)))
    assert "the target is 2 numbers" in run("train", "d.npz", "--out", "m.safetensors", "--epochs", "2")
    assert list(records(run("predict", "m.safetensors", "d.npz"))[0]) == ["prediction_0", "prediction_1"]
    assert "RMSE" in run("evaluate", "m.safetensors", "d.npz")


def test_evaluate_finds_the_target_where_training_did(run, tmp_path):
    X = np.arange(24.0).reshape(8, 3)
    np.save(tmp_path / "Xy.npy", np.column_stack([X, np.arange(8) % 2]))
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "y.npy", np.arange(8) % 2)
    run("train", "Xy.npy", "--target", "-1", "--out", "m.safetensors", "--epochs", "2")
    inside = run("evaluate", "m.safetensors", "Xy.npy").split()
    outside = run("evaluate", "m.safetensors", "X.npy", "--target", "y.npy").split()
    assert inside[-2:] == outside[-2:]
    assert run("predict", "m.safetensors", "X.npy") == run("predict", "m.safetensors", "Xy.npy")


def test_info(run):
    output = run("info")
    assert output.startswith(f"fusedmlp {fusedmlp.__version__}, Python ")
    for name in selection.REGISTRY:
        assert re.search(rf"^  {name}: (available|not available: .+)$", output, re.MULTILINE)
    for file, digest in kernel_sources.hashes().items():
        assert re.search(rf"{re.escape(file)}\s+{digest}", output)
    assert "Asked for: numba-cpu (default)\nChosen:    numba-cpu\n" in output
    assert "threads:" in output
    assert "BLAS:" in output


def test_info_of_a_model(run, tmp_path):
    (tmp_path / "d.csv").write_text("size,colour,target\n1,red,yes\n2,blue,no\n3,red,yes\n4,blue,no\n")
    run("train", "d.csv", "--hidden", "3", "--epochs", "1", "--out", "m.safetensors")
    output = run("info", "m.safetensors")
    for line in ("3-3-1", "binary_cross_entropy", "size", "colour: blue, red", "no, yes", "16 of float32"):
        assert line in output
    Network([2, 1], backend="numpy").save(tmp_path / "n.safetensors")
    assert "preprocessing: none in this file" in run("info", "n.safetensors")


def test_the_choice_is_told_when_asked(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("INFO", logger="fusedmlp"):
        result = CliRunner().invoke(cli, ["-v", "train", "iris", "--epochs", "1", "--backend", "numpy"])
    assert result.exit_code == 0
    assert "backend numpy (backend=numpy)" in caplog.messages


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], *([name, "--help"] for name in COMMANDS)])
@pytest.mark.parametrize("width", [80, 120])
def test_help(run, arguments, width):
    result = CliRunner().invoke(cli, arguments, terminal_width=width)
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: fusedmlp")
    assert max(map(len, result.stdout.splitlines())) <= width  # blocks that are not rewrapped too


def test_help_shows_what_there_is(run):
    output = run("train", "--help")
    options = {option for parameter in cli.get_command(None, "train").params for option in parameter.opts}
    for option in options - {"data"}:
        assert option in output
    for text in ("breast-cancer", ".parquet", "[default: 100", "[default: 0.25", "binary_cross_entropy", "softmax"):
        assert text in output


def test_version(run):
    assert run("--version") == f"fusedmlp, version {fusedmlp.__version__}\n"


def test_large_numbers_keep_their_digits(run, tmp_path):
    (tmp_path / "d.csv").write_text(
        "a,y\n" + "".join(f"{i % 20},{1_700_000_000 + 100 * (i % 20)}\n" for i in range(200))
    )
    run("train", "d.csv", "--target", "y", "--out", "m.safetensors", "--epochs", "30")
    printed = [row["prediction"] for row in records(run("predict", "m.safetensors", "d.csv"))]
    expected = Predictor.load("m.safetensors").predict(read_table("d.csv", "y"))
    np.testing.assert_allclose(np.array(printed, float), expected, rtol=0, atol=1e-4)


def test_keras_archives_bring_their_held_out_rows(run, tmp_path):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4, 3))
    y = (X[:, 0, 0] > 0).astype(int)
    np.savez(tmp_path / "k.npz", x_train=X[:40], y_train=y[:40], x_test=X[40:], y_test=y[40:])
    output = run("train", "k.npz", "--out", "m.safetensors", "--epochs", "3")
    assert "40 rows to train on, 20 held out" in output
    assert len(records(run("predict", "m.safetensors", "k.npz"))) == 20
    assert "30 rows to train on, 10 held out" in run("train", "k.npz", "--epochs", "1", "--test-fraction", "0.25")
