"""The backend that every machine has: plain numpy, whose BLAS does the products."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusedmlp.architecture import Architecture
from fusedmlp.backends.base import Backend, library_versions
from fusedmlp.engine import ComposedEngine, Engine


def numpy_blas() -> str:
    """The BLAS that numpy was built with, e.g. "scipy-openblas 0.3.30"."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return f"{blas['name']} {blas.get('version', '')}".strip()


class NumpyBackend(Backend):
    """Backend ``numpy``: the base class's primitives, on numpy."""

    name = "numpy"

    @property
    def xp(self) -> Any:
        """numpy."""
        return np

    def describe(self) -> dict[str, str]:
        """BLAS and versions."""
        return {"device": "CPU", "BLAS": numpy_blas(), "versions": library_versions(["numpy"])}

    def engine(self, architecture: Architecture, fused: bool = True) -> Engine:
        """The composed engine."""
        return ComposedEngine(self, architecture)
