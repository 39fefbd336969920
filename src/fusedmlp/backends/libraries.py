"""Versions of the libraries that backends stand on, for their descriptions."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

import numpy as np


def numpy_blas() -> str:
    """The BLAS that numpy was built with, e.g. "scipy-openblas 0.3.30"."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return f"{blas['name']} {blas.get('version', '')}".strip()


def library_versions(packages: Iterable[str]) -> str:
    """ "numpy 2.4.6, scipy 1.17.1" for the packages that are installed."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
