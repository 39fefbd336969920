"""The backend that every machine has: plain numpy, whose BLAS does the products."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusedmlp.backends.base import Backend
from fusedmlp.backends.libraries import library_versions, numpy_blas
from fusedmlp.engines.base import Engine
from fusedmlp.engines.composed import ComposedEngine
from fusedmlp.model.architecture import Architecture


class NumpyBackend(Backend):
    """Backend ``numpy``: the base class's primitives, on numpy."""

    name = "numpy"
    takes_sparse = True

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
