"""Parameter types and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

DATA_HELP = """
\b
DATA is one of
  a bundled name  breast-cancer, digits, diabetes, wine, iris
  .csv .tsv       a line of column names, then rows, separated by , ; tab or |
                  (also .gz); missing: empty, NA, N/A, NaN, null, None, ?
  .parquet .pq    columns of numbers, booleans, text or categories
  .npy            an array (rows, columns), memory-mapped
  .npz            arrays X and y; memory-mapped where np.savez wrote them,
                  loaded where np.savez_compressed did
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


class Names(click.ParamType):
    """Names separated by commas: "a,b" is ("a", "b")."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Split the text and strip the names."""
        if isinstance(value, tuple):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())


def backend_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option --backend to a command."""
    return click.option(
        "--backend",
        metavar="NAME",
        help="numpy, numba-cpu, cupy, auto, or several in order of preference, separated by commas. "
        "[default: FUSEDMLP_BACKEND if it is set, else numba-cpu]",
    )(function)
