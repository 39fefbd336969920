"""The kernels are found however the package is installed: as a wheel, editable, or as a checkout on PYTHONPATH."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

from fusedmlp.backends.cupy import kernel_sources

ROOT = Path(__file__).parents[1]
REPORT = """
import json
import fusedmlp
from fusedmlp.backends.cupy import kernel_sources
report = {
    'file': fusedmlp.__file__,
    'hashes': kernel_sources.hashes(),
    'source': kernel_sources.source('activations.cu'),
}
print(json.dumps(report))
"""
IMPORTED = """
import sys
before = {m.partition('.')[0] for m in sys.modules}
import fusedmlp
print(sorted({m.partition('.')[0] for m in sys.modules} - set(sys.stdlib_module_names) - before))
"""


def run(*command, cwd, **environment):
    """Standard output of a command that has to succeed, without the caller's Python settings."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    command = [str(part) for part in command]
    done = subprocess.run(command, cwd=cwd, env=clean | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def report(cwd, **environment):
    """What this interpreter, with its dependencies, sees of the package, from another folder."""
    return json.loads(run(sys.executable, "-c", REPORT, cwd=cwd, **environment))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built without a network from what the checkout holds."""
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("the tests are not in a checkout")
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def empty_environment(wheel, tmp_path_factory):
    """The Python of a new environment that holds the wheel and nothing else: none of its dependencies."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    # By the pip that is here: a pip of its own takes longer to set up than all the rest.
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", "--no-compile", wheel, cwd=folder)
    return python


def test_installed_wheel(empty_environment, tmp_path):
    folder = run(
        empty_environment, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path
    ).strip()
    seen = report(tmp_path, PYTHONPATH=folder)
    assert Path(seen["file"]) == Path(folder) / "fusedmlp" / "__init__.py"
    assert seen["hashes"] == kernel_sources.hashes()
    assert seen["source"] == kernel_sources.source("activations.cu")


def test_import_needs_the_standard_library_only(empty_environment, tmp_path):
    assert run(empty_environment, "-c", IMPORTED, cwd=tmp_path) == "['fusedmlp']\n"


def test_missing_dependency_is_named(empty_environment, tmp_path):
    """Without numpy the names that need it say so; the package itself still imports."""
    code = "import fusedmlp\ntry:\n    fusedmlp.Network\nexcept ModuleNotFoundError as error:\n    print(error.name)"
    assert run(empty_environment, "-c", code, cwd=tmp_path).strip() == "numpy"


def test_checkout_on_pythonpath(tmp_path):
    seen = report(tmp_path, PYTHONPATH=str(ROOT / "src"))
    assert Path(seen["file"]) == ROOT / "src" / "fusedmlp" / "__init__.py"
    assert seen["hashes"] == kernel_sources.hashes()
    assert seen["source"] == kernel_sources.source("activations.cu")


def test_editable_install(tmp_path):
    try:
        direct_url = json.loads(distribution("fusedmlp").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        direct_url = {}
    if not direct_url.get("dir_info", {}).get("editable"):
        pytest.skip("fusedmlp is not installed editable here")
    seen = report(tmp_path)
    assert Path(seen["file"]).parent.name == "fusedmlp"
    assert seen["hashes"] == kernel_sources.hashes()


def test_contents_of_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        licenses = [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
        assert len(licenses) == 1
        assert archive.read(licenses[0]) == (ROOT / "LICENSE").read_bytes()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        assert b"License-Expression: BSD-3-Clause" in archive.read(metadata)
    kernels = {path.relative_to(ROOT / "kernels").as_posix() for path in (ROOT / "kernels").rglob("*.cu*")}
    assert {f"fusedmlp/kernels/{name}" for name in kernels} <= set(names)
    modules = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.py")}
    assert modules <= set(names)
    assert not [name for name in names if name.startswith(("tests", "bench", "docs"))]
