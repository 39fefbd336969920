"""A table with numbers and texts: a Pipeline, a grid search over networks, and the columns that matter.

    python examples/tabular_classification.py

With ``from sklearn.neural_network import MLPClassifier`` in place of the second import, the same script runs on
scikit-learn's own class, with the same numbers.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_wine
from sklearn.inspection import permutation_importance
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from fusedmlp import MLPClassifier


def wines() -> tuple[pd.DataFrame, pd.Series]:
    """178 Italian wines: 13 measured numbers, of which the color becomes a text, and the names of three cultivars."""
    bunch = load_wine(as_frame=True)
    table = bunch.data.drop(columns="color_intensity")
    table["color"] = pd.cut(bunch.data["color_intensity"], [0, 4, 7, 20], labels=["pale", "ruby", "dark"]).astype(str)
    return table, bunch.target.map(dict(enumerate(["Barolo", "Grignolino", "Barbera"])))


def main() -> None:
    """Search, and print what was found."""
    table, cultivar = wines()
    train, test, y_train, y_test = train_test_split(table, cultivar, random_state=0, stratify=cultivar)
    numbers = table.columns.drop("color").tolist()
    columns = make_column_transformer((StandardScaler(), numbers), (OneHotEncoder(), ["color"]))
    model = make_pipeline(columns, MLPClassifier(solver="lbfgs", max_iter=300, random_state=0))
    grid = {
        "mlpclassifier__hidden_layer_sizes": [(8,), (32,), (16, 16)],
        "mlpclassifier__activation": ["tanh", "relu"],
        "mlpclassifier__alpha": [0.01, 1.0],
    }
    search = GridSearchCV(model, grid, cv=5, n_jobs=-1).fit(train, y_train)
    print("best setting:", {name.split("__")[1]: value for name, value in search.best_params_.items()})
    print(f"accuracy: {search.best_score_:.3f} in cross-validation, {search.score(test, y_test):.3f} on new wines")
    importance = permutation_importance(search, test, y_test, n_repeats=10, random_state=0).importances_mean
    best = np.argsort(importance)[::-1][:3]
    print("columns that matter most:", ", ".join(f"{table.columns[i]} ({importance[i]:.2f})" for i in best))


if __name__ == "__main__":
    main()
