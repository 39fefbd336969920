"""The small real data sets that scikit-learn contains. Nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fusedmlp.data.table import Schema, Table, no_text


@dataclass(frozen=True)
class Bundled:
    """A bundled data set.

    Attributes
    ----------
    loader : str
        The function of ``sklearn.datasets``.
    about : str
        Its content, for ``--help``.
    classification : bool
    """

    loader: str
    about: str
    classification: bool = True


BUNDLED = {
    "breast-cancer": Bundled("load_breast_cancer", "569 rows, 30 columns, 2 classes"),
    "digits": Bundled("load_digits", "1797 images of 8×8 pixels, 10 classes"),
    "diabetes": Bundled("load_diabetes", "442 rows, 10 columns, a number to predict", classification=False),
    "wine": Bundled("load_wine", "178 rows, 13 columns, 3 classes"),
    "iris": Bundled("load_iris", "150 rows, 4 columns, 3 classes"),
}


def read_bundled(name: str) -> Table:
    """Read a bundled data set. Classes are given by their names ("malignant") if the data set has names for them."""
    from sklearn import datasets

    data = getattr(datasets, BUNDLED[name].loader)()
    target = data.target
    if BUNDLED[name].classification:
        names = np.asarray(data.target_names)
        target = (names.astype(object) if names.dtype.kind == "U" else names)[target]
    schema = Schema(
        tuple(str(column) for column in data.feature_names), target="target", text_target=target.dtype == object
    )
    return Table(name, schema, data.data, no_text(len(data.data)), target, BUNDLED[name].classification)
