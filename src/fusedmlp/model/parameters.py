"""Parameters: one flat vector, with a view into it per W and b. Gradients have the same form.

One vector is what makes an optimizer step one pass, a checkpoint one buffer and an all-reduce one call.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from fusedmlp.model.activations import HIDDEN_ACTIVATIONS, Array
from fusedmlp.model.architecture import Architecture


class UniformGenerator(Protocol):
    """What an initialiser needs of a random generator; ``numpy.random.Generator`` and ``RandomState`` both have it."""

    def uniform(self, low: float, high: float, size: Any) -> np.ndarray:
        """Draw from [low, high)."""


class Views(list[Array]):
    """A list of views: assigning to one of them writes into the array that it looks at."""

    def __setitem__(self, index: Any, value: Any) -> None:
        self[index][...] = value


class Parameters:
    """The weights and biases of a network, as views of one flat vector.

    Parameters
    ----------
    architecture : Architecture
    flat : array of shape (n_parameters,)
        W1 (row by row), b1, W2, b2, ... one after the other; owned by this object from now on.

    Attributes
    ----------
    flat : array of shape (n_parameters,)
    weights : list of arrays
        W_l, shape (n_in, n_out): writing to one writes to `flat`.
    biases : list of arrays
        b_l, shape (n_out, 1); empty where the architecture has no bias.
    """

    def __init__(self, architecture: Architecture, flat: Array) -> None:
        if flat.shape != (architecture.n_parameters,):
            raise ValueError(
                f"flat: expected shape ({architecture.n_parameters},) for layers "
                f"{list(architecture.layer_sizes)}; got {flat.shape}"
            )
        self.architecture = architecture
        self._flat = flat
        self._views: tuple[list[Array], list[Array]] | None = None

    def __repr__(self) -> str:
        sizes = "-".join(map(str, self.architecture.layer_sizes))
        return f"{type(self).__name__}({sizes}, {self.architecture.n_parameters:,} numbers, {self.architecture.dtype})"

    @property
    def weights(self) -> list[Array]:
        """W_l, shape (n_in, n_out), as views of `flat`."""
        return self._all_views()[0]

    @property
    def biases(self) -> list[Array]:
        """b_l, shape (n_out, 1), as views of `flat`; empty where the architecture has no bias."""
        return self._all_views()[1]

    def _all_views(self) -> tuple[list[Array], list[Array]]:
        """Made when they are first asked for: a pass of a compiled engine needs none."""
        if self._views is None:
            weights, biases = Views(), Views()
            a = self.architecture
            for shape, (start, end) in zip(a.weight_shapes, a.weight_ranges, strict=True):
                weights.append(self._flat[start:end].reshape(shape))
                if a.bias:
                    biases.append(self._flat[end : end + shape[1]].reshape(shape[1], 1))
            self._views = weights, biases
        return self._views

    @property
    def flat(self) -> Array:
        """The vector that `weights` and `biases` are views of. Write to ``flat[...]``; it cannot be replaced."""
        return self._flat

    @flat.setter
    def flat(self, value: Array) -> None:
        # `gradients.flat += x` and the like assign the same array again.
        if value is not self._flat:
            raise AttributeError("flat: cannot be replaced, as weights and biases are views of it; write to flat[...]")

    def bias(self, layer: int) -> Array | None:
        """b of weight layer `layer` (0 is b1), or None where the architecture has no bias."""
        return self.biases[layer] if self.biases else None

    def named(self) -> Iterator[tuple[str, Array]]:
        """("W1", W1), ("b1", b1), ("W2", W2), ... in the order of the flat vector."""
        for layer, W in enumerate(self.weights):
            yield f"W{layer + 1}", W
            if self.biases:
                yield f"b{layer + 1}", self.biases[layer]


class Gradients(Parameters):
    """∂J/∂W and ∂J/∂b in the same form as the parameters: `flat`, `weights` (dW1, dW2, ...), `biases` (db1, ...)."""

    def scale(self, parameters: Parameters, factor: float, decay: float) -> None:
        """Turn sums over samples into the gradient of J: factor · flat, and decay · W added to every dW.

        Parameters
        ----------
        parameters : Parameters
        factor : float
            1 / Σ w, or 1 where J is a sum.
        decay : float
            alpha / m, of the L2 term.
        """
        if factor != 1.0:
            self.flat *= self.flat.dtype.type(factor)
        if decay:
            for W, dW in zip(parameters.weights, self.weights, strict=True):
                dW += W * W.dtype.type(decay)


def glorot_uniform(architecture: Architecture, generator: UniformGenerator) -> np.ndarray:
    """Draw the flat parameter vector with Glorot and Bengio's bounds.

    Each W and b is uniform in ±sqrt(c / (n_in + n_out)), c = 2 behind a sigmoid and 6 otherwise (Glorot and Bengio,
    "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010, eq. 16; the sigmoid's
    smaller bound and the drawn biases are scikit-learn's). Drawn in float64: every dtype starts from the same numbers.

    Returns
    -------
    numpy.ndarray of shape (n_parameters,), of the architecture's dtype
    """
    factor = HIDDEN_ACTIVATIONS[architecture.hidden_activation].glorot_factor
    drawn = Parameters(architecture, np.empty(architecture.n_parameters))
    for layer, (n_in, n_out) in enumerate(architecture.weight_shapes):
        bound = float(np.sqrt(factor / (n_in + n_out)))
        drawn.weights[layer][...] = generator.uniform(-bound, bound, (n_in, n_out))
        if architecture.bias:
            drawn.biases[layer][...] = generator.uniform(-bound, bound, (n_out, 1))
    return drawn.flat.astype(architecture.dtype)
