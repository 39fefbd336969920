"""An independent float64 implementation of every activation, loss, gradient and optimizer step.

It shares no code with the package. Rows are samples, sums are written with einsum, and every derivative goes through
the chain rule with explicit Jacobians. A mistake in the package's shortcuts (dZ = A - Y, f' in terms of A) is therefore
not repeated here. The functions accept NumPy arrays, and CuPy arrays as well: the benchmarks check a GPU with them.
"""

from __future__ import annotations

import numpy as np
from scipy import special as scipy_special

SELU_SCALE, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
"""The two constants of Klambauer et al., "Self-normalizing neural networks", 2017."""


def _special(z):
    """scipy.special, or CuPy's version of it for an array on a GPU."""
    if type(z).__module__.partition(".")[0] != "cupy":
        return scipy_special
    from cupyx.scipy import special

    return special


def _expit(z):
    return _special(z).expit(z)


def _softplus(z):
    return np.logaddexp(0.0, z)


def _sech_squared(z):
    return 1 / np.cosh(np.clip(z, -300, 300)) ** 2


def _normal_cdf(z):
    """Φ(z). scipy's ndtr is off by z² roundings far below 0: there z² is taken in two parts, one of them exact."""
    z = np.clip(z, -40.0, 40.0)
    part = z.astype(np.float32).astype(np.float64)
    exponential = np.exp(-0.5 * part * part) * np.exp(-0.5 * (z - part) * (z + part))
    tail = 0.5 * _special(z).erfcx(np.abs(z) / np.sqrt(2)) * exponential
    return np.where(z > 0, 1 - tail, tail)


def _gelu_slope(z):
    density = np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
    return _normal_cdf(z) + z * density


def _mish_slope(z):
    return np.tanh(_softplus(z)) + z * _sech_squared(_softplus(z)) * _expit(z)


def _exp_of_negative(z):
    """exp(z) where z <= 0, and 1 elsewhere: large positive numbers do not overflow."""
    return np.exp(np.minimum(z, 0.0))


ACTIVATIONS = {
    # name: (f(z), f'(z))
    "sigmoid": (_expit, lambda z: _expit(z) * _expit(-z)),
    "tanh": (np.tanh, _sech_squared),
    "relu": (lambda z: np.maximum(z, 0.0), lambda z: np.where(z > 0, 1.0, 0.0)),
    "identity": (lambda z: z, lambda z: np.ones_like(z)),
    "leaky_relu": (lambda z: np.where(z > 0, z, 0.01 * z), lambda z: np.where(z > 0, 1.0, 0.01)),
    "elu": (lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0.0))), _exp_of_negative),
    "selu": (
        lambda z: SELU_SCALE * np.where(z > 0, z, SELU_ALPHA * np.expm1(np.minimum(z, 0.0))),
        lambda z: SELU_SCALE * np.where(z > 0, 1.0, SELU_ALPHA * _exp_of_negative(z)),
    ),
    "softplus": (_softplus, _expit),
    "gelu": (lambda z: z * _normal_cdf(z), _gelu_slope),
    "silu": (lambda z: z * _expit(z), lambda z: _expit(z) * (1 + z * _expit(-z))),
    "mish": (lambda z: z * np.tanh(_softplus(z)), _mish_slope),
    "softsign": (lambda z: z / (1 + np.abs(z)), lambda z: (1 + np.abs(z)) ** -2),
}


def _diagonal(values):
    """Jacobians (m, n, n) of an element-wise function with these derivatives (m, n)."""
    return np.einsum("ij,jk->ijk", values, np.eye(values.shape[1], like=values))


def _softmax(z):
    return _special(z).softmax(z, axis=1)


def _log_softmax(z):
    return _special(z).log_softmax(z, axis=1)


def _sigmoid_jacobian(z):
    return _diagonal(_expit(z) * _expit(-z))


def _softmax_jacobian(z):
    p = _softmax(z)
    return _diagonal(p) - np.einsum("ij,ik->ijk", p, p)


def _cross_entropy(z, y):
    return (y * np.logaddexp(0, -z) + (1 - y) * np.logaddexp(0, z)).sum(axis=1)


def _quantile(z, y):
    return np.where(y > z, 0.5 * (y - z), 0.5 * (z - y)).sum(axis=1)


def _huber(z, y):
    r = np.abs(z - y)
    return np.where(r > 1, r - 0.5, 0.5 * r**2).sum(axis=1)


LOSSES = {
    # loss: (prediction, its Jacobian (m, out, logit), j from the logits, ∂j/∂prediction)
    "binary_cross_entropy": (
        _expit,
        _sigmoid_jacobian,
        _cross_entropy,
        lambda p, y, z: (1 - y) / _expit(-z) - y / _expit(z),
    ),
    "categorical_cross_entropy": (
        _softmax,
        _softmax_jacobian,
        lambda z, y: -(y * _log_softmax(z)).sum(axis=1),
        lambda p, y, z: -y / p,
    ),
    "squared_error": (
        lambda z: z,
        lambda z: _diagonal(np.ones_like(z)),
        lambda z, y: 0.5 * ((y - z) ** 2).sum(axis=1),
        lambda p, y, z: p - y,
    ),
    "poisson": (
        np.exp,
        lambda z: _diagonal(np.exp(z)),
        lambda z, y: (_special(y).xlogy(y, y) - y * z - y + np.exp(z)).sum(axis=1),
        lambda p, y, z: 1 - y / p,
    ),
    "sum_squared_error": (
        _expit,
        _sigmoid_jacobian,
        lambda z, y: 0.5 * ((y - _expit(z)) ** 2).sum(axis=1),
        lambda p, y, z: p - y,
    ),
    "absolute_error": (
        lambda z: z,
        lambda z: _diagonal(np.ones_like(z)),
        lambda z, y: np.abs(y - z).sum(axis=1),
        lambda p, y, z: np.where(p > y, 1.0, -1.0),
    ),
    "huber": (
        lambda z: z,
        lambda z: _diagonal(np.ones_like(z)),
        _huber,
        lambda p, y, z: np.where(np.abs(p - y) > 1, np.sign(p - y), p - y),
    ),
    "quantile": (
        lambda z: z,
        lambda z: _diagonal(np.ones_like(z)),
        _quantile,
        lambda p, y, z: np.where(p > y, 0.5, -0.5),
    ),
}


def _double(x, like):
    return x.astype(np.float64) if hasattr(x, "astype") else np.asarray(x, np.float64, like=like)


def _product(subscripts, left, right):
    return np.einsum(subscripts, left, right, optimize=True)  # by BLAS


def forward(weights, biases, X, activation, loss):
    """(logits, prediction), rows as samples, for weights (n_in, n_out), biases (n_out,) or none, X (m, n1)."""
    z = _layers(weights, biases, X, activation, None)[0][-1]
    return z, LOSSES[loss][0](z)


def _layers(weights, biases, X, activation, factors):
    """The logits z of every layer, and the inputs of every layer with their dropout factors."""
    f = ACTIVATIONS[activation][0]
    a, zs, inputs = _double(X, X), [], []
    for layer, W in enumerate(weights):
        if factors is not None and factors[layer] is not None:
            a = a * factors[layer]
        inputs.append(a)
        z = _product("ij,jk->ik", a, _double(W, X))
        if biases:
            z = z + _double(biases[layer], X).reshape(1, -1)
        zs.append(z)
        if layer < len(weights) - 1:
            a = f(z)
    return zs, inputs


def loss_and_gradients(
    weights, biases, X, Y, activation, loss, sample_weight=None, alpha=0.0, *, divisor=None, factors=None
):
    """Loss and gradients of a network in float64.

    Parameters
    ----------
    weights, biases : lists of arrays (n_in, n_out) and (n_out,)
        `biases` may be empty.
    X, Y : arrays of shape (m, n1) and (m, nL)
    activation, loss : str
        Keys of ACTIVATIONS and LOSSES.
    sample_weight : array of shape (m,), optional
    alpha : float
        The L2 term is alpha / (2 m) times the sum of all squared weights.
    divisor : float, optional
        The weighted sums over samples are divided by it. Without it: by the sum of the sample weights, for
        sum_squared_error by 1.
    factors : list of arrays (m, n_in) or None, optional
        Dropout: the input of each layer is multiplied by its factors, which are 0 or 1/(1-p).

    Returns
    -------
    J : float
    dWs, dbs : lists of arrays of the shapes of weights and biases
    """
    weights = [_double(W, X) for W in weights]
    Y = _double(Y, X)
    predict, jacobian, per_sample, slope = LOSSES[loss]
    zs, inputs = _layers(weights, biases, X, activation, factors)
    m = len(Y)
    w = np.ones(m, like=Y) if sample_weight is None else _double(sample_weight, X)
    if divisor is None:
        divisor = 1.0 if loss == "sum_squared_error" else w.sum()
    share = w / divisor
    J = float((share * per_sample(zs[-1], Y)).sum()) + 0.5 * alpha / m * sum(float((W**2).sum()) for W in weights)
    delta = np.einsum("i,ij,ijk->ik", share, slope(predict(zs[-1]), Y, zs[-1]), jacobian(zs[-1]))
    dWs, dbs = [], []
    for layer in range(len(weights) - 1, -1, -1):
        dWs.insert(0, _product("ij,ik->jk", inputs[layer], delta) + alpha / m * weights[layer])
        dbs.insert(0, delta.sum(axis=0))
        if layer:
            delta = _product("ik,jk->ij", delta, weights[layer])
            if factors is not None and factors[layer] is not None:
                delta = delta * factors[layer]
            delta = delta * ACTIVATIONS[activation][1](zs[layer - 1])
    return J, dWs, dbs if biases else []


def keep_mask(seed, rate, layer, units, samples, step):
    """Dropout's mask of the inputs of a layer (0 is the first), bool (len(samples), units), in Python's integers."""

    def splitmix64(x):
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    def mix32(h):
        h = (h ^ (h >> 16)) * 0x7FEB352D % 2**32
        h = (h ^ (h >> 15)) * 0x846CA68B % 2**32
        return h ^ (h >> 16)

    key = splitmix64(seed ^ splitmix64(step))
    of_sample = [mix32(i % 2**32 ^ key % 2**32) ^ mix32(((i >> 32) + (key >> 32)) % 2**32) for i in map(int, samples)]
    of_unit = [splitmix64((key + (layer << 40) + unit + 1) % 2**64) % 2**32 for unit in range(units)]
    threshold = min(2**32 - 1, round(rate * 2**32))
    return np.array([[mix32(i ^ unit) >= threshold for unit in of_unit] for i in of_sample])


def clipped(gradient, clip_norm):
    """The flat gradient, scaled as torch.nn.utils.clip_grad_norm_ does: its norm is at most about `clip_norm`."""
    norm = np.sqrt(np.sum(np.asarray(gradient, np.float64) ** 2))
    return gradient * min(1.0, clip_norm / (norm + 1e-6))


def sgd(theta, gradient, v, rate, momentum=0.0, nesterov=False):
    """(theta, v) after a step of gradient descent, with the momentum v or with Nesterov's."""
    v = momentum * v - rate * gradient
    return theta + (momentum * v - rate * gradient if nesterov else v), v


def adam(theta, gradient, m, v, t, rate=0.001, beta_1=0.9, beta_2=0.999, epsilon=1e-8):
    """(theta, m, v) after step t >= 1 of Adam, as in the last paragraph of section 2 of Kingma and Ba."""
    m = beta_1 * m + (1 - beta_1) * gradient
    v = beta_2 * v + (1 - beta_2) * gradient**2
    return theta - rate * np.sqrt(1 - beta_2**t) / (1 - beta_1**t) * m / (np.sqrt(v) + epsilon), m, v


def adamw(theta, gradient, m, v, t, decays, rate=0.001, beta_1=0.9, beta_2=0.999, epsilon=1e-8, weight_decay=0.01):
    """(theta, m, v) after step t >= 1 of AdamW, as torch.optim.AdamW computes it.

    `decays` is True where `theta` holds a weight: biases do not decay. `epsilon` is added to the corrected √v̂, so it
    equals epsilon·√(1-β₂ᵗ) in the form of `adam`. Compared once with torch 2.13.0 in float64, together with `clipped`
    and clip_grad_norm_: after 200 steps the parameters differ by less than 1e-14.
    """
    theta = theta - rate * weight_decay * np.where(decays, theta, 0.0)
    m = beta_1 * m + (1 - beta_1) * gradient
    v = beta_2 * v + (1 - beta_2) * gradient**2
    m_hat, v_hat = m / (1 - beta_1**t), v / (1 - beta_2**t)
    return theta - rate * m_hat / (np.sqrt(v_hat) + epsilon), m, v
