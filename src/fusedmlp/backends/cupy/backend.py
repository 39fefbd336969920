"""CupyBackend: the primitives on an NVIDIA GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from fusedmlp.backends.base import PRECISIONS, Backend
from fusedmlp.backends.cupy import kernel_sources, memory, narrow_engine
from fusedmlp.backends.cupy.hidden_layer import covers
from fusedmlp.backends.cupy.launch import Launcher, Operand, check_matrix, fitting
from fusedmlp.backends.cupy.middle_engine import MiddleEngine
from fusedmlp.backends.cupy.narrow_engine import NarrowEngine
from fusedmlp.backends.cupy.optimizer_step import OptimizerStep
from fusedmlp.backends.cupy.probe import find_reason, gigabytes, version_text
from fusedmlp.backends.cupy.products import LARGEST, Products
from fusedmlp.checks import check_choice
from fusedmlp.engines.base import Engine
from fusedmlp.engines.composed import ComposedEngine
from fusedmlp.engines.feeding import Feeder
from fusedmlp.model.activations import HIDDEN_ACTIVATIONS, Array
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.optimizers import OptimizerState
from fusedmlp.model.parameters import Gradients, Parameters

_KERNELS = ("sigmoid", "tanh", "relu", "identity")
"""The activations that have CUDA code; others run composed, from array operations."""
_WIDTHS = (1, 4, 16)
"""The numbers of outputs that fused_backward.cu is compiled for: the smallest that holds n_out is taken."""


class CupyBackend(Backend):
    """Backend ``cupy``: arrays on the current NVIDIA GPU, products by cuBLAS, the rest by ``kernels/*.cu``.

    Arrays that are already on a GPU, CuPy's own or any with ``__cuda_array_interface__`` (PyTorch, numba), are used
    where they are, and results stay there.

    Attributes
    ----------
    resident_bytes : int, optional
        What X, Y and weights may take of the GPU's memory; such as take more stay in main memory and are fed in chunks.
        None: 40 % of what is free at the time.
    """

    name = "cupy"
    # Large enough that launches cost nothing beside the work, small enough for a GPU of 4 GB. Not taken from the memory
    # that happens to be free: sums over chunks depend on their size, and the same seed has to give the same bits.
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
    def products(self) -> Products:
        """Products by cuBLAS."""
        return Products(self.xp)

    def at_precision(self, precision: str) -> CupyBackend:
        """This backend with products at `precision`; kernels and cuBLAS's handles are shared."""
        return self._at_precision[check_choice("precision", precision, PRECISIONS)]

    @cached_property
    def _at_precision(self) -> dict[str, CupyBackend]:
        siblings = {}
        _ = self.launcher, self.products, self.optimizer_step  # made before they are shared
        for precision in PRECISIONS:
            siblings[precision] = self if precision == self.precision else copy.copy(self)
            siblings[precision].precision = precision
            siblings[precision].__dict__["_at_precision"] = siblings
        return siblings

    @classmethod
    def unavailable_reason(cls) -> str | None:
        """Why this machine cannot run it; None only after a product and a kernel gave the right numbers here."""
        return find_reason(cls)

    def describe(self) -> dict[str, str]:
        """Device, memory, driver, versions and the hashes of the kernels."""
        runtime = self.xp.cuda.runtime
        device = runtime.getDevice()
        properties = runtime.getDeviceProperties(device)
        free, total = runtime.memGetInfo()
        name = properties["name"]
        name = name.decode() if isinstance(name, bytes) else name
        return {
            "device": f"GPU {device}, {name}, compute capability {properties['major']}.{properties['minor']}",
            "memory": f"{gigabytes(free)} of {gigabytes(total)} free",
            "driver": f"for CUDA {version_text(runtime.driverGetVersion())}",
            "BLAS": f"cuBLAS {self.products.version()}",
            "precision": self.precision,
            "versions": f"cupy {self.xp.__version__}, CUDA runtime {version_text(runtime.runtimeGetVersion())}",
            "kernels": ", ".join(f"{file} {digest[:8]}" for file, digest in kernel_sources.hashes().items()),
        }

    # Arrays ----------------------------------------------------------------------------------------------------------

    def owns(self, x: object) -> bool:
        """Whether `x` is an array on a GPU."""
        return isinstance(x, self.xp.ndarray) or hasattr(x, "__cuda_array_interface__")

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        """`x` on the GPU: without a copy where it already is there in that dtype, in the memory order that it has."""
        # blocking: the caller may change his array as soon as this returns.
        return self.xp.asarray(x, dtype=dtype, blocking=True)

    def to_numpy(self, x: Array) -> np.ndarray:
        """`x` in main memory, in the memory order that it has."""
        return self.xp.asnumpy(x, order="A")

    def synchronize(self) -> None:
        """Wait for the current stream."""
        self.xp.cuda.get_current_stream().synchronize()

    def take_samples(self, X: Array, samples: Array, room: Callable[[tuple[int, int]], Array]) -> Array:
        """A copy of some columns of X, each contiguous, in memory that `room` gives: a step allocates nothing."""
        return X.T.take(samples, axis=0, out=room((len(samples), X.shape[0]))).T

    # Memory ----------------------------------------------------------------------------------------------------------

    @property
    def memory_errors(self) -> tuple[type[BaseException], ...]:
        """CuPy's."""
        return (self.xp.cuda.memory.OutOfMemoryError,)

    def fits(self, n_bytes: int) -> bool:
        """Whether samples of so many bytes go onto the GPU whole."""
        if self.resident_bytes is not None:
            return n_bytes <= self.resident_bytes
        return n_bytes <= memory.RESIDENT_SHARE * self.free_bytes()

    def feeder(self) -> Feeder:
        """Pinned memory, a stream for copies, and threads that gather."""
        from fusedmlp.backends.cupy.streaming import StreamedFeeder

        return StreamedFeeder(self.xp)

    def free_bytes(self) -> int:
        """Of the current GPU, with what CuPy's pool could give."""
        return memory.free_bytes(self.xp)

    def release_memory(self) -> None:
        """Give the free blocks of CuPy's pool back."""
        memory.release(self.xp)

    # Primitives ------------------------------------------------------------------------------------------------------

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """The product of a (n, k) and b (k, m), shape (n, m), by cuBLAS (`Products.gemm`), at the backend's precision.

        Either memory order, and lines with gaps between them, are read and written where they are.
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
        """A = f(Z + b) in one pass (``kernels/sigmoid.cu``); arguments as in the base class."""
        if check_choice("activation", activation, HIDDEN_ACTIVATIONS) not in _KERNELS:
            return super().activate(Z, activation, bias, out, slope)
        out = self.empty(Z.shape, Z.dtype) if out is None else out
        self.launcher.launch(
            "sigmoid.cu",
            f"activate_{activation}",
            walked=[("Z", Z), ("out", out)],
            operands=[Operand("bias", bias, (Z.shape[0], 1))],
        )
        return out

    def fused_backward(
        self, W: Array, dZ: Array, A: Array, activation: str = "sigmoid", out: Array | None = None
    ) -> Array:
        """W dZ ⊙ f'(A) (``kernels/fused_backward.cu``); arguments as in the base class.

        One pass for up to 16 outputs (rank 1 for a single one); cuBLAS and an in-place pass for more.
        """
        if check_choice("activation", activation, HIDDEN_ACTIVATIONS) not in _KERNELS:
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
        """One launch (``kernels/optimizer.cu``) for the optimizers of this package; arguments as in the base class."""
        if clip_norm is not None or not OptimizerStep.covers(state.optimizer):
            super().take_step(state, parameters, gradients, factor, decay, clip_norm)
            return
        state.t += 1
        self.optimizer_step.launch(state, parameters, gradients, factor, decay)

    @cached_property
    def optimizer_step(self) -> OptimizerStep:
        """Launches the optimizers' kernels."""
        return OptimizerStep(self.launcher)

    # Passes ----------------------------------------------------------------------------------------------------------

    def engine(self, architecture: Architecture, fused: bool = True) -> Engine:
        """The fused engine whose kernels cover the network, the composed one for others or with ``fused=False``."""
        fused = fused and architecture.hidden_activation in _KERNELS
        if fused and (variant := narrow_engine.variant(self, architecture)):
            return NarrowEngine(self, architecture, variant)
        if fused and covers(architecture):
            return MiddleEngine(self, architecture)
        return ComposedEngine(self, architecture)
