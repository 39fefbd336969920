"""The exceptions of the project. Every other error is a plain ValueError or TypeError."""

from __future__ import annotations


class BackendUnavailableError(RuntimeError):
    """A backend was asked for by name, and this machine cannot run it.

    Parameters
    ----------
    name : str
        The backend that was asked for, e.g. ``"cupy"``.
    reason : str
        Why it cannot run, and the pip command that helps where there is one.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"backend {name!r} is unavailable: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type[BackendUnavailableError], tuple[str, str]]:
        """Pickle both arguments: by default an exception is made again from its message alone."""
        return type(self), (self.name, self.reason)


class ModelFileError(ValueError):
    """A model file is missing, is damaged or truncated, or is a file of another kind."""


class TrainingDivergedError(ArithmeticError):
    """The loss became NaN or infinite during training. The network has the best weights so far again."""


class CheckpointError(ValueError):
    """A training cannot go on from a checkpoint: the file is damaged, or it is another training's."""


class TerminatedError(SystemExit):
    """A SIGTERM ended a training that writes checkpoints. Python exits with the status 143."""

    def __init__(self) -> None:
        super().__init__(143)
