"""`patch_sklearn`: scikit-learn's names MLPClassifier and MLPRegressor stand for this package's classes.

It works wherever the names are imported from, before or after scikit-learn itself is imported, in this process and in
the Python processes that it starts. This module imports neither scikit-learn nor numpy, because it runs at the start
of each of those.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

NAMES = {
    "MLPClassifier": "fusedmlp.estimators.classifier",
    "MLPRegressor": "fusedmlp.estimators.regressor",
}
"""The names that are replaced, and where the classes are that replace them."""
_HOME = "sklearn.neural_network._multilayer_perceptron"
_MODULES = (_HOME, "sklearn.neural_network")
VARIABLE = "FUSEDMLP_PATCH_SKLEARN"
"""Set in the environment, it patches scikit-learn in Python processes that are started: "1", or "verbose"."""
STARTUP = str(Path(__file__).with_name("startup"))
"""The folder with the `sitecustomize` that does so."""

_originals: dict[str, type] = {}


class _Loader:
    """Runs a module by its own loader, then replaces the names in it."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        if _finder in sys.meta_path:
            _replace(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class _Finder:
    """Finds the module that defines the names, and has them replaced when it is imported."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        if name != _HOME:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
        return spec


_finder = _Finder()


def patch_sklearn(verbose: bool = False) -> None:
    """Make ``from sklearn.neural_network import MLPClassifier, MLPRegressor`` give this package's classes.

    Modules that have imported the names before keep scikit-learn's classes. Python processes that are started
    afterwards, such as joblib's and multiprocessing's workers, are patched too: the environment variables
    FUSEDMLP_PATCH_SKLEARN and PYTHONPATH tell them.

    Parameters
    ----------
    verbose : bool, default False
        Print a line on standard error for each call of ``fit`` and ``predict``.
    """
    if verbose:
        from fusedmlp.estimators.activity import listeners, print_record

        if print_record not in listeners:
            listeners.append(print_record)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    for name in _MODULES:
        if name in sys.modules:
            _replace(sys.modules[name])
    os.environ[VARIABLE] = "verbose" if verbose else "1"
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != STARTUP]
    os.environ["PYTHONPATH"] = os.pathsep.join([STARTUP, *paths])


def unpatch_sklearn() -> None:
    """Give scikit-learn its own classes back. Estimators that were made stay what they are."""
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
    for module in (sys.modules[name] for name in _MODULES if name in sys.modules):
        for name, original in _originals.items():
            setattr(module, name, original)
    activity = sys.modules.get("fusedmlp.estimators.activity")
    if activity is not None and activity.print_record in activity.listeners:
        activity.listeners.remove(activity.print_record)
    os.environ.pop(VARIABLE, None)
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != STARTUP]
    if paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    else:
        os.environ.pop("PYTHONPATH", None)


def sklearn_is_patched() -> bool:
    """Whether scikit-learn's names stand for this package's classes."""
    return _finder in sys.meta_path


def sklearn_class(name: str) -> type:
    """scikit-learn's own class, patched or not."""
    module = importlib.import_module(_HOME)
    return _originals.get(name) or getattr(module, name)


def _replace(module: ModuleType) -> None:
    for name, home in NAMES.items():
        ours = getattr(importlib.import_module(home), name)
        theirs = getattr(module, name, None)
        if theirs is not None and theirs is not ours:
            _originals.setdefault(name, theirs)
            setattr(module, name, ours)


def load_ipython_extension(ipython: Any) -> None:
    """``%load_ext fusedmlp``: `patch_sklearn`."""
    patch_sklearn()


def unload_ipython_extension(ipython: Any) -> None:
    """``%unload_ext fusedmlp``: `unpatch_sklearn`."""
    unpatch_sklearn()
