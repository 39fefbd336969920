"""The solver "lbfgs": SciPy's L-BFGS-B over the engine's loss and gradients of all samples.

It runs in float64, as scikit-learn's does whatever the type of X: line searches fail on float32's rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import OptimizeResult, minimize
from sklearn.utils.optimize import _check_optimize_result

from fusedmlp.estimators.rows import Rows
from fusedmlp.model.parameters import Gradients
from fusedmlp.network import Network


class Objective:
    """J and its gradient as a function of the flat vector, as scikit-learn defines them.

    J is the mean loss times `loss_factor` plus ½·alpha·Σ‖W‖² / Σ wᵢ; the gradient is that of the loss without the
    factor, as in scikit-learn.

    Parameters
    ----------
    network : Network
        In float64. Its parameters are those of the last call.
    rows : Rows
    alpha : float
    loss_factor : float
    """

    def __init__(self, network: Network, rows: Rows, alpha: float, loss_factor: float) -> None:
        self._network, self._rows, self._loss_factor = network, rows, loss_factor
        xp, flat = network.backend.xp, network.parameters.flat
        self._gradients = Gradients(network.architecture, xp.empty_like(flat))
        self._decay = alpha / rows.weight_sum
        self._ranges = network.architecture.weight_ranges

    def __call__(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """J and a new array with the gradient."""
        network = self._network
        network.parameters.flat[...] = network.backend.asarray(theta)
        J = self._rows.loss_and_gradients(network, self._gradients) * self._loss_factor
        gradient = np.array(network.backend.to_numpy(self._gradients.flat))
        if self._decay:
            for start, end in self._ranges:
                W = theta[start:end]
                J += 0.5 * self._decay * float(np.dot(W, W))
                gradient[start:end] += self._decay * W
        return J, gradient


def fit_lbfgs(estimator: Any, network: Network, rows: Rows) -> None:
    """Train, and write `n_iter_` and `loss_`."""
    objective = Objective(network, rows, float(estimator.alpha), estimator._loss_factor())
    done = 0

    def say(intermediate_result: OptimizeResult) -> None:
        nonlocal done
        done += 1
        print(f"Iteration {done}, loss = {intermediate_result.fun:.8f}")

    result = minimize(
        objective,
        np.array(network.backend.to_numpy(network.parameters.flat)),
        method="L-BFGS-B",
        jac=True,
        callback=say if estimator.verbose else None,
        options={"maxfun": estimator.max_fun, "maxiter": estimator.max_iter, "gtol": estimator.tol},
    )
    network.parameters.flat[...] = network.backend.asarray(result.x)
    estimator.n_iter_ = _check_optimize_result("lbfgs", result, estimator.max_iter)
    estimator.loss_ = float(result.fun)
