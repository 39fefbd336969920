"""The versions of scikit-learn that the estimators were tested with."""

from __future__ import annotations

import logging

import sklearn

TESTED = (1, 6), (1, 9)
"""The first and the last, without their patch releases."""

_log = logging.getLogger("fusedmlp")


def check_version(version: str = sklearn.__version__) -> None:
    """Log a warning where the version is not one of those."""
    numbers = tuple(int(number) for number in version.split(".")[:2])
    first, last = TESTED
    if not first <= numbers <= last:
        span = " to ".join(".".join(map(str, end)) for end in TESTED)
        _log.warning("scikit-learn %s: the estimators of fusedmlp were tested with %s", version, span)
