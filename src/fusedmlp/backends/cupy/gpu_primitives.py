"""GpuPrimitives: arrays on the current NVIDIA GPU, and the primitives that engines are made of.

Engines use this class and never the backend: `backend.CupyBackend` derives from it and adds the choice of an engine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from fusedmlp.backends.cupy import device_memory
from fusedmlp.backends.cupy.cublas_products import LARGEST, CublasProducts
from fusedmlp.backends.cupy.cuda_tables import CUDA_ACTIVATIONS
from fusedmlp.backends.cupy.epilogue_products import EpilogueProducts
from fusedmlp.backends.cupy.launch import Launcher, Operand, check_matrix, fitting
from fusedmlp.backends.cupy.optimizer_step import OptimizerStep
from fusedmlp.backends.cupy.streaming import StreamedFeeder
from fusedmlp.checks import check_choice
from fusedmlp.engines.feeding import Feeder
from fusedmlp.engines.primitives import Primitives
from fusedmlp.model.activations import HIDDEN_ACTIVATIONS, Array
from fusedmlp.model.optimizers import OptimizerState
from fusedmlp.model.parameters import Gradients, Parameters

_WIDTHS = (1, 4, 16)
"""The numbers of outputs that fused_backward.cu is compiled for; a layer takes the smallest that is large enough."""


class GpuPrimitives(Primitives):
    """Products by cuBLAS, other primitives by ``kernels/*.cu``, on the current GPU and the current stream.

    Arrays that are already on a GPU, CuPy's own or any with ``__cuda_array_interface__`` (PyTorch, numba), are used
    where they are, and results stay there.

    Attributes
    ----------
    resident_bytes : int, optional
        How much of the GPU's memory X, Y and weights may take. If they need more, they stay in host memory and are fed
        in chunks. None: 40 % of what is free at the time.
    """

    # Large enough that launches cost nothing beside the work, small enough for a GPU of 4 GB. It does not depend on the
    # memory that happens to be free: sums over chunks depend on their size, and the same seed must give the same bits.
    workspace_bytes = 2**30
    resident_bytes: int | None = None

    @property
    def xp(self) -> Any:
        """cupy."""
        import cupy

        return cupy

    @cached_property
    def launcher(self) -> Launcher:
        """Compiles and launches the kernels."""
        return Launcher(self.xp)

    @cached_property
    def products(self) -> CublasProducts:
        """Products by cuBLAS."""
        return CublasProducts(self.xp)

    @cached_property
    def epilogues(self) -> EpilogueProducts:
        """Products with an epilogue by cuBLASLt."""
        return EpilogueProducts(self.xp, self.products)

    @cached_property
    def optimizer_step(self) -> OptimizerStep:
        """Launches the optimizers' kernels."""
        return OptimizerStep(self.launcher, self.xp)

    # Arrays ----------------------------------------------------------------------------------------------------------

    def owns(self, x: object) -> bool:
        """Whether `x` is an array on a GPU."""
        return isinstance(x, self.xp.ndarray) or hasattr(x, "__cuda_array_interface__")

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        """`x` on the GPU, in its own memory order; not copied if it is there already, in that dtype."""
        # blocking: callers may change their array as soon as this returns.
        return self.xp.asarray(x, dtype=dtype, blocking=True)

    def to_numpy(self, x: Array) -> np.ndarray:
        """`x` in host memory, in its own memory order."""
        return self.xp.asnumpy(x, order="A")

    def synchronize(self) -> None:
        """Wait for the current stream."""
        self.xp.cuda.get_current_stream().synchronize()

    def take_samples(self, X: Array, samples: Array, room: Callable[[tuple[int, int]], Array]) -> Array:
        """A copy of some columns of X, each contiguous, in memory from `room`: a step allocates nothing."""
        return X.T.take(samples, axis=0, out=room((len(samples), X.shape[0]))).T

    # Memory ----------------------------------------------------------------------------------------------------------

    @property
    def memory_errors(self) -> tuple[type[BaseException], ...]:
        """CuPy's out-of-memory error."""
        return (self.xp.cuda.memory.OutOfMemoryError,)

    def fits(self, n_bytes: int) -> bool:
        """Whether samples of so many bytes are put on the GPU whole."""
        if self.resident_bytes is not None:
            return n_bytes <= self.resident_bytes
        return n_bytes <= device_memory.RESIDENT_SHARE * self.free_bytes()

    def feeder(self) -> Feeder:
        """A feeder with pinned memory, a stream for copies, and threads that gather samples."""
        return StreamedFeeder(self.xp)

    def free_bytes(self) -> int:
        """The free memory of the current GPU, that of CuPy's pool included."""
        return device_memory.free_bytes(self.xp)

    def release_memory(self) -> None:
        """Give back the free blocks of CuPy's pool."""
        device_memory.release(self.xp)

    # Primitives ------------------------------------------------------------------------------------------------------

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """The product of a (n, k) and b (k, m), shape (n, m), by cuBLAS, at the backend's precision.

        Either memory order, and lines with gaps between them, are read and written in place.
        """
        cupy = self.xp
        check_matrix(cupy, "a", a)
        check_matrix(cupy, "b", b, dtype=a.dtype)
        if a.shape[1] != b.shape[0]:
            raise ValueError(f"matmul: expected a (n, k) and b (k, m); got a {a.shape} and b {b.shape}")
        if max(*a.shape, *b.shape) > LARGEST:
            raise ValueError(f"matmul: expected axes of at most 2³¹ - 1 elements; got a {a.shape} and b {b.shape}")
        shape = a.shape[0], b.shape[1]
        if out is None:
            out = self.empty(shape, a.dtype)
        else:
            check_matrix(cupy, "out", out, shape, a.dtype, written=True)
        self.products.gemm(a, b, out, self.precision)
        return out

    def activate(
        self,
        Z: Array,
        activation: str,
        bias: Array | None = None,
        out: Array | None = None,
        slope: Array | None = None,
    ) -> Array:
        """A = f(Z + b) in one pass (``kernels/activations.cu``); arguments as in the base class.

        An activation without a CUDA function (`cuda_tables.CUDA_ACTIVATIONS`) is computed by CuPy's own functions.
        """
        if check_choice("activation", activation, HIDDEN_ACTIVATIONS) not in CUDA_ACTIVATIONS:
            return super().activate(Z, activation, bias, out, slope)
        out = self.empty(Z.shape, Z.dtype) if out is None else out
        self.launcher.launch(
            "activations.cu",
            f"activate_{activation}",
            walked=[("Z", Z), ("out", out)],
            operands=[Operand("bias", bias, (Z.shape[0], 1))],
        )
        return out

    def fused_backward(
        self, W: Array, dZ: Array, A: Array, activation: str = "sigmoid", out: Array | None = None
    ) -> Array:
        """W dZ ⊙ f'(A) (``kernels/fused_backward.cu``); arguments as in the base class.

        One pass for up to 16 outputs; for more, cuBLAS and a pass in place. An activation without a CUDA function is
        computed by cuBLAS and CuPy's own functions.
        """
        if check_choice("activation", activation, HIDDEN_ACTIVATIONS) not in CUDA_ACTIVATIONS:
            return super().fused_backward(W, dZ, A, activation, out)
        n_in, n_out, m = W.shape[0], W.shape[-1], A.shape[-1]
        out = self.empty((n_in, m), W.dtype) if out is None else out
        walked = [("A", A), ("out", out)]
        width = fitting(_WIDTHS, n_out)
        if activation == "identity":  # f' = 1
            self.matmul(W, dZ, out=out)
        elif width is None:
            self.matmul(W, dZ, out=out)
            self.launcher.launch("fused_backward.cu", f"times_derivative_{activation}", walked)
        else:
            self.launcher.launch(
                "fused_backward.cu",
                f"fused_backward_{width}_{activation}",
                walked,
                operands=[Operand("W", W, (n_in, n_out)), Operand("dZ", dZ, (n_out, m))],
                scalars=[np.int32(n_out)],
            )
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
        """A step by ``kernels/optimizer.cu`` for every rule of this package; arguments as in the base class.

        One launch, and two more with `clip_norm`. An optimizer without a rule steps by its own `update`.
        """
        if not OptimizerStep.covers(state.optimizer):
            super().take_step(state, parameters, gradients, factor, decay, clip_norm)
            return
        state.t += 1
        self.optimizer_step.launch(state, parameters, gradients, factor, decay, clip_norm)
