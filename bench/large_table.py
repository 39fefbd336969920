"""Writes a CSV file for trainings on tables larger than memory: ``python -m bench.large_table big.csv``.

It has 20 columns of numbers, 3 of categories, and two classes "yes" and "no" in the column y. The times of
``fusedmlp train big.csv --target y`` are in docs/large-tables.md.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import polars as pl

ROWS = 100_000
NUMBERS, CATEGORIES = 20, (5, 12, 40)


def block(generator: np.random.Generator) -> pl.DataFrame:
    """Some rows of the table."""
    x = generator.normal(size=(NUMBERS, ROWS)).round(5)
    codes = [generator.integers(0, count, ROWS) for count in CATEGORIES]
    score = x[0] + 0.5 * x[1] * x[2] + 0.5 * (codes[0] - 2) + generator.normal(scale=0.5, size=ROWS)
    columns = {f"x{i}": column for i, column in enumerate(x)}
    columns |= {f"c{i}": np.char.add("kind", column.astype(str)) for i, column in enumerate(codes)}
    return pl.DataFrame(columns | {"y": np.where(score > 0, "yes", "no")})


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    with open(arguments.path, "wb") as file:
        block(generator).write_csv(file)
        while os.fstat(file.fileno()).st_size < arguments.gigabytes * 1e9:
            block(generator).write_csv(file, include_header=False)


if __name__ == "__main__":
    main()
