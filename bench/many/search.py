"""``python -m bench.many.search``: a grid search on digits by MLPGridSearchCV, and by scikit-learn's search."""

from __future__ import annotations

import os
import time
import warnings

os.environ["PYTHONWARNINGS"] = "ignore"  # in joblib's processes too
GRID = {
    "hidden_layer_sizes": [(32,), (64,), (100,)],
    "alpha": [1e-5, 1e-4, 1e-3, 1e-2],
    "learning_rate_init": [1e-3, 3e-3],
    "activation": ["relu", "tanh"],
}
FOLDS, EPOCHS = 5, 50


def main() -> None:
    """Print seconds and the best parameters; the best of ours have to be the same, whoever searches."""
    import click
    from sklearn.datasets import load_digits
    from sklearn.model_selection import GridSearchCV
    from sklearn.neural_network import MLPClassifier as SklearnMLP

    from fusedmlp import MLPClassifier, MLPGridSearchCV, use_backend

    warnings.simplefilter("ignore")
    X, y = load_digits(return_X_y=True)
    ours, theirs = (kind(max_iter=EPOCHS, random_state=0) for kind in (MLPClassifier, SklearnMLP))
    searches = {
        "MLPGridSearchCV": MLPGridSearchCV(ours, GRID, cv=FOLDS),
        "GridSearchCV, fusedmlp": GridSearchCV(ours, GRID, cv=FOLDS),
        "GridSearchCV, scikit-learn, 2 processes": GridSearchCV(theirs, GRID, cv=FOLDS, n_jobs=2),
    }
    with use_backend("numba-cpu"):
        MLPGridSearchCV(MLPClassifier(max_iter=2), {"activation": GRID["activation"]}, cv=2).fit(X, y)  # compiles
        for name, search in searches.items():
            start = time.perf_counter()
            search.fit(X, y)
            click.echo(f"{name}: {time.perf_counter() - start:.1f} s, best {search.best_params_}")
    best = [searches[name].best_params_ for name in ("MLPGridSearchCV", "GridSearchCV, fusedmlp")]
    if best[0] != best[1]:
        raise AssertionError(f"the two searches with the same estimator differ: {best}")


if __name__ == "__main__":
    main()
