"""Optional packages, which an extra of the project installs. They are imported when they are first needed."""

from __future__ import annotations

import importlib
from typing import Any


class MissingExtraError(ImportError):
    """An optional package is needed and cannot be imported. The message has the pip command that installs it."""


def require(module: str, extra: str, purpose: str) -> Any:
    """Import an optional package.

    Parameters
    ----------
    module : str
        The module to import.
    extra : str
        The extra of ``fusedmlp`` that installs it, e.g. "data".
    purpose : str
        What needs the package: the subject of the error message.

    Returns
    -------
    module

    Raises
    ------
    MissingExtraError
        The import failed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtraError(f"{purpose} needs {package}: pip install 'fusedmlp[{extra}]' ({error})") from None
