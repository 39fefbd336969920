"""The rows and formulas of docs/derivation.md, the networks that they are evaluated on, and the evaluation."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from algebra import Scope, ShapeMismatchError
from examples import Example, Logistic, Output, Recursion, SecondNote, Steps, Unit
from latex import Parser, bindings, evaluate

from fusedmlp import Network
from fusedmlp.model.activations import HIDDEN_ACTIVATIONS
from fusedmlp.model.losses import LOSSES
from fusedmlp.model.optimizers import OPTIMIZERS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "derivation.md").read_text(encoding="utf-8")
CONDITION = re.compile(r"\w=\d+, \\ldots, .+|\w\\neq \w")


class Row(NamedTuple):
    """A row of a table whose first cell is an id, and the heading that it stands under."""

    id: str
    cells: list[str]
    heading: str

    @property
    def series(self) -> str:
        return self.id.split(".")[0]

    def formulas(self, cell: int = 0) -> list[str]:
        return [text for text in mathematics(self.cells[cell]) if not CONDITION.fullmatch(text)]

    def shaped(self) -> list[tuple[str, list[str]]]:
        """The formulas of the row with the shape that each has: one for all of its equations, or one for each."""
        equations = [text for text in self.formulas() if "=" in text] or self.formulas()
        shapes = re.findall(r"number|as \$[^$]+\$|\$[^$]+\$", self.cells[1])
        assert len(shapes) in (1, len(equations)), f"{self.id}: {len(equations)} equations and shapes {shapes}"
        own = dict(zip(equations, shapes * (len(equations) if len(shapes) == 1 else 1), strict=True))
        return [(text, [own[text]] if text in own else []) for text in self.formulas()]

    def conditions(self, cell: int = 0) -> list[str]:
        return [text for text in mathematics(self.cells[cell]) if CONDITION.fullmatch(text)]


def mathematics(text: str) -> list[str]:
    return re.findall(r"\$([^$\n]+)\$", text)


def rows() -> list[Row]:
    found, heading = [], ""
    for line in PAGE.splitlines():
        if line.startswith("#"):
            heading = line.strip("# ")
        if re.match(r"\| [NPMS]\d?\.\d+ \|", line):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            found.append(Row(cells[0], cells[1:], heading))
    return found


ROWS = rows()
FORMULAS = [row for row in ROWS if row.series in ("N1", "N2", "P")]
MISTAKES = [row for row in ROWS if row.series in ("M1", "M2")]


def notation() -> list[tuple[str, str]]:
    """The symbols of the table of notation, each with its shape."""
    table = re.search(r"\| Symbol .*?\n\n", PAGE, re.DOTALL)[0].splitlines()[2:]
    cells = [line.strip("| ").split(" | ") for line in table if line]
    return [(symbol, shape) for symbols, _, shape in cells for symbol in mathematics(symbols)]


def prose() -> list[tuple[str, str]]:
    """The equations outside of rows with an id, each with the heading that it stands under."""
    found, heading = [], ""
    for line in PAGE.splitlines():
        heading = line.strip("# ") if line.startswith("#") else heading
        if not re.match(r"\| [NPMS]\d?\.\d+ \|", line):
            found += [(heading, text) for text in re.findall(r"\$+([^$\n]+)\$+", line) if "=" in text]
    return found


NOTATION, PROSE = notation(), prose()


def network(sizes: list[int], scale: float = 2.0, **options: object) -> Network:
    """A float64 network whose weights are large enough for the curvature of the activation to show."""
    net = Network(sizes, dtype="float64", backend="numpy", random_state=7, **options)
    net.parameters.flat *= scale
    net.parameters.flat += np.random.default_rng(8).uniform(-0.5, 0.5, net.parameters.flat.shape)
    return net


def samples(net: Network, m: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(11)
    n1, n_out = net.architecture.layer_sizes[0], net.architecture.layer_sizes[-1]
    return generator.normal(size=(n1, m)), np.resize([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0], (n_out, m))


@cache
def examples(section: str, equal: bool = False) -> list[Example]:
    """The networks of a section. All sizes differ, so that a wrong shape is noticed; with `equal` they are the same."""
    if section == "logistic":
        net = network([6, 1] if equal else [4, 1])
        return [Logistic(net, *samples(net, 6))]
    if section == "second":
        net = network([4, 4, 4] if equal else [3, 4, 2], loss="sum_squared_error", bias=False)
        return [SecondNote(net, *samples(net, 4 if equal else 5))]
    if section == "recursion":
        pairs = [(f, loss) for f in HIDDEN_ACTIVATIONS for loss in ("binary_cross_entropy", "sum_squared_error")]
        sizes = [3, 3, 3, 3, 3] if equal else [4, 3, 5, 2, 3]
        nets = [network(sizes, 1.0, hidden_activation=f, loss=loss) for f, loss in pairs]
        return [Recursion(net, *samples(net, 1)) for net in nets]
    if section == "general":
        return examples("mean") + examples("sum")
    if section in ("mean", "sum"):
        loss = {"mean": "binary_cross_entropy", "sum": "sum_squared_error"}[section]
        net = network([4, 3, 6, 2], hidden_activation="tanh", loss=loss)
        return [Example(net, *samples(net, 5), np.array([0.5, 0.0, 2.0, 1.0, 3.0]), alpha=0.7)]
    if section in HIDDEN_ACTIVATIONS:
        return [Unit(section, z) for z in (-2.1, -0.4, 0.3, 1.7)]
    if section in OPTIMIZERS:
        return [Steps(section)]
    if section in LOSSES:
        y = {"categorical_cross_entropy": [0.0, 1.0, 0.0], "poisson": [1.0, 3.0, 2.0]}.get(section, [1.0, 0.0, 1.0])
        return [Output(section, np.array(z), np.array(y)) for z in ([-1.5, 0.3, 2.0], [0.7, -2.5, 1.1])]
    net = network([4, 4, 1] if equal else [4, 3, 1])
    X, Y = samples(net, 4 if equal else 5)
    return [Example(net, X, labels) for labels in (Y, 1 - Y)]


def section(row: Row) -> str:
    """Which networks a row of the page is about."""
    if row.heading == "Logistic regression" or row.id in ("M1.24", "M1.25"):
        return "logistic"
    if row.heading == "The recursion for any depth" or row.id in ("M1.26", "M1.27"):
        return "recursion"
    if row.id.startswith(("N2", "M2")):
        return "second"
    named = row.cells[0].split(":")[0].split(",")[0].replace(" ", "_").replace("-", "_")
    if named in (*HIDDEN_ACTIVATIONS, *LOSSES, *OPTIMIZERS):
        return named
    if row.heading == "Losses from logits":
        return "binary_cross_entropy"
    return ("mean" if named == "mean" else "sum" if named == "sum" else "general") if row.series == "P" else "first"


def failure(
    text: str, example: Example, conditions: list[str] = (), shapes: list[str] = (), clear: bool = False
) -> str:
    """ "" where all sides of a formula agree, "shape" where they differ in shape or one does not exist, else "value".

    With `clear`, values that are neither right nor off by a thousandth of the largest are an error.
    """
    worst, count = 0.0, 0
    try:
        for scope in bindings(list(conditions), Scope(example)):
            for bound, (first, *others) in evaluate(text, scope):
                count += 1
                wanted = [size(shape, bound) for shape in shapes]
                if any(side.shape != first.shape for side in others) or (wanted and first.shape not in wanted):
                    return "shape"
                for side in others:
                    scale = max(float(np.abs(first).max()), float(np.abs(side).max()), 1e-9)
                    error = float(np.abs(first - side).max()) / scale
                    worst = max(worst, error if np.isfinite(error) else np.inf)
    except ShapeMismatchError:
        return "shape"
    assert count, f"{text}: no index satisfies {conditions}"
    assert not clear or worst < 1e-9 or worst > 1e-3, f"{text}: neither right nor clearly wrong, {worst:.1e}"
    return "" if worst < 1e-9 else "value"


def size(text: str, scope: Scope) -> tuple[int, ...]:
    """The shape that a cell names: `number`, $(n_1,m)$ or `as` a symbol. A 1 × 1 matrix is a number."""
    if text == "number":
        return ()
    if text.startswith("as "):
        return Parser(text[4:-1], False).sum()(scope).shape
    found = tuple(int(Parser(side, False).sum()(scope)) for side in text.strip("$()").split(","))
    return () if set(found) == {1} else found
