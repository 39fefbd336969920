"""Packages that come with an extra of the project, imported when they are first needed."""

from __future__ import annotations

import importlib
from typing import Any


class MissingExtraError(ImportError):
    """A package of an extra is needed and cannot be imported; the message has the pip command that brings it."""


def require(module: str, extra: str, purpose: str) -> Any:
    """Import `module`, which the extra `extra` brings.

    Parameters
    ----------
    module : str
        The name it is imported by.
    extra : str
        The extra of ``fusedmlp`` that it belongs to, e.g. "data".
    purpose : str
        What it is needed for: the subject of the error message.

    Raises
    ------
    MissingExtraError
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtraError(f"{purpose} needs {package}: pip install 'fusedmlp[{extra}]' ({error})") from None
