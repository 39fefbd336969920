"""The package's own engines."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

import fusedmlp
from bench.peers.cases import ADAM
from bench.peers.device import Device
from bench.peers.peer import Bound, Latest, NotHereError, Peer, named_epoch, named_step
from bench.peers.problem import Problem
from fusedmlp import Gradients, Network, get_backend
from fusedmlp.model.optimizers import OptimizerState


class Fused(Peer):
    """The fused engine. X and Y are views of tables with a row per sample, as an estimator passes them."""

    fused: ClassVar[bool] = True
    backend: ClassVar[str | None] = None
    """The backend; None is the device's."""

    def __init__(self, device: Device, threads: int) -> None:
        super().__init__(device, threads)
        self._backend = get_backend(self.backend or device.backend)
        self._engine: Any = None

    def versions(self) -> str:
        return f"fusedmlp {fusedmlp.__version__}, {self._backend.describe()['versions']}"

    def engine(self) -> str:
        path = getattr(self._engine, "path", None)
        return self._engine.kind + (f", {path}" if path else "")

    def _network(self, problem: Problem) -> Network:
        case = problem.case
        if case.precision != "strict" and not self.fused:
            raise NotHereError("measured in strict float32 alone")
        sizes, activation, loss = list(case.layer_sizes), case.hidden_activation, case.loss
        network = Network(sizes, activation, loss, dtype=case.dtype, backend=self._backend, precision=case.precision)
        network.parameters.flat[...] = network.backend.asarray(problem.flat)
        self._engine = network.engine if self.fused else network.backend.engine(network.architecture, fused=False)
        expected = "fused" if self.fused else "composed"
        if self._engine.kind != expected:
            raise RuntimeError(f"expected the {expected} engine; got {self._engine.kind}")
        return network

    def bind(self, problem: Problem) -> Bound:
        case, network = problem.case, self._network(problem)
        engine, parameters, xp = self._engine, network.parameters, self._backend.xp
        X, Y = problem.X.T, problem.Y.T
        if case.task == "forward":
            output = Latest(lambda: engine.forward(parameters, X))
            return Bound(output, lambda: {"A": self._backend.to_numpy(output.value).T})
        if case.task == "step":
            gradients = Gradients(network.architecture, xp.empty_like(parameters.flat))
            J = Latest(lambda: engine.loss_and_gradients(parameters, X, Y, gradients))
            return Bound(J, lambda: named_step(case, J.value, [g for _, g in gradients.named()]))
        state, order = OptimizerState(ADAM, xp, parameters), None
        if self.device.kind == "cpu" or case.batch_size != case.m:
            order = self._backend.asarray(problem.order)
        J = Latest(lambda: engine.train_epoch(parameters, state, X, Y, None, order, case.batch_size))
        return Bound(J, lambda: named_epoch(problem, np.asarray(J.value), [parameters.flat]))


class Composed(Fused):
    """The engine of primitives, on the device's backend."""

    fused = False


class Numpy(Composed):
    """The engine of primitives, on the numpy backend."""

    backend = "numpy"
