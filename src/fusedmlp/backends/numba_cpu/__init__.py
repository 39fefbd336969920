"""Backend ``numba-cpu``: compiled, vectorised, multi-threaded primitives."""

from __future__ import annotations

from fusedmlp.architecture import Architecture
from fusedmlp.backends.numpy_backend import NumpyBackend
from fusedmlp.engine import ComposedEngine, Engine


class NumbaCpuBackend(NumpyBackend):
    """Backend ``numba-cpu``."""

    name = "numba-cpu"

    def engine(self, architecture: Architecture, fused: bool = True) -> Engine:
        """The composed engine."""
        return ComposedEngine(self, architecture)
