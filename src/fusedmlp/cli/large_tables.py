"""Tables for a command: read whole into memory, or, of more than `LARGE_BYTES`, in pieces into scratch files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np

from fusedmlp.cli.experiment import read_data
from fusedmlp.cli.output import Output
from fusedmlp.cli.settings import Settings
from fusedmlp.data.bundled import BUNDLED
from fusedmlp.data.columns.finding import Choices
from fusedmlp.data.frame_files import described
from fusedmlp.data.large.reading import is_large, read_large_table
from fusedmlp.data.large.scratch import Scratch, scratch_folder
from fusedmlp.data.reading import is_frame_data
from fusedmlp.data.table import Table
from fusedmlp.distributed.launched import communicator


@contextmanager
def opened_table(settings: Settings, output: Output) -> Iterator[tuple[Table, Scratch | None]]:
    """The table of a training; with the scratch folder, which is there until the end of the block, if it is in pieces.

    Raises
    ------
    ValueError, OSError
        The table cannot be read, or not in pieces; the scratch folder has not enough space.
    """
    if not reads_in_pieces(settings.data, settings.stream):
        yield read_data(settings), None
        return
    with scratch_folder(settings.scratch) as scratch:
        path, comm = Path(settings.data), communicator()
        with output.kept():
            click.echo(f"reading: {described(path)}, in pieces; its numbers are kept in {scratch.folder}")
        choices = settings.drop, settings.numeric, settings.categorical, settings.decimal, settings.missing
        table = read_large_table(
            path,
            settings.target,
            scratch,
            choices=Choices(*choices, settings.day_first),
            require_every_target=settings.require_target,
            copies=1 if comm is None else int(comm.Get_size()),
            beside=np.dtype(settings.dtype).itemsize,
        )
        yield table, scratch


def reads_in_pieces(data: str, stream: bool | None) -> bool:
    """Whether a table is read in pieces: as the user says, else where it is large.

    Raises
    ------
    ValueError
        It cannot be.
    """
    path = Path(data)
    can_be = data not in BUNDLED and path.exists() and is_frame_data(path)
    if stream and not can_be and (data in BUNDLED or path.exists()):
        raise ValueError(
            f"--stream: expected a CSV or Parquet file, or a folder of them; got {data}"
            + (" (.npy files are never read whole into memory)" if path.suffix == ".npy" else "")
        )
    return can_be and (is_large(path) if stream is None else stream)
