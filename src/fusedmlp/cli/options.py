"""Parameter types and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from fusedmlp.data.large.reading import LARGE_BYTES

DATA_HELP = """
\b
DATA is one of
  a bundled name  breast-cancer, digits, diabetes, wine, iris
  .csv .tsv       a line of column names, then rows, separated by , ; tab or |
                  (also .gz); missing: empty, NA, N/A, NaN, null, None, ?
                  and in columns of numbers or dates . - unknown #DIV/0! ...
  .parquet .pq    columns of numbers, booleans, text, categories or dates
  a folder        of .csv or of .parquet files with the same columns
  .npy            an array (rows, columns), memory-mapped
  .npz            arrays X and y, or x_train, y_train, x_test and y_test;
                  memory-mapped where np.savez wrote them, loaded where
                  np.savez_compressed did
  IDX             as MNIST's, e.g. train-images-idx3-ubyte (also .gz)
"""


class HiddenSizes(click.ParamType):
    """Sizes of the hidden layers: "128,64" is (128, 64); "" and "none" are (), no hidden layer."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Parse the text of the option."""
        if isinstance(value, tuple):
            return value
        if value.strip().lower() in ("", "none"):
            return ()
        try:
            sizes = tuple(int(part) for part in value.split(","))
        except ValueError:
            sizes = (0,)
        if min(sizes) < 1:
            self.fail(f"{value!r} is no list of layer sizes such as 64, 128,64 or none", param, ctx)
        return sizes


class LayerSizes(click.ParamType):
    """Sizes of all layers: "784-128-10" is (784, 128, 10), inputs, hidden units and outputs."""

    name = "shape"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Parse the text of the option."""
        if isinstance(value, tuple):
            return value
        sizes = tuple(int(part) if part.isascii() and part.isdigit() else 0 for part in value.split("-"))
        if len(sizes) < 2 or min(sizes) < 1:
            self.fail(f"{value!r} is no shape such as 784-128-10: inputs, hidden units, outputs", param, ctx)
        return sizes


class Rates(click.ParamType):
    """Dropout rates: "0.2" is 0.2, the rate of every hidden layer; "0.1,0.5" is (0.1, 0.5), one rate per layer."""

    name = "rates"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | tuple[float, ...]:
        """Parse the text of the option."""
        if isinstance(value, float | tuple):
            return value
        try:
            rates = tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is no number and no list of numbers such as 0.1,0.5", param, ctx)
        return rates[0] if len(rates) == 1 else rates


READING = (
    click.option("--drop", multiple=True, metavar="COL", help="Leave this column out; may be repeated. Or COL,COL,..."),
    click.option(
        "--numeric",
        multiple=True,
        metavar="COL",
        help="This column holds numbers; as --drop. Other texts are an error.",
    ),
    click.option(
        "--categorical",
        multiple=True,
        metavar="COL",
        help="This column holds categories although it looks like numbers; as --drop.",
    ),
    click.option(
        "--decimal",
        type=click.Choice([".", ","]),
        metavar=". or ,",
        help="Decimal mark of numbers with a comma. [default: what the values of a column allow]",
    ),
    click.option(
        "--missing",
        multiple=True,
        metavar="TEXT",
        help="Text that stands for a missing value, besides the usual ones; may be repeated.",
    ),
    click.option("--day-first", is_flag=True, help="In dates such as 3/4/2024 the day comes first."),
    click.option(
        "--require-target", is_flag=True, help="A row without a target is an error. [default: it is left out]"
    ),
)
"""How the columns of CSV and Parquet files are read."""


def reading_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `READING` to a command."""
    for option in reversed(READING):
        function = option(function)
    return function


def stream_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option --stream to a command."""
    return click.option(
        "--stream/--no-stream",
        default=None,
        help="Read a CSV or Parquet file, or a folder, in pieces, or whole into memory. "
        f"[default: in pieces from {LARGE_BYTES // 2**20} MB on]",
    )(function)


def scratch_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option --scratch to a command."""
    return click.option(
        "--scratch",
        metavar="DIR",
        help="Folder for the numbers of a table that is read in pieces; they are removed at the end. "
        "[default: the system's folder of temporary files]",
    )(function)


def backend_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option --backend to a command."""
    return click.option(
        "--backend",
        metavar="NAME",
        help="numpy, numba-cpu, cupy, auto, or several in order of preference, separated by commas. "
        "[default: FUSEDMLP_BACKEND if it is set, else numba-cpu]",
    )(function)
