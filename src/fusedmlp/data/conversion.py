"""Conversion of frames of polars into tables, as a layout says."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusedmlp.data.columns import dates
from fusedmlp.data.columns.rules import ColumnRule, applied, first_refused
from fusedmlp.data.layout import Layout
from fusedmlp.data.messages import shortened
from fusedmlp.data.row_names import RowNames, row_name
from fusedmlp.data.survey import local
from fusedmlp.data.table import Schema, Table, as_target


def table_of(pl: Any, frame: Any, layout: Layout, row_names: RowNames = ()) -> Table | None:
    """The table of a frame; None where no row of it has a target.

    Parameters
    ----------
    pl : module
        polars.
    frame : polars.DataFrame
        As `Pieces.frames` gives it.
    layout : Layout
    row_names : RowNames
        What the rows that are read are called in messages.

    Raises
    ------
    ValueError
        A value does not fit the rule of its column, or is of a type that is none of numbers, text or dates.
    """
    y = None
    if layout.reads_target:
        frame, targets = _target(pl, frame, layout, row_names)
    if not len(frame):
        return None
    if layout.reads_target:
        # Without nulls, polars returns text as an array of str objects, and numbers and booleans in their own types.
        y = as_target(targets.to_numpy(), f"{layout.source}: column {layout.target!r}", row_names)
    columns = {c: _values(pl, frame[c], layout, layout.rules.get(c), row_names) for c in layout.columns}
    text = tuple(name for name, column in columns.items() if column.dtype == pl.String)
    names: list[str] = []
    numbers: list[np.ndarray] = []
    for name, column in columns.items():
        if name in text:
            continue
        if column.dtype == pl.Datetime:
            names += dates.part_names(name, layout.rules[name].has_time)
            numbers.append(dates.parts(pl, column, layout.rules[name].has_time))
        else:
            names.append(name)
            numbers.append(column.cast(pl.Float64).fill_null(float("nan")).to_numpy()[:, None])
    words = np.empty((len(frame), len(text)), dtype=object)
    for i, name in enumerate(text):
        words[:, i] = columns[name].to_list()
    text_target = y.dtype == object if y is not None else layout.text_target
    schema = Schema(tuple(names), text, True, layout.target, text_target, tuple(layout.rules.items()))
    numeric = np.hstack(numbers) if numbers else np.empty((len(frame), 0))
    return Table(layout.source, schema, numeric, words, y, notes=layout.notes, row_names=row_names)


def _target(pl: Any, frame: Any, layout: Layout, row_names: RowNames) -> tuple[Any, Any]:
    """(the rows that have a target, their targets)."""
    rule = layout.target_rule
    column = _values(pl, frame[layout.target], layout, rule, row_names)
    if rule is not None and rule.kind == "number" and not layout.whole_target:
        column = column.cast(pl.Float64)  # whatever the numbers of these rows are
    if not column.has_nulls():
        return frame, column
    return frame.filter(column.is_not_null()), column.drop_nulls()


def _values(pl: Any, column: Any, layout: Layout, rule: ColumnRule | None, row_names: RowNames) -> Any:
    """A column as integers, floats, truth values, dates or text."""
    dtype = column.dtype
    as_text = column.name in layout.categorical or (rule is not None and rule.kind == "category")
    if dtype == pl.String:
        return column if rule is None else _converted(pl, column, layout, rule, row_names)
    if dtype in (pl.Categorical, pl.Enum):
        return column.cast(pl.String)
    if dtype == pl.Null:
        return column.cast(pl.String if as_text else pl.Float64)
    if dtype in (pl.Date, pl.Datetime):
        return local(pl, column)
    if dtype == pl.Duration:
        return column.dt.total_microseconds().cast(pl.Float64) / 1e6
    if dtype == pl.Time:
        return column.cast(pl.Int64).cast(pl.Float64) / 1e9
    if dtype.is_decimal():
        column = column.cast(pl.Float64)
    elif not (dtype.is_numeric() or dtype == pl.Boolean):
        raise ValueError(
            f"{layout.source}: column {column.name!r} is of type {dtype}; expected numbers, booleans, text or dates "
            f"(drop it, or convert it to one of these)"
        )
    return column.cast(pl.String) if as_text else column


def _converted(pl: Any, column: Any, layout: Layout, rule: ColumnRule, row_names: RowNames) -> Any:
    values = applied(pl, column, rule)
    refused = first_refused(column, values, rule)
    if refused is None:
        return values
    row, text = refused
    expected = f"{rule.kind}s" if rule.kind != "date" else f"dates, {dates.words_of(rule.date_format)}"
    raise ValueError(
        f"{layout.source}: column {column.name!r}: expected {expected}, as in training; got {shortened(text)!r} "
        f"in row {row_name(row_names, row)} (counted from 0)"
    )
