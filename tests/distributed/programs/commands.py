"""Commands of the command line, one after the other, as if each had a job of its own. Prints what failed, as JSON."""

from __future__ import annotations

import contextlib
import io
import json
import sys

from mpi4py import MPI

from fusedmlp.cli.commands import cli

comm = MPI.COMM_WORLD
texts = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as text:
        cli.main(words, standalone_mode=False)
    texts.append(text.getvalue())
everyones = comm.gather(texts)
if comm.rank == 0:
    sys.__stdout__.write(json.dumps(everyones) + "\n")
