"""The exceptions that are the project's own. Everything else is a plain ValueError or TypeError."""

from __future__ import annotations


class BackendUnavailableError(RuntimeError):
    """A backend was asked for by name and this machine cannot run it.

    Parameters
    ----------
    name : str
        The backend that was asked for, e.g. ``"cupy"``.
    reason : str
        Why it cannot run, and the pip command that mends it where there is one.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"backend {name!r} is unavailable: {reason}")
        self.name = name
        self.reason = reason


class ModelFileError(ValueError):
    """A model file is missing, truncated, or is not one."""


class TrainingDivergedError(ArithmeticError):
    """The loss became NaN or infinite during training; the best weights so far were put back."""
