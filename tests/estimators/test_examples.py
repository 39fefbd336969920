"""The scripts under examples/ run as they are, and print what they promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PRINTED = {
    "tabular_classification.py": ["best setting:", "accuracy:", "columns that matter most:"],
    "quantile_regression.py": ["quantile 0.95:", "between the outer two:"],
    "digits_on_backends.py": ["numba-cpu:", "numpy:", "wrote "],
}


def test_every_example_is_run():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(PRINTED)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRINTED)
def test_example(name, tmp_path):
    command = [sys.executable, str(EXAMPLES / name)]
    # In one process: what loky's workers train is tested elsewhere, and each of them loads scikit-learn anew.
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "LOKY_MAX_CPU_COUNT": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    for words in PRINTED[name]:
        assert words in done.stdout
    if name.startswith("digits"):
        assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
