"""What is imported when: nothing before it is needed, and never in a circle."""

from __future__ import annotations

import ast
import graphlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fusedmlp

PACKAGE = Path(fusedmlp.__file__).parent
HEAVY = ("cupy", "matplotlib", "numba", "numpy", "polars", "rich", "click", "scipy", "sklearn", "torch", "safetensors")


# Modules that share what they need, imported by itself each: in a fork of an interpreter that has that already.
FORKS = """
import importlib, json, os, sys
allowed, modules, heavy = json.loads(sys.argv[1])
for name in allowed:
    importlib.import_module(name)
ours = [name for name in sys.modules if name.partition(".")[0] == "fusedmlp"]
assert not ours, ours
before = {name for name in heavy if name in sys.modules}
for module, names in modules.items():
    reading, writing = os.pipe()
    if not os.fork():
        exec(f"from fusedmlp import {names}")
        os.write(writing, json.dumps([name for name in heavy if name in sys.modules and name not in before]).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        modules[module] = stream.read()
    os.wait()
print(json.dumps(modules))
"""


def imported_besides(allowed, modules):
    """Module -> the heavy packages that importing its public names brings, besides those allowed; "" for an error."""
    names = {module: ", ".join(name for name, home in fusedmlp._HOME.items() if home == module) for module in modules}
    command = [sys.executable, "-W", "ignore", "-c", FORKS, json.dumps([allowed, names, HEAVY])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {module: found or done.stderr for module, found in json.loads(done.stdout.splitlines()[-1]).items()}


def imported_by(code):
    """Those of the heavy packages that a fresh interpreter has imported after `code`."""
    code = f"{code}\nimport json, sys\nprint(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_imports_nothing():
    assert imported_by("import fusedmlp") == set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize(
    ("estimators", "allowed"),
    [
        (False, ["numpy", "scipy.special", "scipy.linalg.blas", "safetensors.numpy"]),
        (True, ["numpy", "scipy", "safetensors.numpy", "sklearn.neural_network", "sklearn.model_selection"]),
    ],
)
def test_public_names_exist_and_bring_no_more_than_they_need(estimators, allowed):
    modules = {module for module in fusedmlp._HOME.values() if module.startswith("fusedmlp.estimators") == estimators}
    assert modules
    assert imported_besides(allowed, sorted(modules)) == dict.fromkeys(modules, "[]")


def test_type_checkers_know_every_public_name():
    tree = ast.parse(Path(fusedmlp.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    known = {node.names[0].asname: node.module for node in block.body}
    assert known == fusedmlp._HOME


@pytest.mark.parametrize("backend", ["numpy"])
def test_training_on_numpy_needs_no_other_backend(backend):
    code = f"""
import numpy as np
from fusedmlp import Network
net = Network([2, 3, 1], backend={backend!r}, random_state=0)
net.fit(np.ones((2, 8)), np.ones((1, 8)), epochs=2, validation_fraction=0.25)
net.loss_and_gradients(np.ones((2, 8)), np.ones((1, 8)))
"""
    assert imported_by(code) <= {"numpy", "scipy", "safetensors"}


def test_asking_for_backends_imports_none_that_is_not_asked_for():
    assert not imported_by("import fusedmlp.backends.selection") - {"numpy"}
    assert imported_by("from fusedmlp import get_backend; get_backend('numpy')").isdisjoint(
        {"numba", "cupy", "sklearn"}
    )


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'fusedmlp' has no attribute 'Netwrok'"):
        fusedmlp.Netwrok  # noqa: B018
    assert set(fusedmlp.__all__) <= set(dir(fusedmlp))


# The picture of the layout: modules and what they import, function-level imports included.


def import_graph(root):
    """Module -> the modules of the same package that it imports anywhere, under TYPE_CHECKING too.

    ``from package import submodule`` is an import of the submodule; importing a submodule is not one of its parents'
    ``__init__``.
    """
    files = {module_name(path, root): path for path in sorted(root.rglob("*.py"))}
    return {name: set(_imports(name, path, files)) - {name} for name, path in files.items()}


def module_name(path, root):
    """The dotted name: fusedmlp.backends for src/fusedmlp/backends/__init__.py."""
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(name, path, files):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    # Only the package's own __init__ names what it loads later under TYPE_CHECKING.
    for node in _running(tree) if name.count(".") == 0 else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in files)
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(node, name, path)
            for alias in node.names:
                target = f"{source}.{alias.name}"
                yield from [target] if target in files else [source] if source in files else []


def _absolute(node, name, path):
    """The module that a ``from ... import`` names, dots resolved."""
    if not node.level:
        return node.module
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)


def _running(tree):
    """The nodes that are there at run time: all but those under ``if TYPE_CHECKING:``."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield other
                yield from _running(other)
            continue
        yield child
        yield from _running(child)


def find_circle(graph):
    """The modules of a circle of imports, the first one again at its end; None where there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1][::-1]
    return None


def test_imports_run_in_no_circle():
    graph = import_graph(PACKAGE)
    assert {
        "fusedmlp",
        "fusedmlp.network",
        "fusedmlp.backends.selection",
        "fusedmlp.backends.cupy.launch",
    } <= graph.keys()
    assert "fusedmlp.backends.selection" in graph["fusedmlp.placement"]
    circle = find_circle(graph)
    assert circle is None, "a circle of imports: " + " -> ".join(circle)


class TestGraph:
    """The search for circles finds them."""

    @pytest.fixture
    def package(self, tmp_path):
        root = tmp_path / "pkg"
        (root / "sub").mkdir(parents=True)
        for name, text in {
            "__init__.py": "",
            "a.py": "from pkg import b\n",
            "b.py": "def f():\n    import pkg.sub.c\n",
            "sub/__init__.py": "from pkg.sub.c import x\n",
            "sub/c.py": (
                "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pkg.e import y\n"
                "else:\n    import pkg.d\nx = 1\n"
            ),
            "d.py": "from pkg.sub import x\nimport os\n",
            "e.py": "",
        }.items():
            (root / name).write_text(text)
        return root

    def test_edges(self, package):
        assert import_graph(package) == {
            "pkg": set(),
            "pkg.a": {"pkg.b"},
            "pkg.b": {"pkg.sub.c"},
            "pkg.sub": {"pkg.sub.c"},
            "pkg.sub.c": {"pkg.e", "pkg.d"},
            "pkg.e": set(),
            "pkg.d": {"pkg.sub"},
        }

    def test_circle_is_named_in_order(self, package):
        circle = find_circle(import_graph(package))
        assert circle[0] == circle[-1]
        assert set(circle) == {"pkg.sub", "pkg.sub.c", "pkg.d"}
        graph = import_graph(package)
        assert all(after in graph[before] for before, after in itertools.pairwise(circle))

    def test_no_circle(self, package):
        (package / "d.py").write_text("")
        assert find_circle(import_graph(package)) is None

    def test_relative_imports(self, package):
        (package / "sub" / "c.py").write_text("from . import x\nfrom .. import a\nfrom ..b import f\n")
        assert import_graph(package)["pkg.sub.c"] == {"pkg.sub", "pkg.a", "pkg.b"}
        (package / "sub" / "__init__.py").write_text("from .c import x\n")
        assert import_graph(package)["pkg.sub"] == {"pkg.sub.c"}
