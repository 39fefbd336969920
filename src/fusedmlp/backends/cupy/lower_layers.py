"""LowerLayers: the hidden layers below the last one, forward and backward, with few passes over them.

relu, float32: cuBLASLt computes bias and relu in the product's epilogue and keeps a bit for every activation; in the
backward pass its epilogue sets dZ to 0 where the bit is not set and sums db. No pass is left. The other activations:
one pass after the product forward (``kernels/activations.cu``), and one backward (``kernels/lower_layer.cu``) that
also sums db, and computes W dZ itself where the layer above is narrow.

dZ takes the place of A, which nothing needs any more by then.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from weakref import WeakMethod

from fusedmlp.backends.cupy.cublaslt import Epilogue
from fusedmlp.backends.cupy.epilogue_products import mask_words
from fusedmlp.backends.cupy.gpu_primitives import GpuPrimitives
from fusedmlp.backends.cupy.launch import PACK_BYTES
from fusedmlp.backends.cupy.lower_layer import LowerLayer, width_of
from fusedmlp.backends.cupy.sums import ranges_of, sum_rows
from fusedmlp.model.activations import Array
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.parameters import Gradients, Parameters


def has_epilogue(architecture: Architecture) -> bool:
    """Whether cuBLASLt has epilogues for the activation and the dtype: relu, float32."""
    return architecture.hidden_activation == "relu" and architecture.dtype == "float32"


class LowerLayers:
    """The hidden layers below the last one. A_l.T is (m, n_l) in C order, a row per sample.

    Parameters
    ----------
    backend : GpuPrimitives
    architecture : Architecture
    buffer : bound method
        Returns reused memory for a name and a shape (rows, columns); of the engine that owns this object.

    Attributes
    ----------
    routes : dict of str -> str
        How the latest pass computed "A1", "dZ1" and so on: "epilogue" (of the product), "pass" (after the product) or
        "kernel" (one pass that computes the product as well).
    """

    def __init__(
        self, backend: GpuPrimitives, architecture: Architecture, buffer: Callable[[str, tuple[int, int]], Array]
    ) -> None:
        self._backend, self._architecture = backend, architecture
        # Weakly: a cycle would keep the memory of an engine that is gone.
        self._buffer_of = WeakMethod(buffer)
        self._activation = architecture.hidden_activation
        self._kernel = LowerLayer(backend.launcher, self._activation, architecture.dtype)
        self._masks: dict[int, Array] = {}
        self.routes: dict[str, str] = {}

    @property
    def _buffer(self) -> Callable[[str, tuple[int, int]], Array]:
        buffer = self._buffer_of()
        assert buffer is not None
        return buffer

    @property
    def hides_nan(self) -> bool:
        """Whether NaN in the weights may give finite outputs: relu in an epilogue may make 0 of it."""
        return "epilogue" in self.routes.values()

    def rows(self, name: str, m: int, n: int) -> Array:
        """A buffer (m, n) in C order. Each row starts on a multiple of 16 bytes, for accesses of 16 bytes."""
        pack = PACK_BYTES // self._architecture.itemsize
        return self._buffer(name, (m, -(-n // pack) * pack))[:, :n]

    def forward(self, parameters: Parameters, X: Array, keep_masks: bool) -> list[Array]:
        """[A_0 = X, A_1, ...] below the last hidden layer.

        Parameters
        ----------
        parameters : Parameters
        X : array of shape (n_0, m)
        keep_masks : bool
            Whether `backward` follows.
        """
        A = [X]
        self._masks.clear()
        for layer, W in enumerate(parameters.weights[:-2]):
            # sum_rows.cu, which sums db of the identity, takes rows without gaps.
            room = self._buffer if self._activation == "identity" else self._padded
            out, b = room(f"A{layer + 1}", (X.shape[1], W.shape[1])), parameters.bias(layer)
            if self._by_epilogue(layer + 1, W, A[-1], out.T, b, keep_masks):
                route = "epilogue"
            else:
                self._backend.matmul(A[-1].T, W, out=out)
                self._backend.activate(out.T, self._activation, b, out=out.T)
                route = "pass"
            self.routes[f"A{layer + 1}"] = route
            A.append(out.T)
        return A

    def backward(self, parameters: Parameters, layer: int, A: Array, dZ: Array, gradients: Gradients) -> Array:
        """dZ_l over A_l, and its sums over the samples into db_l.

        Parameters
        ----------
        parameters : Parameters
        layer : int
            l, from 1 on.
        A : array of shape (n_l, m)
            From the `forward` pass before.
        dZ : array of shape (n_{l+1}, m)
            Of the layer above.
        gradients : Gradients
        """
        W, b = parameters.weights[layer], gradients.bias(layer - 1)
        db = None if b is None else b.reshape(-1)
        if self._derivative_by_epilogue(layer, W, dZ, A, db):
            route = "epilogue"
        elif self._activation == "identity":
            self._backend.matmul(W, dZ, out=A)
            if db is not None:
                self._sum_samples(A, db)
            route = "pass"
        elif width_of(W.shape[1]) is not None:
            self._kernel.backward(A.T, db, partial(self._buffer, "sums"), W=W, above=dZ.T)
            route = "kernel"
        else:
            dA = self.rows("dA", A.shape[1], A.shape[0])
            self._backend.matmul(W, dZ, out=dA.T)
            self._kernel.backward(A.T, db, partial(self._buffer, "sums"), dA=dA)
            route = "pass"
        self.routes[f"dZ{layer}"] = route
        return A

    def _padded(self, name: str, shape: tuple[int, int]) -> Array:
        return self.rows(name, *shape)

    def _by_epilogue(self, layer: int, W: Array, A: Array, out: Array, b: Array | None, keep_mask: bool) -> bool:
        """relu(Wᵀ A + b) by cuBLASLt, with its mask if that is wanted and there is an algorithm."""
        if not has_epilogue(self._architecture):
            return False
        multiply = partial(self._backend.epilogues.multiply, a=W.T, b=A, out=out, precision=self._backend.precision)
        bias = None if b is None else b.reshape(-1)
        if keep_mask:
            mask = self._buffer(f"mask{layer}", (out.shape[1], mask_words(out.shape[0])))
            epilogue = Epilogue.RELU_AUX if b is None else Epilogue.RELU_AUX_BIAS
            if multiply(epilogue, bias=bias, mask=mask):
                self._masks[layer] = mask
                return True
        return multiply(Epilogue.RELU if b is None else Epilogue.RELU_BIAS, bias=bias)

    def _derivative_by_epilogue(self, layer: int, W: Array, dZ: Array, out: Array, db: Array | None) -> bool:
        """W dZ where the mask is set, else 0, and its sums, by cuBLASLt."""
        mask = self._masks.pop(layer, None)  # a mask that is kept would keep a chunk's memory
        if mask is None:
            return False
        epilogue = Epilogue.DRELU if db is None else Epilogue.DRELU_BGRAD
        return self._backend.epilogues.multiply(epilogue, W, dZ, out, self._backend.precision, db, mask)

    def _sum_samples(self, dZ: Array, out: Array) -> None:
        """Write Σ over the samples of dZ (n, m), in Fortran order without gaps, into `out` (n,)."""
        n, m = dZ.shape
        rows, launcher = dZ.T, self._backend.launcher
        if (ranges := ranges_of(m)) > 1:
            partial_sums = self._buffer("sums", (ranges, n))
            sum_rows(launcher, rows, partial_sums)
            rows = partial_sums
        sum_rows(launcher, rows, out)
