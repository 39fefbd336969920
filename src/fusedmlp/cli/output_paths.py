"""Checks of the files that a command will write, before its work begins: no training is lost to a wrong path."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from fusedmlp.data.bundled import BUNDLED
from fusedmlp.files.atomic import check_writable


def check_outputs(outputs: Mapping[str, str | None], inputs: Mapping[str, str | None]) -> None:
    """Make sure that every output can be written.

    Parameters
    ----------
    outputs : mapping of option to path
        None where the option was not given.
    inputs : mapping of argument or option to path
        What the command reads, as the user names it. Values that are not files are ignored: None, the name of a bundled
        data set, a column.

    Raises
    ------
    ValueError
        A folder is missing or read-only, a path is not one of a regular file, its name is too long, or the path is also
        an input or another output. The message names the option.
    """
    taken = {
        os.path.realpath(path): f"is read as {argument}"
        for argument, path in inputs.items()
        if path is not None and path not in BUNDLED and os.path.isfile(path)
    }
    for option, path in outputs.items():
        if path is None:
            continue
        folder = Path(path).parent
        if not folder.is_dir():
            raise ValueError(f"{option}: the folder {folder} does not exist; got {path}")
        try:
            check_writable(path)
        except OSError as error:
            raise ValueError(f"{option}: {path} cannot be written: {error.strerror or error}") from None
        except ValueError as error:
            raise ValueError(f"{option}: {error}") from None
        place = os.path.realpath(path)
        if place in taken:
            raise ValueError(f"{option}: expected a file of its own; got {path}, which {taken[place]}")
        taken[place] = f"is {option} too"
