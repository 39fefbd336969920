"""Multi-layer perceptrons at the speed of the hardware, on CPU and GPU.

The public names are loaded when they are first used: importing the package imports nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

_HOME = {
    "Network": "fusedmlp.network",
    "fit_many": "fusedmlp.many",
    "Architecture": "fusedmlp.model.architecture",
    "Gradients": "fusedmlp.model.parameters",
    "Parameters": "fusedmlp.model.parameters",
    "Optimizer": "fusedmlp.model.optimizers",
    "SGD": "fusedmlp.model.optimizers",
    "Adam": "fusedmlp.model.optimizers",
    "AdamW": "fusedmlp.model.optimizers",
    "Schedule": "fusedmlp.training.schedules",
    "Constant": "fusedmlp.training.schedules",
    "StepDecay": "fusedmlp.training.schedules",
    "ExponentialDecay": "fusedmlp.training.schedules",
    "InverseScaling": "fusedmlp.training.schedules",
    "CosineDecay": "fusedmlp.training.schedules",
    "Callback": "fusedmlp.training.callbacks",
    "ReduceOnPlateau": "fusedmlp.training.callbacks",
    "StopAfter": "fusedmlp.training.callbacks",
    "Training": "fusedmlp.training.loop",
    "TrainingState": "fusedmlp.training.state",
    "Checkpoint": "fusedmlp.checkpoints",
    "GradientPhase": "fusedmlp.engines.options",
    "History": "fusedmlp.training.history",
    "MLPClassifier": "fusedmlp.estimators.classifier",
    "MLPRegressor": "fusedmlp.estimators.regressor",
    "MLPEnsembleClassifier": "fusedmlp.estimators.ensembles",
    "MLPEnsembleRegressor": "fusedmlp.estimators.ensembles",
    "MLPGridSearchCV": "fusedmlp.estimators.searches",
    "MLPRandomizedSearchCV": "fusedmlp.estimators.searches",
    "MLPSuccessiveHalvingSearchCV": "fusedmlp.estimators.searches",
    "cross_validate_mlp": "fusedmlp.estimators.searches",
    "LossCurveDisplay": "fusedmlp.estimators.display",
    "patch_sklearn": "fusedmlp.estimators.patching",
    "unpatch_sklearn": "fusedmlp.estimators.patching",
    "sklearn_is_patched": "fusedmlp.estimators.patching",
    "Predictor": "fusedmlp.data.predictor",
    "ArrayStream": "fusedmlp.streams.arrays",
    "BatchStream": "fusedmlp.streams.batches",
    "NpyStream": "fusedmlp.data.shards",
    "ParquetStream": "fusedmlp.data.parquet_shards",
    "get_backend": "fusedmlp.backends.selection",
    "available_backends": "fusedmlp.backends.selection",
    "use_backend": "fusedmlp.backends.selection",
    "register_backend": "fusedmlp.backends.selection",
    "Backend": "fusedmlp.backends.base",
    "BackendUnavailableError": "fusedmlp.errors",
    "CheckpointError": "fusedmlp.errors",
    "ModelFileError": "fusedmlp.errors",
    "TerminatedError": "fusedmlp.errors",
    "TrainingDivergedError": "fusedmlp.errors",
}

__all__ = ["__version__", *sorted(_HOME)]

_HOOKS = dict.fromkeys(("load_ipython_extension", "unload_ipython_extension"), "fusedmlp.estimators.patching")
"""What IPython asks for, at ``%load_ext fusedmlp``."""

if TYPE_CHECKING:
    from fusedmlp.backends.base import Backend as Backend
    from fusedmlp.backends.selection import available_backends as available_backends
    from fusedmlp.backends.selection import get_backend as get_backend
    from fusedmlp.backends.selection import register_backend as register_backend
    from fusedmlp.backends.selection import use_backend as use_backend
    from fusedmlp.checkpoints import Checkpoint as Checkpoint
    from fusedmlp.data.parquet_shards import ParquetStream as ParquetStream
    from fusedmlp.data.predictor import Predictor as Predictor
    from fusedmlp.data.shards import NpyStream as NpyStream
    from fusedmlp.engines.options import GradientPhase as GradientPhase
    from fusedmlp.errors import BackendUnavailableError as BackendUnavailableError
    from fusedmlp.errors import CheckpointError as CheckpointError
    from fusedmlp.errors import ModelFileError as ModelFileError
    from fusedmlp.errors import TerminatedError as TerminatedError
    from fusedmlp.errors import TrainingDivergedError as TrainingDivergedError
    from fusedmlp.estimators.classifier import MLPClassifier as MLPClassifier
    from fusedmlp.estimators.display import LossCurveDisplay as LossCurveDisplay
    from fusedmlp.estimators.ensembles import MLPEnsembleClassifier as MLPEnsembleClassifier
    from fusedmlp.estimators.ensembles import MLPEnsembleRegressor as MLPEnsembleRegressor
    from fusedmlp.estimators.patching import patch_sklearn as patch_sklearn
    from fusedmlp.estimators.patching import sklearn_is_patched as sklearn_is_patched
    from fusedmlp.estimators.patching import unpatch_sklearn as unpatch_sklearn
    from fusedmlp.estimators.regressor import MLPRegressor as MLPRegressor
    from fusedmlp.estimators.searches import MLPGridSearchCV as MLPGridSearchCV
    from fusedmlp.estimators.searches import MLPRandomizedSearchCV as MLPRandomizedSearchCV
    from fusedmlp.estimators.searches import MLPSuccessiveHalvingSearchCV as MLPSuccessiveHalvingSearchCV
    from fusedmlp.estimators.searches import cross_validate_mlp as cross_validate_mlp
    from fusedmlp.many import fit_many as fit_many
    from fusedmlp.model.architecture import Architecture as Architecture
    from fusedmlp.model.optimizers import SGD as SGD
    from fusedmlp.model.optimizers import Adam as Adam
    from fusedmlp.model.optimizers import AdamW as AdamW
    from fusedmlp.model.optimizers import Optimizer as Optimizer
    from fusedmlp.model.parameters import Gradients as Gradients
    from fusedmlp.model.parameters import Parameters as Parameters
    from fusedmlp.network import Network as Network
    from fusedmlp.streams.arrays import ArrayStream as ArrayStream
    from fusedmlp.streams.batches import BatchStream as BatchStream
    from fusedmlp.training.callbacks import Callback as Callback
    from fusedmlp.training.callbacks import ReduceOnPlateau as ReduceOnPlateau
    from fusedmlp.training.callbacks import StopAfter as StopAfter
    from fusedmlp.training.history import History as History
    from fusedmlp.training.loop import Training as Training
    from fusedmlp.training.schedules import Constant as Constant
    from fusedmlp.training.schedules import CosineDecay as CosineDecay
    from fusedmlp.training.schedules import ExponentialDecay as ExponentialDecay
    from fusedmlp.training.schedules import InverseScaling as InverseScaling
    from fusedmlp.training.schedules import Schedule as Schedule
    from fusedmlp.training.schedules import StepDecay as StepDecay
    from fusedmlp.training.state import TrainingState as TrainingState


def __getattr__(name: str) -> Any:
    home = _HOME.get(name) or _HOOKS.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    dunders = {name for name in globals() if name.startswith("__")}
    return sorted(dunders | set(__all__) | set(_HOOKS))
