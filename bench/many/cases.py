"""What is timed: how many networks of which layers, on which samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Data = tuple[np.ndarray, np.ndarray]
"""X of shape (n1, m) and Y of shape (nL, m), float32."""


def breast_cancer() -> Data:
    """569 samples of 30 standardised numbers, and two classes."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.preprocessing import scale

    table, y = load_breast_cancer(return_X_y=True)
    return scale(table).astype(np.float32).T, y[None].astype(np.float32)


def digits() -> Data:
    """1,797 images of 8 × 8 in ten classes."""
    from sklearn.datasets import load_digits

    table, y = load_digits(return_X_y=True)
    return (table / 16).astype(np.float32).T, np.eye(10, dtype=np.float32)[y].T


def images() -> Data:
    """10,000 images of 784 random pixels in ten classes."""
    rng = np.random.default_rng(0)
    prototypes, y = rng.random((10, 784), np.float32), rng.integers(0, 10, 10_000)
    table = prototypes[y] + rng.standard_normal((10_000, 784), np.float32) * np.float32(0.6)
    return table.T, np.eye(10, dtype=np.float32)[y].T


@dataclass(frozen=True)
class Case:
    """Networks with relu, trained by Adam, each from its own weights and in its own order of the samples.

    Parameters
    ----------
    networks : int
    hidden : tuple of int
    data : callable
    batch_size, epochs : int
    fewer : int
        Scikit-learn, and trainings one after the other, train so many of the networks: the others would take as long
        each.
    """

    networks: int
    hidden: tuple[int, ...]
    data: Callable[[], Data]
    batch_size: int
    epochs: int
    fewer: int

    def layers(self, X: np.ndarray, Y: np.ndarray) -> list[int]:
        """Layer sizes."""
        return [len(X), *self.hidden, len(Y)]

    def steps(self, m: int) -> int:
        """Optimizer steps of one network on m samples."""
        return self.epochs * -(-m // self.batch_size)


CASES = {
    "256 of 30-64-1": Case(256, (64,), breast_cancer, 32, 20, 16),
    "1,024 of 30-64-1": Case(1024, (64,), breast_cancer, 32, 20, 16),
    "64 of 64-100-10": Case(64, (100,), digits, 200, 20, 16),
    "16 of 784-128-10": Case(16, (128,), images, 200, 2, 4),
}
