"""FeatureEncoder: turns columns of numbers and categories into the inputs of a network. Saved as arrays and JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fusedmlp.data.coded import counts_of, places_of
from fusedmlp.data.messages import counted, shortened
from fusedmlp.data.row_names import row_name
from fusedmlp.data.table import Schema, Table, is_none

_BLOCK_BYTES = 32 * 2**20
MISSING_CATEGORY = "\0missing"
"""The category of missing values: no text of a file."""


@dataclass(frozen=True)
class Unseen:
    """Values of a column that did not occur in training: how many, and the first of them in the alphabet."""

    count: int
    example: str

    def __add__(self, other: Unseen) -> Unseen:
        """Those of two parts of a table."""
        return Unseen(self.count + other.count, min(self.example, other.example))

    def sentence(self, column: str) -> str:
        """What to say about them."""
        values = f"{counted(self.count, 'value')}, such as {shortened(self.example)!r}"
        return f"column {column!r}: {values}, did not occur in training: none of the known categories"


@dataclass(frozen=True)
class FeatureEncoder:
    """The preprocessing of a model: its numbers are those of scikit-learn's transformers.

    Numbers: a missing value is replaced by the mean of its column, then every column is standardised (mean 0, standard
    deviation 1). A column that is constant or empty in training becomes 0, whatever its values are later.
    Categories: each becomes a column of 0 and 1. A category that did not occur in training is 0 in all of them. Missing
    values are a category of their own where training had some; else one is replaced by the most frequent category.

    The rows are processed in blocks, so that the memory besides the result does not grow with their number.

    Attributes
    ----------
    schema : Schema
    standardize : bool
        False: numbers are not scaled.
    mean, scale : arrays of shape (n_numeric,), float64
        A number x becomes (x − mean) / scale. The scale of a constant or empty column is infinite.
    categories : tuple of tuples of str
        The categories of each text column; `MISSING_CATEGORY` stands for missing values.
    most_frequent : tuple of str
        The most frequent category of each text column.
    """

    schema: Schema
    standardize: bool
    mean: np.ndarray
    scale: np.ndarray
    categories: tuple[tuple[str, ...], ...] = ()
    most_frequent: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n, k = len(self.schema.numeric), len(self.schema.text)
        for name, value in (("mean", self.mean), ("scale", self.scale)):
            if value.shape != (n,) or value.dtype != np.float64 or np.isnan(value).any():
                raise ValueError(f"features.{name}: expected {n} float64 numbers; got {value.shape}, {value.dtype}")
        if not np.isfinite(self.mean).all() or not (self.scale > 0).all():
            raise ValueError("features: expected finite means, and scales > 0")
        if not (len(self.categories) == len(self.most_frequent) == k) or not all(self.categories):
            raise ValueError(f"features: expected the categories of {k} text columns")

    @classmethod
    def fit(cls, table: Table, rows: np.ndarray | None = None, standardize: bool = True) -> FeatureEncoder:
        """Compute means, scales and categories.

        Parameters
        ----------
        table : Table
        rows : array of int, optional
            The rows to use; None: all.
        standardize : bool, default True

        Raises
        ------
        ValueError
            A column holds an infinite number.
        """
        from sklearn.preprocessing import StandardScaler

        n = table.numeric.shape[1]
        scaler = StandardScaler()
        for block in row_blocks(table, rows, n) if n else ():
            numbers = np.asarray(table.numeric[block], dtype=np.float64)
            _check_finite(numbers, table, block)
            # A column without values has the mean NaN; see below. An overflowing variance makes the scale infinite.
            with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
                scaler.partial_fit(numbers)
        mean, scale = np.zeros(n), np.ones(n)
        if n:
            # scikit-learn sets the scale of a column to 1 if it is constant up to rounding.
            with np.errstate(invalid="ignore"):
                varies = scaler.scale_ == np.sqrt(scaler.var_)
            mean = np.nan_to_num(scaler.mean_)
            scale = np.where(varies, scaler.scale_, np.inf)
        fitted = [_fit_text(table, place, rows) for place in range(table.text.shape[1])]
        categories, most_frequent = tuple(c for c, _ in fitted), tuple(word for _, word in fitted)
        return cls(table.schema, standardize, mean, scale, categories, most_frequent)

    @property
    def n_outputs(self) -> int:
        """Number of columns of the result, which is n1 of the network."""
        return len(self.schema.numeric) + sum(map(len, self.categories))

    def transform(self, table: Table, rows: np.ndarray | None = None, dtype: str = "float32") -> np.ndarray:
        """Return the inputs of a network, shape (rows, n_outputs), all finite.

        Numbers are returned without a copy, memory-mapped or not, if they are not standardised, have the right type and
        none is missing.

        Parameters
        ----------
        table : Table
            With exactly the columns of `schema`, as `Table.aligned` returns it.
        rows : array of int, optional
        dtype : {"float32", "float64"}
        """
        if rows is None and self._needs_no_copy(table, dtype):
            return table.numeric
        out = np.empty((len(table) if rows is None else len(rows), self.n_outputs), dtype=dtype)
        done = 0
        for block in self.blocks(table, rows):
            done += self.transform_block(table, block, out[done:])
        return out

    def blocks(self, table: Table, rows: np.ndarray | None) -> Iterator[slice | np.ndarray]:
        """Give rows of a table, or all, in blocks that `transform_block` takes in little memory."""
        return row_blocks(table, rows, max(len(self.schema.numeric), self.n_outputs))

    def transform_block(self, table: Table, block: slice | np.ndarray, out: np.ndarray) -> int:
        """As `transform`, for some rows, into the first rows of an array. Returns how many there are."""
        n = len(self.schema.numeric)
        numeric = table.numeric[block]
        part = out[: len(numeric)]
        if n:
            numbers = np.asarray(numeric, dtype=np.float64)
            _check_finite(numbers, table, block)
            with np.errstate(over="ignore"):  # the next check finds overflows
                part[:, :n] = self._numbers.transform(numbers)
            _check_finite(part[:, :n], table, block, f"numbers that {part.dtype} can hold")
        part[:, n:] = 0
        for place, categories in enumerate(self.categories):
            columns = places_of(table.text, place, block, self._known[place])
            seen = np.flatnonzero(columns >= 0)
            part[seen, n + columns[seen]] = 1
            n += len(categories)
        return len(part)

    @property
    def names_out(self) -> list[str]:
        """The names of the columns that `transform` gives: numbers by their names, "city=Rome" for a category."""
        names = list(self.schema.numeric)
        for name, categories in zip(self.schema.text, self.categories, strict=True):
            names += [f"{name}={'missing' if word == MISSING_CATEGORY else word}" for word in categories]
        return names

    def unseen(self, table: Table) -> dict[str, Unseen]:
        """The columns with categories that did not occur in training."""
        found = {}
        for place, (name, known) in enumerate(zip(self.schema.text, self.categories, strict=True)):
            column = table.text[:, place]
            words, counts = np.unique(column[~is_none(column)].astype(str), return_counts=True)
            new = ~np.isin(words, known)
            if new.any():
                found[name] = Unseen(int(counts[new].sum()), str(words[new][0]))
        return found

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return (arrays, JSON data) for `from_state`."""
        arrays = {"features.mean": self.mean, "features.scale": self.scale} if self.schema.numeric else {}
        return arrays, {
            "schema": self.schema.to_dict(),
            "standardize": self.standardize,
            "categories": [list(categories) for categories in self.categories],
            "most_frequent": list(self.most_frequent),
        }

    @classmethod
    def from_state(cls, arrays: Mapping[str, np.ndarray], data: Mapping[str, Any]) -> FeatureEncoder:
        """Make the encoder that `state` described. Its results are the same, bit for bit.

        Raises
        ------
        ValueError, KeyError, TypeError
            The data are not a state.
        """
        none = np.empty(0)
        categories = tuple(tuple(categories) for categories in data["categories"])
        most_frequent = tuple(data["most_frequent"])
        if not all(isinstance(word, str) for word in (*most_frequent, *(c for cs in categories for c in cs))):
            raise ValueError("features: expected categories that are text")
        return cls(
            Schema.from_dict(data["schema"]),
            bool(data["standardize"]),
            arrays.get("features.mean", none),
            arrays.get("features.scale", none),
            categories,
            most_frequent,
        )

    @cached_property
    def _numbers(self) -> Any:
        """The imputer and the scaler, with their attributes set from `mean` and `scale`."""
        from sklearn.impute import SimpleImputer
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        imputer = SimpleImputer(strategy="mean").fit(self.mean[None])  # the mean of one row is that row
        if not self.standardize:
            return imputer
        scaler = StandardScaler()
        scaler.mean_, scaler.scale_, scaler.var_ = self.mean, self.scale, self.scale**2
        scaler.n_features_in_, scaler.n_samples_seen_ = len(self.mean), 1
        return make_pipeline(imputer, scaler)

    @cached_property
    def _known(self) -> list[dict[str | None, int]]:
        """The place of each category of each text column, and of a missing value, which is None."""
        known = []
        for categories, most_frequent in zip(self.categories, self.most_frequent, strict=True):
            places: dict[str | None, int] = {word: place for place, word in enumerate(categories)}
            places[None] = places.get(MISSING_CATEGORY, places.get(most_frequent, -1))
            known.append(places)
        return known

    def _needs_no_copy(self, table: Table, dtype: str) -> bool:
        """Whether the numbers of the table are the inputs already."""
        numeric = table.numeric
        if self.standardize or self.categories or numeric.dtype != dtype or not numeric.flags.aligned:
            return False
        for block in self.blocks(table, None):
            numbers = numeric[block]
            _check_finite(numbers, table, block)
            if np.isnan(numbers).any():
                return False
        return True


def _fit_text(table: Table, place: int, rows: np.ndarray | None) -> tuple[tuple[str, ...], str]:
    """Return (categories, most frequent category) of a column; the first in the alphabet of several such ones.

    A column without values has the one category "", one with missing values also `MISSING_CATEGORY`.
    """
    counts: Counter[str | None] = Counter()
    for block in row_blocks(table, rows, table.text.shape[1]):
        counts += counts_of(table.text, place, block)
    missing = counts.pop(None, 0)
    if not counts:
        return ("",), ""
    most = max(counts.values())
    words = [word for word in counts if word is not None]
    most_frequent = min(word for word in words if counts[word] == most)
    return tuple(sorted([*words, MISSING_CATEGORY] if missing else words)), most_frequent


def row_blocks(table: Table, rows: np.ndarray | None, width: int) -> Iterator[slice | np.ndarray]:
    """Give the rows in blocks of at most `_BLOCK_BYTES` bytes of float64."""
    m = len(table) if rows is None else len(rows)
    step = max(1, _BLOCK_BYTES // (8 * max(1, width)))
    for start in range(0, m, step):
        piece = slice(start, min(start + step, m))
        yield piece if rows is None else rows[piece]


def _check_finite(
    numbers: np.ndarray,
    table: Table,
    block: slice | np.ndarray,
    expected: str = "finite numbers (a missing one is fine)",
) -> None:
    infinite = np.isinf(numbers)
    if infinite.any():
        i, j = (int(k) for k in np.argwhere(infinite)[0])
        row = block.start + i if isinstance(block, slice) else int(block[i])
        place = row_name(table.row_names, row)
        raise ValueError(
            f"{table.source}: column {table.schema.numeric[j]!r}: expected {expected}; "
            f"got {table.numeric[row, j]} in row {place} (counted from 0)"
        )
