"""The digits on every backend of this machine: the same training, its time, and its loss curves in a picture.

python examples/digits_on_backends.py [digits.png]
"""

from __future__ import annotations

import sys
import time
import warnings

import matplotlib as mpl
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

mpl.use("Agg")

from matplotlib import pyplot as plt

from fusedmlp import LossCurveDisplay, MLPClassifier, available_backends, use_backend


def main(picture: str = "digits.png") -> None:
    """Train on each backend, print a line for it, and draw its curves."""
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X / 16, y, random_state=0, stratify=y)
    names = available_backends()
    _, axes = plt.subplots(1, len(names), figsize=(5 * len(names), 4), sharey=True, squeeze=False)
    for name, ax in zip(names, axes[0], strict=True):
        with use_backend(name), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            MLPClassifier(max_iter=1).fit(X_train, y_train)  # compiles
            start = time.perf_counter()
            model = MLPClassifier(max_iter=60, early_stopping=True, random_state=0).fit(X_train, y_train)
            seconds = time.perf_counter() - start
        accuracy = model.score(X_test, y_test)
        print(f"{name}: {model.n_iter_} epochs in {seconds:.2f} s, accuracy {accuracy:.3f} on new digits")
        LossCurveDisplay.from_estimator(model, name=name, ax=ax)
    plt.savefig(picture, dpi=120, bbox_inches="tight")
    print("wrote", picture)


if __name__ == "__main__":
    main(*sys.argv[1:2])
