"""Programs under mpiexec."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent / "distributed" / "programs"


def mpiexec():
    """The command that starts a job; the test is skipped where there is none."""
    pytest.importorskip("mpi4py", reason="training over MPI needs mpi4py: pip install 'fusedmlp[mpi]'")
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = shutil.which("mpiexec", path=folders)
    if command is None:
        pytest.skip("training over MPI needs mpiexec: pip install mpich")
    return command


def run_job(ranks, *command, timeout=100, **environment):
    """(the finished job of a Python program and its arguments, its seconds)."""
    start = time.monotonic()
    result = subprocess.run(
        [mpiexec(), "-n", str(ranks), sys.executable, *map(str, command)],
        env=os.environ | {"PYTHONWARNINGS": "error"} | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return result, time.monotonic() - start


def answer(ranks, program, *arguments, **environment):
    """What a program of `programs` prints as JSON, once it has ended well."""
    result, _ = run_job(ranks, PROGRAMS / program, *arguments, **environment)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    return json.loads(result.stdout.strip().splitlines()[-1])
