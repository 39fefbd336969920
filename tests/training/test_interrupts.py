"""Signals that come where Python drops what they raise."""

from __future__ import annotations

import os
import signal
import sys
import threading
import weakref

import numpy as np
import pytest

from fusedmlp import Network
from fusedmlp.errors import TerminatedError
from fusedmlp.training.interrupts import terminations_raise

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="signals"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Thing:
    """Something to refer to weakly."""


def dropped_sigterm():
    """A SIGTERM while a weak reference's callback runs: Python prints its error and goes on."""
    thing = Thing()
    reference = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGTERM) or sum(range(1000)))
    del thing
    assert reference() is None


def test_a_dropped_sigterm_ends_the_training_that_comes_next():
    net = Network([2, 4, 1], backend="numpy", random_state=0)
    before = net.parameters.flat.copy()
    X, Y = np.ones((2, 50)), np.ones((1, 50))
    reached = False
    with pytest.raises(TerminatedError), terminations_raise():
        dropped_sigterm()
        reached = True
        net.fit(X, Y, epochs=1000)
    assert reached
    assert net.history.epochs == 0
    np.testing.assert_array_equal(net.parameters.flat, before)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    net.fit(X, Y, epochs=2)  # it has been dealt with
    assert net.history.epochs == 2


def test_a_dropped_sigterm_is_raised_at_the_end_of_the_block():
    with pytest.raises(TerminatedError), terminations_raise():
        dropped_sigterm()
    with terminations_raise():
        pass


def test_other_threads_leave_the_handler():
    seen = []

    def look():
        with terminations_raise():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]
