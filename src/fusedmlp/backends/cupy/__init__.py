"""Backend ``cupy``: cuBLAS for the products, the project's own CUDA kernels around them.

Importing this package imports no CuPy and touches no GPU.
"""

from __future__ import annotations

from fusedmlp.backends.cupy.backend import CupyBackend

__all__ = ["CupyBackend"]
