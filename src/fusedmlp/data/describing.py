"""A report on the columns of a table: how each is read, what it holds, and what tells the target by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fusedmlp.data.coded import Target
from fusedmlp.data.messages import shortened
from fusedmlp.data.table import Table, is_none
from fusedmlp.data.targets import MOST_NUMBERED_CLASSES

_TELLING = 0.99
"""A column that alone tells so much of the target is suspected to be made from it."""
_FEWEST_ROWS, _LOOKED_AT = 20, 2000
_SHOWN_VALUES = 3


class Description(NamedTuple):
    """A column.

    Attributes
    ----------
    name, kind : str
    missing : int
        Missing values.
    distinct : int
        Different values.
    values : str
        The range of numbers, or the most frequent categories with their counts.
    note : str
        What is suspicious about it.
    """

    name: str
    kind: str
    missing: int
    distinct: int
    values: str
    note: str


def describe(table: Table) -> list[Description]:
    """The columns of a table, those of categories last; not the target."""
    dates = table.schema.dates
    of_dates = {part: name for name, parts in dates.items() for part in parts}
    rows: list[Description] = []
    for place, name in enumerate(table.schema.numeric):
        date = of_dates.get(name)
        if date is None:
            rows.append(_numbers(name, table.numeric[:, place], table.target))
        elif name == dates[date][3]:  # the days since 1970 tell a date
            rows.append(_dates(date, table.numeric[:, place]))
    rows += [_categories(name, table.text[:, place], table.target) for place, name in enumerate(table.schema.text)]
    return rows


def _numbers(name: str, column: np.ndarray, target: Target | None) -> Description:
    values = np.asarray(column, np.float64)
    present = values[~np.isnan(values)]
    distinct = len(np.unique(present))
    spread = f"{present.min():g} .. {present.max():g}" if len(present) else ""
    note = "constant" if distinct == 1 else "empty" if not distinct else _suspicion(values, target)
    return Description(name, "number", len(values) - len(present), distinct, spread, note)


def _dates(name: str, days: np.ndarray) -> Description:
    present = days[~np.isnan(days)]
    first, last = (
        np.datetime64("1970-01-01") + np.timedelta64(int(day), "D") for day in (present.min(), present.max())
    )
    return Description(name, "date", len(days) - len(present), len(np.unique(present)), f"{first} .. {last}", "")


def _categories(name: str, column: np.ndarray, target: Target | None) -> Description:
    missing = is_none(column)
    values, counts = np.unique(column[~missing].astype(str), return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_SHOWN_VALUES]
    shown = ", ".join(f"{shortened(values[i], 20)} ({counts[i]})" for i in order)
    codes = np.searchsorted(values, np.where(missing, "", column).astype(str)).astype(float)
    note = "constant" if len(values) == 1 else _suspicion(codes, target)
    return Description(name, "category", int(missing.sum()), len(values), shown, note)


def _suspicion(values: np.ndarray, target: Target | None) -> str:
    """Whether a column alone tells the target: a small tree of half of the rows is right for the other half."""
    if target is None or target.ndim != 1 or len(target) < _FEWEST_ROWS:
        return ""
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    rows = np.random.default_rng(0).permutation(len(target))[:_LOOKED_AT]
    y = target[rows]
    classes = y.dtype.kind in "Ob" or len(np.unique(y)) <= max(2, min(MOST_NUMBERED_CLASSES, len(y) // 20))
    y = y.astype(str) if classes else y.astype(float)
    X = np.nan_to_num(values[rows, None], nan=-1.0, posinf=0.0, neginf=0.0)
    half = len(rows) // 2
    tree = (DecisionTreeClassifier if classes else DecisionTreeRegressor)(max_leaf_nodes=64, random_state=0)
    score = float(tree.fit(X[:half], y[:half]).score(X[half:], y[half:]))
    usual = float(np.unique(y[half:], return_counts=True)[1].max() / (len(y) - half)) if classes else 0.0
    if score < _TELLING or usual >= _TELLING:
        return ""
    return f"tells the target by itself ({score:.3f}): is it known beforehand?"


def suspicions(table: Table) -> list[str]:
    """A sentence for each column that alone tells the target; only some of the rows are looked at."""
    some = np.random.default_rng(0).permutation(len(table))[:_LOOKED_AT]
    numeric, text = table.take(some)
    part = replace(table, numeric=numeric, text=text, target=None if table.target is None else table.target[some])
    return [f"column {d.name!r} {d.note}" for d in describe(part) if d.note.startswith("tells")]
