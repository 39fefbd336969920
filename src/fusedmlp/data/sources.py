"""`as_table`: a table of whatever a user has: a file, a frame of pandas or polars, or arrays."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np

from fusedmlp.data.arrays import array_table
from fusedmlp.data.columns.finding import Choices
from fusedmlp.data.frames import frame_table
from fusedmlp.data.reading import read_table
from fusedmlp.data.table import Schema, Table, as_features, as_target
from fusedmlp.extras import require


def as_table(
    data: Any, target: Any = None, *, schema: Schema | None = None, target_required: bool = True, **reading: Any
) -> Table:
    """A table, with a row per sample.

    Parameters
    ----------
    data : path, pandas.DataFrame, polars.DataFrame or array of shape (m, n)
        A path is also the name of a bundled data set.
    target : str, or array of shape (m,) or (m, n_outputs), optional
        A column; or the values themselves.
    schema : Schema, optional
        The schema of a trained model.
    target_required : bool, default True
        False: the table may lack the target, and the target is not read.
    **reading
        drop, numeric, categorical, decimal, missing, day_first, as in `reading.read_table`.

    Raises
    ------
    ValueError
        The data are no table, or the target is not in it.
    """
    if target is not None and not isinstance(target, str):
        table = as_table(data, schema=schema, target_required=False, **reading)
        values = np.asarray(target)
        return replace(
            table, target=as_target(values.astype(object) if values.dtype.kind in "USO" else values, "target")
        )
    if isinstance(data, Table):
        return data if schema is None else data.aligned(schema)
    if isinstance(data, str | os.PathLike):
        return read_table(data, target, schema=schema, target_required=target_required, **reading)
    if hasattr(data, "collect_schema") or hasattr(data, "columns"):  # a lazy frame of polars, another frame
        frame = _as_polars(data)
        every = reading.pop("require_every_target", False)
        table = frame_table(
            frame,
            "the frame",
            target,
            choices=Choices(**reading),
            schema=schema,
            target_required=target_required,
            require_every_target=every,
        )
    else:
        if target is not None or (target_required and schema is None):
            raise ValueError("target: expected an array of targets beside an array of data")
        X = as_features(np.asarray(data), "data")
        table = array_table("data", X, None, None)
    return table if schema is None else table.aligned(schema)


def _as_polars(data: Any) -> Any:
    """A polars frame of a frame of polars or pandas; column names are text."""
    pl = require("polars", "data", "frames of pandas and polars")
    if isinstance(data, pl.LazyFrame):
        return data.collect()
    if isinstance(data, pl.DataFrame):
        return data
    names = [str(name) for name in data.columns]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise ValueError(f"the frame: expected different column names; {repeated[0]!r} comes twice")
    return pl.DataFrame([_series(pl, name, data.iloc[:, place]) for place, name in enumerate(names)])


def _series(pl: Any, name: str, column: Any) -> Any:
    """A polars series of a column of pandas."""
    kind = getattr(column.dtype, "kind", "O")
    if kind in "iufb" and not hasattr(column.dtype, "na_value"):
        return pl.Series(name, column.to_numpy())
    missing = column.isna().to_numpy()
    if kind in "iuf":
        return pl.Series(name, column.to_numpy(dtype=np.float64, na_value=np.nan))
    if kind == "M":
        plain = column.dt.tz_localize(None) if getattr(column.dt, "tz", None) is not None else column
        return pl.Series(name, plain.to_numpy().astype("M8[us]"))
    if kind == "m":
        return pl.Series(name, column.dt.total_seconds().to_numpy())
    values = column.tolist()
    if all(isinstance(value, bool | np.bool_) for value, no in zip(values, missing, strict=True) if not no):
        return pl.Series(name, [None if no else bool(v) for v, no in zip(values, missing, strict=True)], pl.Boolean)
    return pl.Series(name, [None if no else str(v) for v, no in zip(values, missing, strict=True)], pl.String)
