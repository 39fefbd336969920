"""Primitives: arithmetic on the arrays of one kind of hardware. Every backend implements it; engines use nothing else.

- It knows no network, no training and no file.
- Every array argument is 2-D (n, m), a column a sample, in either memory order, contiguous or strided.
- `out`, where given, has the result's shape and dtype, may have any strides, and is returned. It must not overlap an
  input, except where a method says that it may.
- The dtype of the arrays decides the arithmetic: float32 stays float32, float64 stays float64; nothing is promoted.
- Every method here works for any array module; a backend overrides what it does faster, with the same signature.
- Importing a backend's module does no work: no thread, no compilation, no GPU context.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import numpy as np

from fusedmlp.engines.feeding import Feeder, all_finite
from fusedmlp.engines.options import clip_factor
from fusedmlp.model.activations import HIDDEN_ACTIVATIONS, Array
from fusedmlp.model.optimizers import OptimizerState
from fusedmlp.model.parameters import Gradients, Parameters


class Primitives(ABC):
    """Arrays and primitives of one kind of hardware: all that engines use of a backend.

    Attributes
    ----------
    name : str
        The name it is selected by.
    xp : module
        The array module: numpy, or one with the same functions.
    workspace_bytes : int
        The memory that a composed engine may use for activations at a time.
    precision : {"strict", "high", "medium"}
        What float32 products have at the least: float32 arithmetic, or a relative error of at most 2e-6 or 5e-4.
    converts_by_tile : bool
        Whether engines take X in the other floating-point type too, and convert it tile by tile.
    takes_sparse : bool
        Whether engines take X as a `SparseMatrix`; else a sparse X is made dense chunk by chunk.
    memory_errors : tuple of exception classes
        The exceptions of an allocation that may succeed after other memory was freed: engines then take smaller
        chunks.
    """

    name: ClassVar[str]
    precision: str = "strict"
    workspace_bytes: ClassVar[int] = 64 * 2**20
    converts_by_tile: ClassVar[bool] = False
    takes_sparse: ClassVar[bool] = False

    @property
    def memory_errors(self) -> tuple[type[BaseException], ...]:
        """None for host memory: a system that overcommits raises no error that an engine could react to."""
        return ()

    @property
    @abstractmethod
    def xp(self) -> Any:
        """The array module."""

    # Arrays ----------------------------------------------------------------------------------------------------------

    def owns(self, x: object) -> bool:
        """Whether `x` is an array of this backend's own kind, used where it is."""
        return isinstance(x, self.xp.ndarray)

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        """`x` as this backend's array: without a copy where it already is one of that dtype."""
        return self.xp.asarray(x, dtype=dtype)

    def to_numpy(self, x: Array) -> np.ndarray:
        """`x` in main memory: without a copy where it already is."""
        return np.asarray(x)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An uninitialised array in C order."""
        return self.xp.empty(shape, dtype=dtype)

    def synchronize(self) -> None:  # noqa: B027 - nothing to wait for, where calls return when they are done
        """Wait until every operation that was started has finished."""

    def all_finite(self, x: Array) -> bool:
        """Whether no element is NaN or infinite."""
        return all_finite(self.xp, x)

    def all_binary(self, x: Array) -> bool:
        """Whether every element is 0 or 1."""
        return bool(((x == 0) | (x == 1)).all())

    def take_samples(self, X: Array, samples: Array, room: Callable[[tuple[int, int]], Array]) -> Array:
        """A copy of the columns `samples` (k,) of X (n, m), each contiguous.

        The backend allocates the copy, or writes it into the array that `room` returns for the shape (k, n), C order.
        """
        return X.T[samples].T

    def permutations(self, generator: np.random.Generator | np.random.RandomState, m: int, count: int) -> np.ndarray:
        """Orders of m samples in host memory, shape (count, m), int64: ``generator.permutation(m)`` for each row."""
        orders = np.empty((count, m), np.int64)
        for row in orders:
            row[:] = generator.permutation(m)
        return orders

    def computing(self) -> AbstractContextManager[None]:
        """A context that engines enter around a series of primitives, for set-up that all of them share."""
        return nullcontext()

    # Memory ----------------------------------------------------------------------------------------------------------

    def fits(self, n_bytes: int) -> bool:
        """Whether samples of this size are placed on the device whole; else they stay in host memory (`HostMatrix`)."""
        return True

    def feeder(self) -> Feeder:
        """A feeder, which brings chunks of samples from host memory to the device; each engine has its own."""
        return Feeder(self.asarray)

    def free_bytes(self) -> int | None:
        """The bytes that can still be allocated on a device with memory of its own; None without such a device."""
        return None

    def release_memory(self) -> None:  # noqa: B027 - nothing is kept
        """Return freed memory that the backend keeps for reuse."""

    # Primitives ------------------------------------------------------------------------------------------------------

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """The product of a (n, k) and b (k, m), shape (n, m)."""
        if a.shape[1] == 1:  # an outer product: array modules have no fast path for it in matmul
            return self.xp.multiply(a, b, out=out)
        return self.xp.matmul(a, b, out=out)

    def activate(
        self,
        Z: Array,
        activation: str,
        bias: Array | None = None,
        out: Array | None = None,
        slope: Array | None = None,
    ) -> Array:
        """A = f(Z + b).

        Parameters
        ----------
        Z : array of shape (n, m)
        activation : str
            A key of `model.activations.HIDDEN_ACTIVATIONS`.
        bias : array of shape (n, 1), optional
        out : array of shape (n, m), optional
            May be `Z` itself.
        slope : array of shape (n, m), optional
            Receives f'(Z + b), for an activation that stores its slope (`Activation.stores_slope`).
        """
        row = HIDDEN_ACTIVATIONS[activation]
        out = self.empty(Z.shape, Z.dtype) if out is None else out
        if bias is not None:
            Z = self.xp.add(Z, bias, out=out)
        if slope is not None and row.slope is not None:
            slope[...] = row.slope(self.xp, Z)
        return row.value(self.xp, Z, out)

    def sigmoid(self, Z: Array, out: Array | None = None) -> Array:
        """A = 1 / (1 + exp(-Z)), shape (n, m); `out` may be `Z` itself."""
        return self.activate(Z, "sigmoid", out=out)

    def fused_backward(
        self, W: Array, dZ: Array, A: Array, activation: str = "sigmoid", out: Array | None = None
    ) -> Array:
        """The error one layer down: dZ_l = W_{l+1} dZ_{l+1} ⊙ f'(Z_l).

        Parameters
        ----------
        W : array of shape (n_in, n_out)
            The weights of the layer above.
        dZ : array of shape (n_out, m)
        A : array of shape (n_in, m)
            The activations of this layer; for an activation that stores its slope, the slope f'(Z_l) itself.
        activation : str
            A key of `model.activations.HIDDEN_ACTIVATIONS`.
        out : array of shape (n_in, m), optional
        """
        row = HIDDEN_ACTIVATIONS[activation]
        out = self.matmul(W, dZ, out=out)
        if row.derivative is None:
            out *= A
        elif activation != "identity":
            out *= row.derivative(self.xp, A)
        return out

    def take_step(
        self,
        state: OptimizerState,
        parameters: Parameters,
        gradients: Gradients,
        factor: float,
        decay: float,
        clip_norm: float | None = None,
    ) -> None:
        """Change the parameters by one step of an optimizer, along factor · gradients + decay · W.

        Parameters
        ----------
        state : OptimizerState
            Its step count goes up, its moments change.
        parameters : Parameters
        gradients : Gradients
            Sums over samples; what they hold afterwards is undefined.
        factor, decay : float
            As in `Gradients.scale`.
        clip_norm : float, optional
            As in `EpochOptions`.
        """
        gradients.scale(parameters, factor, decay)
        if clip_norm is not None:
            squares = self.xp.square(gradients.flat, dtype=np.float64)
            factor = clip_factor(float(self.xp.sqrt(squares.sum())), clip_norm)
            if factor < 1.0:
                gradients.flat[...] *= gradients.flat.dtype.type(factor)
        state.step(self.xp, parameters.flat, gradients.flat)
