"""What a training shows of itself: lines, a bar, a frame, short reprs."""

from __future__ import annotations

import numpy as np
import pytest

from fusedmlp import Network
from fusedmlp.model.optimizers import Optimizer
from fusedmlp.training import progress

X = np.random.default_rng(0).normal(size=(3, 40))
Y = (X[:1] > 0).astype(float)


def test_a_line_for_every_tenth(capsys):
    Network([3, 4, 1], backend="numpy").fit(X, Y, epochs=20, verbose=True, validation_fraction=0.2)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert [line.split(",")[0] for line in lines] == [f"epoch {epoch} of 20" for epoch in range(2, 21, 2)]
    assert all(", loss " in line and ", validation " in line for line in lines)


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    Network([3, 4, 1], backend="numpy").fit(X, Y, epochs=3, verbose=True)
    assert "3/3" in capsys.readouterr().err


def test_the_bar_goes_away_after_an_exception(monkeypatch):
    closed = []
    monkeypatch.setattr(progress.ProgressOfFit, "close", lambda self: closed.append(True))

    def fail(training):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        Network([3, 4, 1], backend="numpy").fit(X, Y, epochs=3, verbose=True, callbacks=[fail])
    assert closed == [True]


def test_nothing_unless_asked(capsys):
    net = Network([3, 4, 1], backend="numpy")
    net.fit(X, Y, epochs=20)
    assert capsys.readouterr() == ("", "")
    with pytest.raises(ValueError, match="verbose: expected True or False"):
        net.fit(X, Y, verbose="bar")


def test_the_history_as_a_frame():
    history = Network([3, 4, 1], backend="numpy").fit(X, Y, epochs=3, validation_fraction=0.2)
    frame = history.to_frame()
    assert list(frame.columns) == ["epoch", "loss", "validation_loss", "learning_rate", "seconds"]
    assert frame["epoch"].tolist() == [1, 2, 3]
    assert frame["loss"].tolist() == history.loss


def test_a_callback_sees_the_network():
    seen = []
    net = Network([3, 4, 1], backend="numpy")
    net.fit(X, Y, epochs=2, callbacks=[lambda training: seen.append((training.network, repr(training)))])
    assert all(network is net for network, _ in seen)
    assert seen[1][1].startswith("Training(epoch 2 of 2, loss ")


def test_a_square_X_is_doubtful():
    with pytest.warns(UserWarning, match=r"X: as many rows as columns, 3: a column is taken for a sample\. Pass X\.T"):
        Network([3, 1], backend="numpy").fit(X[:, :3].copy(), Y[:, :3], epochs=1)
    Network([3, 1], backend="numpy").fit(X[:, :3].copy().T, Y[:, :3], epochs=1)  # as a table is passed


class Rebinding(Optimizer):
    """It makes a new vector, which nobody has."""

    def update(self, xp, state, theta, gradient):
        theta = theta - state.learning_rate * gradient


class Returning(Optimizer):
    """As other libraries want it."""

    def update(self, xp, state, theta, gradient):
        return theta - state.learning_rate * gradient


@pytest.mark.parametrize("backend", ["numpy", "numba-cpu"])
@pytest.mark.parametrize(("optimizer", "message"), [(Rebinding, "as it was before"), (Returning, "a returned value")])
def test_an_optimizer_that_changes_nothing(optimizer, message, backend):
    net = Network([3, 4, 1], backend=backend)
    with pytest.raises(
        ValueError, match=f"{optimizer.__name__}.update: expected a change of theta in place.*{message}"
    ):
        net.fit(X, Y, optimizer(0.1), epochs=1)
