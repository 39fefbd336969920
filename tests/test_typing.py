"""The package's types, as a user's type checker sees them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import pytest

import fusedmlp
from fusedmlp.model import names
from fusedmlp.model.activations import HIDDEN_ACTIVATIONS
from fusedmlp.model.architecture import DTYPES
from fusedmlp.model.optimizers import OPTIMIZERS
from fusedmlp.training.schedules import SCHEDULES

FOLDER = Path(__file__).parent / "typing"
CHECKERS = {
    "mypy": [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--hide-error-context"],
    "pyright": [sys.executable, "-m", "pyright", "--pythonpath", sys.executable],
}


@pytest.fixture(params=CHECKERS, scope="module")
def output(request, tmp_path_factory):
    """What a type checker says of both scripts, run from another folder."""
    if find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    command = [*CHECKERS[request.param], *(str(FOLDER / script) for script in ("script.py", "mistakes.py"))]
    environment = os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    folder = tmp_path_factory.mktemp("elsewhere")
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    return result.stdout


def test_a_good_script(output):
    errors = [line for line in output.splitlines() if "error" in line]
    assert len(errors) > 1, output  # those of the other script: it was checked at all
    assert all("mistakes.py:" in line for line in errors[:-1]), output
    assert "checked 2 source files" in errors[-1] or errors[-1].startswith(f"{len(errors) - 1} errors"), output


def test_every_mistake_is_found(output):
    source = (FOLDER / "mistakes.py").read_text(encoding="utf-8")
    wrong = [node.lineno for node in ast.parse(source).body if not isinstance(node, ast.ImportFrom | ast.Import)][2:]
    for line in wrong:
        assert f"mistakes.py:{line}:" in output, (source.splitlines()[line - 1], output)


def test_the_names_are_those_of_the_tables():
    assert set(get_args(names.ActivationName)) == set(HIDDEN_ACTIVATIONS)
    assert set(get_args(names.OptimizerName)) == set(OPTIMIZERS)
    assert set(get_args(names.ScheduleName)) == set(SCHEDULES)
    assert set(get_args(names.DtypeName)) == set(DTYPES)


def test_the_package_says_that_it_has_types():
    assert (Path(fusedmlp.__file__).parent / "py.typed").exists()


def test_public_names_alone():
    shown = [name for name in dir(fusedmlp) if not name.startswith("__")]
    assert set(shown) == {*fusedmlp.__all__, "load_ipython_extension", "unload_ipython_extension"} - {"__version__"}
