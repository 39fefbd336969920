"""Loss curves."""

from __future__ import annotations

import sys

import pytest

from fusedmlp.cli.plots import FORMATS, check_plotting, picture_format, plot_loss, save_figure
from fusedmlp.extras import MissingExtraError
from fusedmlp.training.history import History

HISTORIES = {
    "numpy": History(loss=[1.0, 0.1, 0.01], validation_loss=[1.1, 0.3, 0.2]),
    "cupy": History(loss=[1.0, 0.2, 0.02]),
}


def test_what_is_drawn():
    (axes,) = plot_loss(HISTORIES, "a title", validation="held-out").axes
    assert axes.get_yscale() == "log"
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("epoch", "loss J", "a title")
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["numpy, training", "numpy, held-out", "cupy, training"]
    lines = axes.get_lines()
    assert lines[1].get_xdata().tolist() == [1, 2, 3]
    assert lines[1].get_ydata().tolist() == [1.1, 0.3, 0.2]
    assert len({line.get_color() for line in lines}) == 2
    assert lines[0].get_color() == lines[1].get_color()


@pytest.mark.parametrize("losses", [[0.5], [0.0, 0.0], [0.5, 0.0], [1e-30, 1e30]])
def test_unusual_losses(tmp_path, losses):
    figure = plot_loss({"numpy": History(loss=losses)})
    save_figure(figure, tmp_path / "loss.png")
    assert figure.axes[0].get_yscale() == ("log" if any(losses) else "linear")


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="histories: expected at least one with an epoch"):
        plot_loss({"numpy": History()})


@pytest.mark.parametrize("name", FORMATS)
def test_formats(tmp_path, name):
    path = tmp_path / f"loss.{name.upper()}"
    save_figure(plot_loss(HISTORIES), path)
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
    assert plot_loss(HISTORIES).canvas.manager is None
