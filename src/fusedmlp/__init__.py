"""Multi-layer perceptrons at the speed of the hardware, on CPU and GPU.

The public names are loaded when they are first used: importing the package imports nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Network": "fusedmlp.network",
    "Architecture": "fusedmlp.architecture",
    "Gradients": "fusedmlp.parameters",
    "Parameters": "fusedmlp.parameters",
    "SGD": "fusedmlp.optimizers",
    "Adam": "fusedmlp.optimizers",
    "Constant": "fusedmlp.schedules",
    "StepDecay": "fusedmlp.schedules",
    "ExponentialDecay": "fusedmlp.schedules",
    "InverseScaling": "fusedmlp.schedules",
    "CosineDecay": "fusedmlp.schedules",
    "Callback": "fusedmlp.callbacks",
    "ReduceOnPlateau": "fusedmlp.callbacks",
    "History": "fusedmlp.history",
    "Predictor": "fusedmlp.predictor",
    "get_backend": "fusedmlp.backends",
    "available_backends": "fusedmlp.backends",
    "use_backend": "fusedmlp.backends",
    "BackendUnavailableError": "fusedmlp.errors",
    "ModelFileError": "fusedmlp.errors",
    "TrainingDivergedError": "fusedmlp.errors",
}

__all__ = ["__version__", *sorted(_HOME)]

if TYPE_CHECKING:
    from fusedmlp.architecture import Architecture as Architecture
    from fusedmlp.backends import available_backends as available_backends
    from fusedmlp.backends import get_backend as get_backend
    from fusedmlp.backends import use_backend as use_backend
    from fusedmlp.callbacks import Callback as Callback
    from fusedmlp.callbacks import ReduceOnPlateau as ReduceOnPlateau
    from fusedmlp.errors import BackendUnavailableError as BackendUnavailableError
    from fusedmlp.errors import ModelFileError as ModelFileError
    from fusedmlp.errors import TrainingDivergedError as TrainingDivergedError
    from fusedmlp.history import History as History
    from fusedmlp.network import Network as Network
    from fusedmlp.optimizers import SGD as SGD
    from fusedmlp.optimizers import Adam as Adam
    from fusedmlp.parameters import Gradients as Gradients
    from fusedmlp.parameters import Parameters as Parameters
    from fusedmlp.predictor import Predictor as Predictor
    from fusedmlp.schedules import Constant as Constant
    from fusedmlp.schedules import CosineDecay as CosineDecay
    from fusedmlp.schedules import ExponentialDecay as ExponentialDecay
    from fusedmlp.schedules import InverseScaling as InverseScaling
    from fusedmlp.schedules import StepDecay as StepDecay


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME))
