"""Pictures of trainings and of predictions."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import numpy as np
import pytest

from fusedmlp.cli.curves import Curves
from fusedmlp.cli.plots import (
    FORMATS,
    check_plotting,
    picture_format,
    plot_confusion,
    plot_curves,
    plot_predictions,
    save_figure,
)
from fusedmlp.extras import MissingExtraError

evaluate = importlib.import_module("fusedmlp.cli.evaluate")


def curves(training, held_out_loss=(), scores=(), score="", best_epoch=None):
    """What a training reached."""
    return Curves(None, None, None, None, list(training), list(held_out_loss), list(scores), score, best_epoch)


REACHED = {
    "numpy": curves([1.0, 0.1, 0.01], [1.1, 0.3, 0.2], [0.5, 0.8, 0.9], "accuracy", 3),
    "cupy": curves([1.0, 0.2, 0.02]),
}


def test_what_is_drawn():
    figure = plot_curves(REACHED, "a name", "squared_error")
    losses, scores = figure.axes
    assert losses.get_yscale() == "log"
    assert (losses.get_xlabel(), losses.get_title()) == ("epoch", "Loss J: squared error")
    assert losses.get_ylabel() == "mean of the rows, without L2"
    assert (figure.get_suptitle(), scores.get_title()) == ("a name", "Accuracy")
    labels = [text.get_text() for text in losses.get_legend().get_texts()]
    assert labels == [
        *("numpy, training rows", "numpy, held-out rows", "epoch 3: lowest held-out loss", "cupy, training rows"),
    ]
    lines = losses.get_lines()
    assert lines[1].get_xdata().tolist() == [1, 2, 3]
    assert lines[1].get_ydata().tolist() == [1.1, 0.3, 0.2]
    assert lines[0].get_color() == lines[1].get_color() != lines[3].get_color()


@pytest.mark.parametrize("losses", [[0.5], [0.0, 0.0], [0.5, 0.0], [1e-30, 1e30], [0.3, 0.2, 0.15]])
def test_unusual_losses(tmp_path, losses):
    figure = plot_curves({"numpy": curves(losses)}, "", "squared_error")
    save_figure(figure, tmp_path / "loss.png")
    assert figure.axes[0].get_yscale() == ("log" if max(losses) > 1 else "linear")


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="curves: expected at least one with an epoch"):
        plot_curves({"numpy": curves([])}, "", "squared_error")


def test_the_last_point_is_the_tables(run, tmp_path, monkeypatch):
    """Also where L2 is large: the picture has the quantity of the table."""
    drawn = []
    monkeypatch.setattr(
        "fusedmlp.cli.experiment.plot_curves", lambda c, *rest: drawn.append(c) or plot_curves(c, *rest)
    )
    output = run("train", "wine", "--alpha", "5", "--epochs", "4", "--plot", "p.png")
    reached = drawn[0]["numba-cpu"]
    row = output.splitlines()[-2].split()
    assert [float(row[3]), float(row[4])] == pytest.approx([reached.training[-1], reached.held_out_loss[-1]], rel=1e-3)
    assert float(row[5]) == pytest.approx(reached.scores[-1], abs=1e-4)
    assert len(reached.training) == 4


@pytest.mark.parametrize(("data", "title"), [("iris", "accuracy"), ("diabetes", "RMSE")])
def test_pictures_of_predictions(run, tmp_path, data, title, monkeypatch):
    figures = []
    monkeypatch.setattr(
        evaluate, "save_figure", lambda figure, path: figures.append(figure) or save_figure(figure, path)
    )
    run("train", data, "--epochs", "3", "--out", "m.safetensors")
    output = run("evaluate", "m.safetensors", data, "--plot", "p.svg")
    assert "predictions: p.svg" in output
    assert title in figures[0].axes[0].get_title()
    assert (tmp_path / "p.svg").read_bytes().startswith(b"<?xml")


def test_a_matrix_of_many_classes_has_no_numbers():
    truth = np.arange(60) % 30
    figure = plot_confusion([f"class {i}" for i in range(30)], truth, truth, "d")
    assert len(figure.axes[0].texts) == 0
    assert len(plot_confusion("ab", truth % 2, truth % 2, "d").axes[0].texts) == 4
    assert plot_predictions(truth * 1.0, truth * 1.0, "d").axes[0].get_title() == "d\nRMSE 0"


def test_an_unknown_matplotlib_backend(tmp_path):
    train = ["train", "iris", "--backend", "numpy", "--epochs", "1"]
    command = [sys.executable, "-m", "fusedmlp", *train, "--plot", "p.png"]
    result = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"MPLBACKEND": "nonsense"}, capture_output=True, check=False
    )
    assert (result.returncode, (tmp_path / "p.png").exists()) == (0, True), result.stderr


@pytest.mark.parametrize("name", FORMATS)
def test_formats(tmp_path, name):
    path = tmp_path / f"loss.{name.upper()}"
    save_figure(plot_curves(REACHED, "", "squared_error"), path)
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[name]
    assert path.read_bytes().startswith(start)
    assert list(tmp_path.iterdir()) == [path]


def test_unknown_formats():
    with pytest.raises(ValueError, match=r"x\.bmp: expected a picture whose name ends in \.png, \.svg, \.pdf"):
        picture_format("x.bmp")
    with pytest.raises(ValueError, match="x: expected a picture"):
        picture_format("x")


def test_without_matplotlib_the_pip_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"drawing needs matplotlib: pip install 'fusedmlp\[plot\]'"):
        check_plotting()


def test_it_leaves_pyplot_alone():
    assert plot_curves(REACHED, "", "squared_error").canvas.manager is None
