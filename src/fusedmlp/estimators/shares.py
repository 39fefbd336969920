"""Which of many fits this process does: all, or a share where several processes do them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from sklearn.pipeline import Pipeline

from fusedmlp.distributed.agreement import agree, agree_on_rows
from fusedmlp.distributed.peers import peers_of, sendable
from fusedmlp.distributed.shares import agreed_owners, exchanged
from fusedmlp.estimators.constraints import hidden_layers

Result = TypeVar("Result")


class Shares:
    """Who does which fits: this process does all, where it is the only one."""

    @contextmanager
    def fitting(self, estimator: Any, X: Any, y: Any) -> Iterator[None]:
        """Around all that is done in common."""
        yield

    def from_first(self, value: Result) -> Result:
        """The value that rank 0 has: what is drawn, or measured, is the same in all processes."""
        return value

    def by_first(self, work: Callable[[], Result]) -> Result:
        """What `work` returns on rank 0, which alone calls it."""
        return work()

    def own(self, work: Sequence[float]) -> set[int]:
        """The numbers of the fits that this process does.

        Parameters
        ----------
        work : sequence of float
            How long each fit takes, in any unit.
        """
        return set(range(len(work)))

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Around the fits of this process: an exception that none of them keeps is this process's alone."""
        yield

    def exchanged(self, done: Mapping[int, Result]) -> dict[int, Result]:
        """What all processes have done, by the numbers of the fits."""
        return dict(done)

    def sendable(self, error: Exception | None) -> Exception | None:
        """An error of a fit as other processes can have it."""
        return error


class SharesOfRanks(Shares):
    """The processes of a communicator each do a share. They train without a message.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
    """

    def __init__(self, comm: Any) -> None:
        self._peers = peers_of(comm)
        self._own_error: BaseException | None = None

    @contextmanager
    def fitting(self, estimator: Any, X: Any, y: Any) -> Iterator[None]:
        """See that all processes have the same parameters and rows; their errors are the same, too.

        Raises
        ------
        ValueError
            In all processes: a parameter or the rows differ.
        """
        with self._peers.training():
            agree(self._peers, {"class": type(estimator).__name__} | _comparable(estimator))
            agree_on_rows(self._peers, X, y, None)
            try:
                yield
            except Exception as error:
                if error is not self._own_error:
                    self._peers.shared(error)
                raise

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Around the fits of this process: after an exception here, the others wait for it in vain."""
        try:
            yield
        except BaseException as error:
            self._own_error = error
            raise

    def from_first(self, value: Result) -> Result:
        """The value that rank 0 has."""
        return self._peers.copied(value)

    def by_first(self, work: Callable[[], Result]) -> Result:
        """What `work` returns on rank 0; its exception is raised in all processes."""
        return self._peers.by_first(work)

    def own(self, work: Sequence[float]) -> set[int]:
        """A share that takes about as long as those of the others."""
        owners = agreed_owners(self._peers, work)
        return {number for number, owner in enumerate(owners) if owner == self._peers.rank}

    def exchanged(self, done: Mapping[int, Result]) -> dict[int, Result]:
        """What all processes have done; estimators of others are copies."""
        return exchanged(self._peers, done)

    def sendable(self, error: Exception | None) -> Exception | None:
        """The error, or a RuntimeError that names it, where it cannot be pickled."""
        return None if error is None else sendable(error)


def shares_of(comm: Any) -> Shares:
    """Those of a communicator, or of this process alone where it is None."""
    return Shares() if comm is None else SharesOfRanks(comm)


def _comparable(estimator: Any) -> dict[str, Any]:
    """The parameters of an estimator, but for objects whose text is not the same in every process."""
    parameters = estimator.get_params()
    plain = (type(None), bool, int, float, str, list, tuple, dict)
    return {name: value for name, value in parameters.items() if isinstance(value, plain) and name != "verbose"}


def work_of(estimator: Any, rows: int, columns: int) -> float:
    """About how long a fit takes, in products of a row and a weight."""
    last = estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator
    try:
        sizes = [columns, *hidden_layers(last.hidden_layer_sizes), 1]
        return float(last.max_iter) * rows * sum(n_in * n_out for n_in, n_out in pairwise(sizes))
    except (AttributeError, TypeError, ValueError):  # the fit itself says what is wrong
        return float(rows * columns)


def columns_of(X: Any) -> int:
    """The number of columns of a table, or 1."""
    shape = getattr(X, "shape", None) or np.shape(X)
    return int(shape[1]) if len(shape) > 1 else 1
