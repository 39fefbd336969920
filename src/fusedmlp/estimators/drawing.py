"""The orders of the samples, as scikit-learn draws them."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusedmlp.engines.primitives import Primitives
from fusedmlp.engines.samples import Samples
from fusedmlp.training.state import generator_data, set_generator


class Drawing:
    """The orders of some epochs: each shuffles the last one's, as scikit-learn does.

    Parameters
    ----------
    estimator : MLPClassifier or MLPRegressor
    backend : Primitives
    order : array of int
        That of the last epoch.
    epochs : int
    drawn : bool
        Whether the epoch has begun before: its order is that of the last one.
    """

    def __init__(
        self, estimator: Any, backend: Primitives, order: np.ndarray, epochs: int, drawn: bool = False
    ) -> None:
        self._generator, self._backend = estimator._random_state, backend
        self._first, self._shuffles = order, estimator.shuffle
        self._before = generator_data(self._generator) if self._shuffles and epochs > 1 else None
        self._rows: list[np.ndarray] = []
        if self._shuffles and drawn:
            self._rows = [order]
        elif self._shuffles:
            for places in self._places(epochs):
                order = order[places]
                self._rows.append(order)

    def orders(self, samples: Samples) -> np.ndarray | None:
        """The orders as columns of the samples' X: shape (epochs, m); None where nothing is shuffled."""
        if not self._shuffles:
            return None
        return np.stack([np.asarray(samples.ordered(row), np.int64) for row in self._rows])

    def last(self) -> np.ndarray | None:
        """The last order, as rows; None where nothing is shuffled."""
        return self._rows[-1] if self._rows else None

    def keep(self, begun: int) -> np.ndarray:
        """Take back what was drawn for epochs that were not begun; the last order of those that were."""
        if self._before is not None and begun < len(self._rows):
            set_generator(self._generator, self._before)
            self._places(begun)
        return self._rows[begun - 1] if self._rows and begun else self._first

    def _places(self, epochs: int) -> np.ndarray:
        """Where each epoch's samples are in the order before it."""
        return self._backend.permutations(self._generator, len(self._first), epochs)
