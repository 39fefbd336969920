"""The network behind `coefs_` and `intercepts_`.

`coefs_` and `intercepts_` are numpy arrays that a user may change or replace, as with scikit-learn's estimators. Where
the backend computes in host memory they are views of the network's flat vector. On a GPU they are copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fusedmlp.model.activations import HIDDEN_ACTIVATIONS
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.parameters import Parameters
from fusedmlp.network import Network

ACTIVATIONS = {"logistic" if name == "sigmoid" else name: name for name in HIDDEN_ACTIVATIONS}
"""scikit-learn's name of a hidden activation -> ours."""


class Link(NamedTuple):
    """A network, and the arrays that were `coefs_` and `intercepts_` when it was made.

    Attributes
    ----------
    network : Network
    arrays : tuple of numpy.ndarray
        Views of the network's flat vector, or, for a GPU, copies of it.
    shared : bool
        Whether they are views.
    """

    network: Network
    arrays: tuple[np.ndarray, ...]
    shared: bool

    def serves(self, arrays: Sequence[Any], activation: str, loss: str) -> bool:
        """Whether the network is that of these arrays, this activation and this loss."""
        a = self.network.architecture
        same = len(arrays) == len(self.arrays) and all(x is y for x, y in zip(arrays, self.arrays, strict=True))
        return same and a.hidden_activation == activation and a.loss == loss


def packed(coefs: Sequence[Any], intercepts: Sequence[Any]) -> np.ndarray:
    """W1, b1, W2, b2, ... in one new vector, as `Parameters` has them."""
    return np.concatenate([np.ravel(x) for pair in zip(coefs, intercepts, strict=True) for x in pair])


def network_from(
    coefs: Sequence[Any], intercepts: Sequence[Any], activation: str, loss: str, dtype: str, backend: Any = None
) -> Network:
    """A network with a copy of these weights and biases.

    Parameters
    ----------
    coefs : sequence of array of shape (n_in, n_out)
    intercepts : sequence of array of shape (n_out,)
    activation, loss : str
        Names of the core.
    dtype : {"float32", "float64"}
    backend : Backend, optional
        None: the one that is selected now.
    """
    weights = [np.asarray(W) for W in coefs]
    layer_sizes = [weights[0].shape[0], *(W.shape[1] for W in weights)]
    architecture = Architecture(layer_sizes, activation, loss, True, dtype)
    flat = packed(weights, intercepts).astype(dtype, copy=False)
    return Network.from_parameters(Parameters(architecture, flat), backend=backend)


def link(network: Network) -> Link:
    """A network with `coefs_` and `intercepts_` for it, in this order in `arrays`."""
    shared = network.backend.xp is np
    arrays = [*network.weights, *(b.reshape(-1) for b in network.biases)]
    return Link(network, tuple(x if shared else network.backend.to_numpy(x) for x in arrays), shared)
