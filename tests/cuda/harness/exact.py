"""The activations in numpy, f(z), and their derivatives in terms of a = f(z): what kernels are compared with."""

from __future__ import annotations

import numpy as np

f = {
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "tanh": np.tanh,
    "relu": lambda z: np.maximum(z, 0),
    "identity": lambda z: z,
}
slope = {
    "sigmoid": lambda a: a * (1 - a),
    "tanh": lambda a: 1 - a * a,
    "relu": lambda a: np.where(a > 0, 1.0, 0.0),
    "identity": np.ones_like,
}
