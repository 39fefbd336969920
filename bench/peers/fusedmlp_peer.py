"""The package's own engines."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

import fusedmlp
from bench.peers.cases import ADAM, Problem
from bench.peers.peer import Bound, Latest, Peer, named_step
from fusedmlp import Gradients, Parameters, get_backend
from fusedmlp.model.optimizers import OptimizerState


class _Engine(Peer):
    """X and Y are views of tables with a row per sample, as an estimator passes them."""

    module = "fusedmlp"
    ours = True
    backend: ClassVar[str] = "numba-cpu"
    fused: ClassVar[bool] = False

    def __init__(self, threads: int) -> None:
        self._backend = get_backend(self.backend)

    def versions(self) -> str:
        return f"fusedmlp {fusedmlp.__version__}, {self._backend.describe()['versions']}"

    def bind(self, problem: Problem) -> Bound:
        case = problem.case
        engine = self._backend.engine(case.architecture, fused=self.fused)
        expected = "fused" if self.fused else "composed"
        if engine.kind != expected:
            raise RuntimeError(f"expected the {expected} engine; got {engine.kind}")
        X, Y = problem.X.T, problem.Y.T
        parameters = Parameters(case.architecture, problem.flat.copy())
        if case.task == "forward":
            output = Latest(lambda: engine.forward(parameters, X))
            return Bound(output, lambda: {"A": output.value.T})
        if case.task == "step":
            gradients = Gradients(case.architecture, np.empty_like(problem.flat))
            J = Latest(lambda: engine.loss_and_gradients(parameters, X, Y, gradients))
            squeezed = (g.reshape(-1) if name.startswith("b") else g for name, g in gradients.named())
            arrays = list(squeezed)
            return Bound(J, lambda: named_step(problem, J.value, arrays))
        state = OptimizerState(ADAM, np, parameters)
        J = Latest(
            lambda: engine.train_epoch(parameters, state, X, Y, None, problem.order, problem.case.batch_size or case.m)
        )
        return Bound(J, lambda: {"J": np.asarray(J.value), "change": parameters.flat.astype(np.float64) - problem.flat})


class Fused(_Engine):
    """numba-cpu's fused engine."""

    name = "fused"
    fused = True


class Composed(_Engine):
    """numba-cpu's primitives."""

    name = "composed"


class Numpy(_Engine):
    """The numpy backend: the same passes by numpy."""

    name = "numpy"
    backend = "numpy"
