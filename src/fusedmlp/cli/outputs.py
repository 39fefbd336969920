"""Files that a command will write: checked before the work begins, so that no training is lost to a wrong path."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path


def check_outputs(outputs: Mapping[str, str | None], inputs: Iterable[str] = ()) -> None:
    """Make sure that every output can be written.

    Parameters
    ----------
    outputs : mapping of option to path
        None: not asked for.
    inputs : iterable of str
        What the command reads; an output must not be one of them.

    Raises
    ------
    ValueError
        A folder is missing or read-only, a path is a folder, or two paths are the same file. The message names the
        option.
    """
    taken = {os.path.realpath(path): path for path in inputs}
    for option, path in outputs.items():
        if path is None:
            continue
        _check_output(option, Path(path))
        clash = taken.setdefault(os.path.realpath(path), option)
        if clash != option:
            raise ValueError(f"{option}: expected a file of its own; got {path}, which is {clash} too")


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
