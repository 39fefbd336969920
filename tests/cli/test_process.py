"""The command line as a process of its own: exit status, streams, interrupts, what is imported."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pytest

COMMAND = [sys.executable, "-m", "fusedmlp"]


def call(*arguments, **options):
    """Run to the end."""
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=600, **options)


def test_importing_the_command_line_is_light():
    heavy = ("numpy", "scipy", "sklearn", "numba", "matplotlib", "polars", "rich", "safetensors")
    code = f"import fusedmlp.cli.commands, sys; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    code = f"""
import sys
from fusedmlp.cli.commands import cli
cli.main(["--help"], standalone_mode=False)
print([name for name in {heavy!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_errors_are_one_line(tmp_path):
    done = call("train", "nothing.csv", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("fusedmlp: nothing.csv: no such file")
    assert done.stderr.count("\n") == 1
    done = call("info", cwd=tmp_path, env=os.environ | {"FUSEDMLP_BACKEND": "tpu"})
    assert done.returncode == 2
    assert done.stderr.startswith("fusedmlp: FUSEDMLP_BACKEND: unknown backend 'tpu'")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("FUSEDMLP_BLAS", "nonsense", "FUSEDMLP_BLAS: expected one of mkl, scipy; got 'nonsense'"),
        ("FUSEDMLP_PRECISION", "half", "FUSEDMLP_PRECISION: expected one of strict, high, medium, tf32; got 'half'"),
        ("NUMBA_DISABLE_JIT", "1", "backend 'numba-cpu' is unavailable: NUMBA_DISABLE_JIT is set"),
        ("FUSEDMLP_BLAS", "mkl", "backend 'numba-cpu' is unavailable: FUSEDMLP_BLAS is mkl, but it is not installed"),
    ],
)
def test_info_shows_everything_beside_a_wrong_setting(tmp_path, variable, value, message):
    if value == "mkl" and importlib.util.find_spec("mkl"):
        pytest.skip("MKL is installed")
    done = call("info", cwd=tmp_path, env=os.environ | {variable: value})
    assert done.returncode == 2
    assert done.stderr.startswith(f"fusedmlp: {message}")
    assert done.stderr.count("\n") == 1
    assert "numba-cpu: not available: " in done.stdout
    assert "Asked for: numba-cpu (default)" in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="SIGINT as a terminal sends it")
def test_an_interrupt_leaves_the_old_model(tmp_path):
    model, metrics = tmp_path / "m.safetensors", tmp_path / "m.jsonl"
    model.write_bytes(b"the old model")
    arguments = ["train", "digits", "--epochs", "1000000", "--out", model, "--metrics", metrics, "--backend", "numpy"]
    with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130
    assert stderr == f"fusedmlp: interrupted in training; {model} was not written\n"
    assert model.read_bytes() == b"the old model"
    assert {path.name for path in tmp_path.iterdir()} == {"m.safetensors", "m.jsonl"}
    lines = metrics.read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, len(lines) + 1))


@pytest.mark.skipif(os.name != "posix", reason="streams closed as a shell closes them")
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_closed_streams(tmp_path, closed):
    def shell(arguments):
        command = f"{sys.executable} -m fusedmlp {arguments} {closed}"
        environment = os.environ | {"FUSEDMLP_BACKEND": "numpy"}
        return subprocess.run(
            command, shell=True, capture_output=True, text=True, timeout=600, cwd=tmp_path, env=environment
        )

    done = shell("train iris --epochs 2 --out m.safetensors --plot l.png --metrics m.jsonl")
    assert (done.returncode, done.stderr) == (0, "")
    done = shell("predict m.safetensors iris --out p.csv")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "l.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "m.jsonl").read_text().splitlines()) == 2
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 151
    done = shell("predict m.safetensors iris")
    if closed.startswith(">&-"):  # nowhere to write the answer
        assert done.returncode == 2
        assert done.stderr in ("", "fusedmlp: --out: stdout is closed; expected a file to write the predictions to\n")
    else:
        assert len(done.stdout.splitlines()) == 151


START_UP = [
    ("fusedmlp.cli.commands", "KeyboardInterrupt"),
    ("fusedmlp.cli.train", "KeyboardInterrupt"),
    ("sklearn.model_selection", "KeyboardInterrupt"),
    ("sklearn.model_selection", "ImportError('initialization failed') from KeyboardInterrupt()"),
]


@pytest.mark.parametrize(("module", "error"), START_UP)
def test_an_interrupt_of_the_start_up_is_one_line(tmp_path, module, error):
    code = f"""
import sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise {error}
sys.meta_path.insert(0, Interrupt())
sys.argv = ["fusedmlp", "train", "iris", "--epochs", "1", "--backend", "numpy"]
from fusedmlp.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "fusedmlp: interrupted\n")


@pytest.mark.skipif(os.name != "posix", reason="pipes as a shell makes them")
def test_a_reader_that_stops_is_no_error(tmp_path):
    done = subprocess.run(
        f"{sys.executable} -m fusedmlp --help | true", shell=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert "Traceback" not in done.stderr
