"""Running a command line."""

from __future__ import annotations

import math

import pytest
from click.testing import CliRunner

from fusedmlp.cli.commands import cli
from fusedmlp.training import progress


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command line in an empty folder. It has to succeed, and prints nothing on stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "QUIET_SECONDS", math.inf)  # however slow the machine is

    def run(*arguments):
        result = CliRunner().invoke(cli, list(map(str, arguments)))
        assert result.exit_code == 0, result.output
        assert result.stderr == ""
        return result.stdout

    return run
