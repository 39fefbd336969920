"""Table: data before any preprocessing. Rows are samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from fusedmlp.data.coded import CodedTable, Target, Texts
from fusedmlp.data.columns.dates import part_names
from fusedmlp.data.columns.rules import ColumnRule
from fusedmlp.data.messages import counted, missing_values
from fusedmlp.data.row_names import RowNames, row_name


@dataclass(frozen=True)
class Schema:
    """The columns of a table and their types.

    Attributes
    ----------
    numeric : tuple of str
        Columns of numbers, in order. Columns of an array without names are called "0", "1", ...
    text : tuple of str
        Columns of categories.
    named : bool
        False: the columns have no names.
    target : str or None
        The target's place in such data: the name or number of a column, or the name of an array; None: another file.
    text_target : bool
        True: the target is read as text even if it looks like numbers.
    rules : tuple of (str, ColumnRule)
        How the texts of a file become the values of a column. A column of dates is several of numbers.
    """

    numeric: tuple[str, ...]
    text: tuple[str, ...] = ()
    named: bool = True
    target: str | None = None
    text_target: bool = False
    rules: tuple[tuple[str, ColumnRule], ...] = ()

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The names that all columns except the target have in a file."""
        derived = {part for parts in self.dates.values() for part in parts}
        return (*(name for name in self.numeric if name not in derived), *self.dates, *self.text)

    @cached_property
    def dates(self) -> dict[str, tuple[str, ...]]:
        """The columns of dates, with the columns of numbers that each becomes."""
        return {name: part_names(name, rule.has_time) for name, rule in self.rules if rule.kind == "date"}

    def rule_of(self, column: str) -> ColumnRule:
        """The rule of a column."""
        return dict(self.rules).get(column) or ColumnRule("category" if column in self.text else "number")

    def to_dict(self) -> dict[str, Any]:
        """The schema as JSON-ready data."""
        return {
            "numeric": list(self.numeric),
            "text": list(self.text),
            "named": self.named,
            "target": self.target,
            "text_target": self.text_target,
            "rules": {name: rule.to_dict() for name, rule in self.rules},
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Schema:
        """Make a schema of what `to_dict` returned; ValueError, KeyError or TypeError for other data."""
        numeric, text, target = tuple(data["numeric"]), tuple(data["text"]), data["target"]
        if not all(isinstance(name, str) for name in (*numeric, *text)) or not isinstance(target, str | None):
            raise ValueError("schema: expected columns named by text")
        rules = tuple((name, ColumnRule.from_dict(rule)) for name, rule in data.get("rules", {}).items())
        return cls(numeric, text, bool(data["named"]), target, bool(data["text_target"]), rules)


@dataclass(frozen=True)
class Table:
    """Columns of numbers, columns of categories, and possibly a target, as they were read.

    Attributes
    ----------
    source : str
        The file or the bundled name, for messages.
    schema : Schema
        `numeric` and `text` name the columns of the two arrays, in order.
    numeric : array of shape (m, n)
        Of any numeric type; memory-mapped if the file allows it. NaN stands for a missing value.
    text : array of object, shape (m, k), or CodedTable
        Each entry is a str, or None for a missing value.
    target : array of shape (m,) or (m, n_outputs), or None
        Numbers, bool, or str as objects; no value is missing. A CodedColumn where text is larger than memory.
    classification : bool or None
        Whether the target is one of classes, if the source says so; None: the values decide.
    notes : tuple of str
        What was decided in reading it and is not obvious, a sentence each.
    held_out : Table or None
        Rows of the same file that are not for training.
    row_names : RowNames
        What its rows are called in messages.
    """

    source: str
    schema: Schema
    numeric: np.ndarray
    text: Texts
    target: Target | None = None
    classification: bool | None = None
    notes: tuple[str, ...] = ()
    held_out: Table | None = None
    row_names: RowNames = ()

    def __post_init__(self) -> None:
        if len(self) == 0:
            raise ValueError(f"{self.source}: expected at least one row of data; got none")
        if not self.schema.columns:
            raise ValueError(f"{self.source}: expected at least one column besides the target; got none")
        if self.target is not None and len(self.target) != len(self):
            raise ValueError(
                f"{self.source}: {counted(len(self), 'row')} of data, but {len(self.target)} of the target"
            )

    def __len__(self) -> int:
        return len(self.numeric)

    def __repr__(self) -> str:
        numbers, texts = len(self.schema.numeric), len(self.schema.text)
        target = "" if self.target is None else f", target {self.schema.target or 'given'!r}"
        return (
            f"Table({self.source!r}: {counted(len(self), 'row')}, {numbers} of numbers, {texts} of categories{target})"
        )

    def take(self, rows: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (numeric, text) of some of the rows."""
        return self.numeric[rows], self.text[rows]

    def require_target(self) -> Target:
        """Return the target; a ValueError if there is none."""
        if self.target is None:
            raise ValueError(f"target: {self.source} has no target {self.schema.target or ''}".rstrip())
        return self.target

    def aligned(self, schema: Schema) -> Table:
        """Return the same rows with exactly the columns of `schema`, in its order. Other columns are left out.

        Raises
        ------
        ValueError
            Columns are missing, or are of another type than in `schema`.
        """
        if not self.schema.named:
            return self._aligned_by_place(schema)
        check_columns(schema, self.schema.columns, self.source)
        self._check_numbers(schema)
        numeric = _columns(self.numeric, self.schema.numeric, schema.numeric)
        text = _columns(self.text, self.schema.text, schema.text)
        return replace(self, schema=replace(schema, target=self.schema.target), numeric=numeric, text=text)

    def _aligned_by_place(self, schema: Schema) -> Table:
        if schema.text:
            raise ValueError(
                f"{self.source}: the model was trained on named columns, some of them categories "
                f"({', '.join(schema.text)}); expected those, got an array without names"
            )
        if len(schema.numeric) != self.numeric.shape[1]:
            raise ValueError(
                f"{self.source}: the model was trained on {counted(len(schema.numeric), 'column')}; "
                f"got {self.numeric.shape[1]}"
            )
        return self

    def _check_numbers(self, schema: Schema) -> None:
        for name in schema.numeric:
            if name in self.schema.text:
                column = self.text[:, self.schema.text.index(name)].tolist()
                # In a column that mixes numbers and truth values, the message names a truth value last of all.
                bad = [i for i, value in enumerate(column) if value is not None and not is_number(value)]
                row = next((i for i in bad if column[i].lower() not in ("true", "false")), bad[0] if bad else 0)
                raise ValueError(
                    f"{self.source}: column {name!r}: expected numbers, as in training; got {column[row]!r} "
                    f"in row {row_name(self.row_names, row)} (counted from 0)"
                )


def check_columns(schema: Schema, columns: Sequence[str], source: str) -> None:
    """Raise a ValueError if a column of `schema` is not among the named `columns`."""
    if not schema.named:
        raise ValueError(
            f"{source}: the model was trained on an array of {counted(len(schema.numeric), 'column')} without "
            "names; expected an array, got named columns"
        )
    present = set(columns)
    missing = [name for name in schema.columns if name not in present]
    if missing:
        raise ValueError(f"{source}: missing columns that the model was trained on: {', '.join(missing)}")


def is_number(text: str) -> bool:
    """Whether polars reads this text as a number; Python's float accepts more."""
    if not text.isascii() or "_" in text or text != text.strip():
        return False
    try:
        float(text)
    except ValueError:
        return False
    return True


def _columns(array: Any, names: tuple[str, ...], wanted: tuple[str, ...]) -> Any:
    """Select columns; the array itself is returned if these are all of its columns in the same order."""
    if names == wanted:
        return array
    place = {name: i for i, name in enumerate(names)}
    places = [place[name] for name in wanted]
    return array.select(places) if isinstance(array, CodedTable) else array[:, places]


def no_text(m: int) -> np.ndarray:
    """Return the text array of a table without text columns."""
    return np.empty((m, 0), dtype=object)


def is_none(text: np.ndarray) -> np.ndarray:
    """Return a bool array that is True where an array of objects has None, a missing value."""
    return np.equal(text, np.array(None, dtype=object)).astype(bool)


def as_features(array: np.ndarray, source: str) -> np.ndarray:
    """Check an array of numbers with a row per sample, and merge all axes but the first."""
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{source}: expected an array of real numbers; got dtype {array.dtype}")
    if array.ndim < 2:
        raise ValueError(f"{source}: expected two axes or more, (rows, columns); got shape {array.shape}")
    return array if array.ndim == 2 else array.reshape(len(array), -1)


def as_target(array: np.ndarray, source: str, row_names: RowNames = ()) -> np.ndarray:
    """Check a target and return it with shape (m,) or (m, n_outputs); text becomes objects.

    `row_names` are what its rows are called in messages.

    Raises
    ------
    ValueError
        The target is of another type or shape, or has missing or infinite values.
    """
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind in "US":
        array = array.astype(str).astype(object)
    if array.dtype.kind not in "fiubO" or (array.dtype.kind == "O" and array.ndim != 1):
        raise ValueError(f"target: {source}: expected numbers, booleans or text; got dtype {array.dtype}")
    if array.ndim not in (1, 2) or 0 in array.shape:
        raise ValueError(f"target: {source}: expected a value per row; got shape {array.shape}")
    missing = is_none(array) if array.dtype.kind == "O" else np.isnan(array)
    if missing.any():
        rows = np.flatnonzero(missing.reshape(len(array), -1).any(axis=1))
        missing_rows = missing_values(len(rows), row_name(row_names, int(rows[0])))
        raise ValueError(f"target: {source}: {missing_rows}; expected a target in every row")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))[0])
        place = f"in row {row_name(row_names, row)} (counted from 0)"
        raise ValueError(f"target: {source}: expected finite numbers; got {array[row]} {place}")
    return array
