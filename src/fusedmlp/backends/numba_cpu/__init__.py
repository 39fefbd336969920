"""Backend ``numba-cpu``: compiled, vectorised, multi-threaded primitives on numpy arrays."""

from fusedmlp.backends.numba_cpu.backend import NumbaCpuBackend

__all__ = ["NumbaCpuBackend"]
