"""The operations that are measured, each with its operands, call, exact result, flops and bytes.

Operands lie as they do in a training: X (n1, m) is the transpose of a table with a row per sample, Z1, A1 and dZ of a
sample lie in rows of C-contiguous (n, m) arrays.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from bench import exact, operands
from bench.grid import Shape
from fusedmlp import Adam, Network, Parameters
from fusedmlp.backends.base import Backend
from fusedmlp.model.optimizers import OptimizerState
from fusedmlp.model.parameters import Gradients


@dataclass(frozen=True)
class Bound:
    """An operation on a backend's arrays.

    Attributes
    ----------
    call : callable
        Runs the operation, without waiting for it.
    result : callable
        The results of the latest call, by name, in numpy.
    engine : str or None
        `Engine.kind`, where an engine runs.
    """

    call: Callable[[], Any]
    result: Callable[[], dict[str, np.ndarray]]
    engine: str | None = None


class Operation(ABC):
    """One thing to measure, at one shape.

    Attributes
    ----------
    name : str
    flops : int or None
        Additions and multiplications; exponentials are not counted, None where there is nothing else.
    bytes_moved : int
        Every operand and result once. A backend that stores intermediate results moves more.
    operand_bytes : int
        Size of the operands and results.
    reduces : bool
        Whether results are sums over the samples, whose rounding errors grow with m.
    """

    name: ClassVar[str]
    reduces: ClassVar[bool] = False

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    @property
    @abstractmethod
    def flops(self) -> int | None: ...

    @property
    @abstractmethod
    def bytes_moved(self) -> int: ...

    @property
    def operand_bytes(self) -> int:
        return self.bytes_moved

    @abstractmethod
    def bind(self, backend: Backend) -> Bound:
        """The operation on `backend`, its operands in place."""

    @abstractmethod
    def expected(self) -> dict[str, np.ndarray]:
        """The right value of `Bound.result`, in float64."""


class PerSample(Operation):
    """An operation whose result has a column per sample: some columns are enough for a check."""

    output: ClassVar[str]

    def columns(self) -> np.ndarray:
        return operands.checked_samples(self.shape.m)

    def bound(self, backend: Backend, call: Callable[[], Any], engine: str | None = None) -> Bound:
        """`call` returns the output; the latest is kept for the check."""
        latest: list[Any] = [None]

        def run() -> None:
            latest[0] = call()

        return Bound(run, lambda: {self.output: backend.to_numpy(latest[0])[:, self.columns()]}, engine)


class Matmul(PerSample):
    """Z1 = W1ᵀ X."""

    name, output = "matmul", "Z1"

    @property
    def flops(self) -> int:
        s = self.shape
        return 2 * s.n1 * s.n2 * s.m

    @property
    def bytes_moved(self) -> int:
        s = self.shape
        return (s.n1 * s.n2 + s.n1 * s.m + s.n2 * s.m) * s.itemsize

    def bind(self, backend: Backend) -> Bound:
        W1 = backend.asarray(operands.parameters(self.shape).weights[0])
        X = backend.asarray(operands.samples(self.shape).X)
        out = backend.empty((self.shape.n2, self.shape.m), self.shape.dtype)
        return self.bound(backend, lambda: backend.matmul(W1.T, X, out=out))

    def expected(self) -> dict[str, np.ndarray]:
        W1, X = operands.parameters(self.shape).weights[0], operands.samples(self.shape).X[:, self.columns()]
        return {"Z1": exact.doubles(W1).T @ exact.doubles(X)}


class Sigmoid(PerSample):
    """A1 = 1 / (1 + exp(-Z1))."""

    name, output = "sigmoid", "A1"
    flops = None

    @property
    def bytes_moved(self) -> int:
        return 2 * self.shape.n2 * self.shape.m * self.shape.itemsize

    def bind(self, backend: Backend) -> Bound:
        Z = backend.asarray(operands.logits(self.shape))
        out = backend.empty(Z.shape, self.shape.dtype)
        return self.bound(backend, lambda: backend.sigmoid(Z, out=out))

    def expected(self) -> dict[str, np.ndarray]:
        sigmoid, _ = exact.oracle.ACTIVATIONS["sigmoid"]
        return {"A1": sigmoid(exact.doubles(operands.logits(self.shape)[:, self.columns()]))}


class FusedBackward(PerSample):
    """dZ1 = W2 dZ2 ⊙ A1 (1 - A1)."""

    name, output = "fused_backward", "dZ1"

    @property
    def flops(self) -> int:
        s = self.shape
        return (2 * s.n3 - 1 + 3) * s.n2 * s.m  # W2 dZ2; 1 - A1, times A1, times the product

    @property
    def bytes_moved(self) -> int:
        s = self.shape
        return (s.n2 * s.n3 + s.n3 * s.m + 2 * s.n2 * s.m) * s.itemsize

    def bind(self, backend: Backend) -> Bound:
        W2, dZ2, A1 = (backend.asarray(x) for x in operands.backward(self.shape))
        out = backend.empty(A1.shape, self.shape.dtype)
        return self.bound(backend, lambda: backend.fused_backward(W2, dZ2, A1, out=out))

    def expected(self) -> dict[str, np.ndarray]:
        W2, dZ2, A1 = operands.backward(self.shape)
        A1 = exact.doubles(A1[:, self.columns()])
        return {"dZ1": exact.doubles(W2) @ exact.doubles(dZ2[:, self.columns()]) * A1 * (1 - A1)}


SIGMOID_AND_LOSS = "sigmoid", "binary_cross_entropy"


def _layers(shape: Shape) -> list[np.ndarray]:
    """W1, b1, W2, b2 with biases of shape (n,)."""
    drawn = operands.parameters(shape)
    return [x for W, b in zip(drawn.weights, drawn.biases, strict=True) for x in (W, b.reshape(-1))]


def _flat(gradients: list[np.ndarray]) -> np.ndarray:
    """Arrays of W1, b1, W2, b2 in the order of `Parameters.flat`."""
    return np.concatenate([np.ravel(g) for g in gradients])


@lru_cache(maxsize=1)
def _loss_and_gradients(shape: Shape) -> tuple[float, list[np.ndarray]]:
    X, Y = operands.samples(shape)
    return exact.loss_and_gradients(_layers(shape), X.T, Y.T, *SIGMOID_AND_LOSS)


class _Pass(Operation):
    """An engine's pass through the network n1-n2-n3: sigmoid hidden units, binary cross-entropy."""

    @property
    def _operand_numbers(self) -> int:
        s = self.shape
        return (s.n1 + s.n3) * s.m + operands.architecture(s).n_parameters

    @property
    def operand_bytes(self) -> int:
        return self._operand_numbers * self.shape.itemsize

    def network(self, backend: Backend) -> Network:
        drawn = operands.parameters(self.shape)
        return Network.from_parameters(Parameters(drawn.architecture, drawn.flat.copy()), backend=backend)

    def samples(self, backend: Backend) -> tuple[Any, Any]:
        samples = operands.samples(self.shape)
        return backend.asarray(samples.X), backend.asarray(samples.Y)


class Forward(_Pass, PerSample):
    """A2 = σ(W2ᵀ σ(W1ᵀ X + b1) + b2)."""

    name, output = "forward", "A2"

    @property
    def flops(self) -> int:
        s = self.shape
        return 2 * s.m * (s.n1 * s.n2 + s.n2 * s.n3)

    @property
    def bytes_moved(self) -> int:
        return self.operand_bytes

    def bind(self, backend: Backend) -> Bound:
        network, (X, _) = self.network(backend), self.samples(backend)
        engine = network.engine
        return self.bound(backend, lambda: engine.forward(network.parameters, X), engine.kind)

    def expected(self) -> dict[str, np.ndarray]:
        X = operands.samples(self.shape).X[:, self.columns()]
        return {"A2": exact.forward(_layers(self.shape), X.T, *SIGMOID_AND_LOSS).T}


class _Training(_Pass):
    """The common part of both kinds of training step."""

    reduces = True

    @property
    def flops(self) -> int:
        s = self.shape
        return 2 * s.m * (2 * s.n1 * s.n2 + 3 * s.n2 * s.n3)  # Z1, Z2; dW2, W2 dZ2, dW1


class LossAndGradients(_Training):
    """J, dW1, db1, dW2, db2 of all m samples."""

    name = "loss_and_gradients"

    @property
    def bytes_moved(self) -> int:
        return (self._operand_numbers + operands.architecture(self.shape).n_parameters) * self.shape.itemsize

    def bind(self, backend: Backend) -> Bound:
        network, (X, Y) = self.network(backend), self.samples(backend)
        engine, parameters = network.engine, network.parameters
        gradients = Gradients(network.architecture, backend.xp.empty_like(parameters.flat))
        J = [np.nan]

        def call() -> None:
            J[0] = engine.loss_and_gradients(parameters, X, Y, gradients)

        def result() -> dict[str, np.ndarray]:
            named = {f"d{name}": backend.to_numpy(value) for name, value in gradients.named()}
            return {"J": np.array(J[0], dtype=self.shape.dtype), **named}

        return Bound(call, result, engine.kind)

    def expected(self) -> dict[str, np.ndarray]:
        J, (dW1, db1, dW2, db2) = _loss_and_gradients(self.shape)
        return {"J": np.array(J), "dW1": dW1, "db1": db1[:, None], "dW2": dW2, "db2": db2[:, None]}


class AdamStep(_Training):
    """One training step: `train_epoch` with all m samples in one batch, gradients and the update by Adam.

    It starts as the tenth step of a training whose moments have the gradient's size: a first step is the sign of the
    gradient, which rounding decides wherever the gradient is close to 0.
    """

    name = "adam_step"
    adam = Adam(learning_rate=0.01)
    steps_before = 9

    @property
    def bytes_moved(self) -> int:
        # Parameters, m and v are read and written.
        return (self._operand_numbers + 5 * operands.architecture(self.shape).n_parameters) * self.shape.itemsize

    def bind(self, backend: Backend) -> Bound:
        network, (X, Y) = self.network(backend), self.samples(backend)
        engine, parameters = network.engine, network.parameters
        state = OptimizerState(self.adam, backend.xp, parameters)
        state.t = self.steps_before
        for name, value in self.moments().items():
            state.moments[name][...] = backend.asarray(value, dtype=self.shape.dtype)
        before = operands.parameters(self.shape).flat
        J = [np.nan]

        def call() -> None:
            J[0] = engine.train_epoch(parameters, state, X, Y, None, None, self.shape.m)

        def result() -> dict[str, np.ndarray]:
            step = exact.doubles(backend.to_numpy(parameters.flat)) - before
            return {"J": np.array(J[0], dtype=self.shape.dtype), "step": step.astype(self.shape.dtype)}

        return Bound(call, result, engine.kind)

    def expected(self) -> dict[str, np.ndarray]:
        J, gradients = _loss_and_gradients(self.shape)
        moments = [exact.doubles(x) for x in self.moments().values()]
        step, _, _ = exact.adam_step(0.0, _flat(gradients), *moments, self.steps_before + 1, self.adam)
        return {"J": np.array(J), "step": step}

    def moments(self) -> dict[str, np.ndarray]:
        """Moments of the gradient's size, in the shape's dtype: m is normal, v is its mean square."""
        g = _flat(_loss_and_gradients(self.shape)[1])
        size = np.sqrt(np.mean(g * g))
        m = size * np.random.default_rng(4).standard_normal(g.size)
        return {"m": m.astype(self.shape.dtype), "v": np.full(g.size, size * size).astype(self.shape.dtype)}


OPERATIONS: tuple[type[Operation], ...] = (Matmul, Sigmoid, FusedBackward, Forward, LossAndGradients, AdamStep)
