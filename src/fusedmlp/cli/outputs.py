"""Files that a command will write: checked before the work begins, so that no training is lost to a wrong path."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from fusedmlp.data.bundled import BUNDLED


def check_outputs(outputs: Mapping[str, str | None], inputs: Mapping[str, str | None]) -> None:
    """Make sure that every output can be written.

    Parameters
    ----------
    outputs : mapping of option to path
        None: not asked for.
    inputs : mapping of argument or option to path
        What the command reads, as the user names it; an output must not be one of these files. None, and what is no
        file (a bundled name, a column), is none of them.

    Raises
    ------
    ValueError
        A folder is missing or read-only, a path is a folder, or two paths are the same file. The message names the
        option.
    """
    taken = {
        os.path.realpath(path): f"is read as {argument}"
        for argument, path in inputs.items()
        if path is not None and path not in BUNDLED and os.path.isfile(path)
    }
    for option, path in outputs.items():
        if path is None:
            continue
        _check_output(option, Path(path))
        place = os.path.realpath(path)
        if place in taken:
            raise ValueError(f"{option}: expected a file of its own; got {path}, which {taken[place]}")
        taken[place] = f"is {option} too"


def _check_output(option: str, path: Path) -> None:
    if path.exists() and not path.is_file():  # a file that is renamed over a device would replace it
        kind = "folder" if path.is_dir() else "device"
        raise ValueError(f"{option}: expected a file; got the {kind} {path}")
    if not path.parent.is_dir():
        raise ValueError(f"{option}: the folder {path.parent} does not exist; got {path}")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(f"{path} is write-protected")
    except OSError as error:
        raise ValueError(f"{option}: {path} cannot be written: {error.strerror or error}") from None
