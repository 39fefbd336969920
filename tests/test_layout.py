"""docs/architecture.md shows the floors of the package, and every module imports only from floors below its own."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from test_imports import PACKAGE, import_graph

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
# Packages that stand in the picture as one piece.
PIECES = (
    "cli",
    "data",
    "estimators",
    "distributed",
    "training",
    "files",
    "engines",
    "streams",
    "model",
    "backends.cupy",
    "backends.numba_cpu",
)


def piece(module):
    """The piece of the picture that a module belongs to."""
    name = module.removeprefix("fusedmlp").removeprefix(".")
    return next((whole for whole in PIECES if name == whole or name.startswith(whole + ".")), name)


@cache
def graph_of_pieces():
    """Piece -> the pieces it imports. The package's own __init__, which loads names on first use, is left out."""
    graph = {}
    for module, imports in import_graph(PACKAGE).items():
        graph.setdefault(piece(module), set()).update(map(piece, imports))
    return {name: imports - {name, "", "backends"} for name, imports in graph.items() if name not in ("", "backends")}


def floors_in_the_picture():
    """Piece -> floor, as the page has it."""
    (block,) = re.findall(r"```text\nfloor  pieces\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    floors = {}
    for line in block.splitlines():
        number, names = line.split(maxsplit=1)
        floors |= dict.fromkeys(names.split(), int(number))
    return floors


def test_the_picture_shows_every_piece():
    assert floors_in_the_picture().keys() == graph_of_pieces().keys()


@pytest.mark.parametrize("name", sorted(graph_of_pieces()))
def test_imports_run_downward(name):
    floors = floors_in_the_picture()
    not_below = {other for other in graph_of_pieces()[name] if floors[other] >= floors[name]}
    assert not not_below, f"{name} (floor {floors[name]}) imports {not_below}"
