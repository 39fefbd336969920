"""A fit of an estimator by several processes, which all have the same rows and take a slice of them each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from fusedmlp.distributed.agreement import agree, agree_on_rows
from fusedmlp.distributed.checkpointing import KeeperOfAll
from fusedmlp.distributed.fitting import agreed_checkpoint, start_from_first
from fusedmlp.distributed.peers import Peers, peers_of
from fusedmlp.distributed.phase import SumOverProcesses
from fusedmlp.distributed.sharded_samples import sharded_samples
from fusedmlp.engines.options import EpochOptions
from fusedmlp.estimators.rows import Rows
from fusedmlp.network import Network

_APART = ("verbose", "random_state", "callbacks")


class Together:
    """The processes of a fit, and what they do in common.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
    """

    def __init__(self, comm: Any) -> None:
        self._peers: Peers = peers_of(comm)
        self.first = self._peers.rank == 0
        self._phase: SumOverProcesses | None = None

    def fit(self, estimator: Any, data: tuple[Any, Any, Any], checkpoint: Any, training: Callable[[], object]) -> None:
        """Train by all processes, once it is known that they have the same parameters and rows.

        Raises
        ------
        ValueError
            In all processes: a parameter or the rows differ, or there is a solver without epochs.
        """
        peers = self._peers
        with peers.training():
            parameters = {name: value for name, value in estimator.get_params().items() if name not in _APART}
            seed = estimator.random_state
            agree(peers, {"class": type(estimator).__name__} | parameters | {"random_state": seed})
            agree_on_rows(peers, *data)
            agreed_checkpoint(peers, checkpoint, 1)
            if estimator.solver == "lbfgs":
                error = ValueError("comm: expected a solver that works in epochs, 'sgd' or 'adam'; got solver='lbfgs'")
                raise peers.shared(error)
            with peers.sharing_errors():  # the rows are the same, and all that follows from them
                training()
            if self._phase is not None:
                self._phase.end()

    def random_state(self, generator: np.random.RandomState) -> np.random.RandomState:
        """The generator of rank 0; that of the process, which others may use, is left as it is."""
        return generator if self._peers.size == 1 else self._peers.from_first(generator)

    def rows(self, X: Any, Y: np.ndarray, sample_weight: np.ndarray | None, network: Network) -> Rows:
        """The rows of all processes, of which each has a slice; the network starts as that of rank 0."""
        start_from_first(self._peers, network.parameters.flat)
        data = X.T, Y.T, sample_weight
        return Rows(sharded_samples(self._peers, data, network.architecture, network.backend, shards=False))

    def options(self, options: EpochOptions, network: Network) -> EpochOptions:
        """Options of epochs whose sums are those of all processes."""
        self._phase = self._peers.phase(network.architecture.dtype)
        return replace(options, gradient_phase=self._phase)

    def phase(self, network: Network) -> SumOverProcesses:
        """The gradient phase of the epochs."""
        return self._peers.phase_of(network.architecture.dtype)

    def keeper(self, network: Network) -> KeeperOfAll:
        """Who keeps the checkpoints of the fit."""
        return KeeperOfAll(self._peers, self.phase(network))

    def from_first(self, value: float) -> float:
        """The value that rank 0 has, such as a score: processors that differ may compute others."""
        return self._peers.from_first(value)

    def any(self, stop: bool) -> bool:
        """Whether a callback has stopped the fit in any process."""
        return self._peers.total(float(stop))[0] > 0
