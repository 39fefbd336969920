"""Many fits of estimators at once, where the backend can train many networks at once: each as if it were alone."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fusedmlp.backends.selection import get_backend
from fusedmlp.engines.crowd import Crowd, Stretch, epochs_of_a_stretch
from fusedmlp.engines.samples import Samples
from fusedmlp.estimators.stretches import Alone, Pace, Stretches, has_listeners, is_taken
from fusedmlp.model.optimizers import Optimizer
from fusedmlp.network import Network
from fusedmlp.training.interrupts import Interrupts

_VECTORS, _VECTOR_BYTES, _MOST_BEGUN = 8, 256 * 2**20, 256
"""Vectors of weights that a fit holds; the bytes of those of all fits that are begun, and their number."""


@dataclass
class Fit:
    """One call of ``estimator.fit(X, y, **parameters)``.

    Attributes
    ----------
    seconds : float
        What it took: of its own work, not of that which went on beside it.
    error : Exception, optional
        What it raised.
    """

    estimator: Any
    X: Any
    y: Any
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    error: Exception | None = None


def fit_side_by_side(fits: Sequence[Fit]) -> None:
    """Do all fits: what each leaves has the bits that it has when it is the only one.

    Raises
    ------
    KeyboardInterrupt
        Ctrl-C. The estimators that were being fitted have what they had.
    """
    crowd = get_backend().crowd()
    beside = [fit for fit in fits if crowd is not None and _is_beside(fit.estimator)]
    if crowd is not None and len(beside) > 1:
        _Rounds(crowd, beside).run()
    else:
        beside = []
    done = {id(fit) for fit in beside}
    for fit in fits:
        if id(fit) not in done:
            _fit_alone(fit)


def _is_beside(estimator: Any) -> bool:
    """Whether a fit can be one of many at a time: nothing is called or printed between its epochs."""
    return estimator.solver != "lbfgs" and not has_listeners(estimator)


def _fit_alone(fit: Fit) -> None:
    start = time.perf_counter()
    try:
        fit.estimator.fit(fit.X, fit.y, **fit.parameters)
    except Exception as error:
        fit.error = error
    fit.seconds = time.perf_counter() - start


class _CrowdPace(Pace):
    """Stretches as long as `epochs_of_a_stretch` says."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd

    def epochs(self, network: Network, samples: Samples, optimizer: Optimizer, batch_size: int, drops: bool) -> int:
        return epochs_of_a_stretch(self._crowd.epoch_seconds(network.engine, samples, None))


@dataclass
class _Begun:
    """A fit that is begun, and what it has computed next."""

    fit: Fit
    stretches: Stretches
    stretch: Stretch | None = None

    def go_on(self) -> None:
        """The fit's own work up to its next stretch; None as the stretch: it has ended."""
        start = time.perf_counter()
        if self.stretch is not None:
            self.fit.seconds += sum(self.stretch.seconds)
        self.stretch = None
        try:
            self.stretch = next(self.stretches, None)
        except Exception as error:
            self.fit.error = error
        self.fit.seconds += time.perf_counter() - start

    @property
    def n_bytes(self) -> int:
        return 0 if self.stretch is None else _VECTORS * int(self.stretch.parameters.flat.nbytes)


class _Rounds:
    """Fits in rounds, each of some epochs of half of them; meanwhile the others do what they do between epochs."""

    def __init__(self, crowd: Crowd, fits: Sequence[Fit]) -> None:
        self._crowd, self._waiting = crowd, deque(fits)
        self._begun: list[_Begun] = []
        self._resting: list[_Begun] = []
        self._pace, self._interrupts = _CrowdPace(crowd), Interrupts()

    def run(self) -> None:
        """Do all of them."""
        try:
            while self._waiting or self._begun or self._resting:
                self._begin()
                self._round()
        except BaseException:
            for each in [*self._begun, *self._resting]:
                each.stretches.close()
            raise

    def _begin(self) -> None:
        """Begin fits while there is memory for them."""
        running = [*self._begun, *self._resting]
        n_bytes = sum(each.n_bytes for each in running)
        count = len(running)
        while self._waiting and (count < 2 * self._crowd.workers or (n_bytes < _VECTOR_BYTES and count < _MOST_BEGUN)):
            fit = self._waiting.popleft()
            begun = _Begun(fit, _stretches_of(fit, self._pace))
            begun.go_on()
            if begun.stretch is not None and not is_taken(begun.stretch, self._crowd):
                self._finish(begun)
            elif begun.stretch is not None:
                self._begun.append(begun)
                n_bytes, count = n_bytes + begun.n_bytes, count + 1

    def _round(self) -> None:
        """The stretches of half of the fits that have one; where few are left, of all."""
        few = len(self._begun) + len(self._resting) < 4 * self._crowd.workers
        if few or not self._begun:
            self._wake()
        if not self._begun:
            return
        last = self._begun[0].stretch
        alone_is_faster = len(self._begun) < self._crowd.workers and not self._waiting and last is not None
        if alone_is_faster and last and self._crowd.can_share(last.engine, last.train, last.batch_size):
            self._finish(self._begun.pop())
            return
        half = len(self._begun) if few or self._resting else -(-len(self._begun) // 2)
        current, self._begun = self._begun[:half], self._begun[half:]
        stretches = [each.stretch for each in current if each.stretch is not None]
        stretches.sort(key=_seconds_of, reverse=True)
        with self._interrupts.caught():
            try:
                self._crowd.run(stretches, self._interrupts.poll, self._wake if self._resting else None)
            finally:
                self._resting += current

    def _wake(self) -> None:
        """Let the fits whose stretches are done go on to their next one."""
        while self._resting:
            each = self._resting.pop()
            each.go_on()
            if each.stretch is not None:
                self._begun.append(each)

    def _finish(self, each: _Begun) -> None:
        """The rest of a fit, with all of the hardware."""
        start = time.perf_counter()
        try:
            Alone(self._crowd).run(_from(each))
        except Exception as error:
            each.fit.error = error
        each.fit.seconds += time.perf_counter() - start


def _stretches_of(fit: Fit, pace: Pace) -> Stretches:
    """Those of the fit; what is wrong with its parameters is found with the first one."""
    yield from fit.estimator._fit_in_stretches(fit.X, fit.y, pace, **fit.parameters)


def _seconds_of(stretch: Stretch) -> float:
    return stretch.epochs * stretch.train.m * float(stretch.parameters.flat.size)


def _from(each: _Begun) -> Stretches:
    """The stretches of a fit from the one on that it waits for; an exception is raised where it waits."""
    stretch = each.stretch
    while stretch is not None:
        try:
            yield stretch
        except BaseException as error:
            stretch = each.stretches.throw(error)
        else:
            stretch = next(each.stretches, None)
