"""The networks of the two notes with the notes' symbols: computed here element by element, and traced by fusedmlp."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from notes_math import ShapeMismatchError, derivative, jacobian, sigmoid

from fusedmlp import Network, Parameters


def changed(net: Network, layer: int, kind: str, row: int, column: int, h: float) -> Network:
    """A copy of `net` with h added to one element (counted from 1) of W or b of a layer (counted from 1)."""
    parameters = Parameters(net.architecture, net.parameters.flat.copy())
    {"W": parameters.weights, "b": parameters.biases}[kind][layer - 1][row - 1, column - 1] += h
    return Network.from_parameters(parameters, backend="numpy")


class FirstNote:
    """Three layers, one output, a column per sample, binary cross-entropy. Indices count from 1, as in the note.

    Every layer has a size of its own, so that no wrong shape can pass; n1 > n2, so that a layer's index put on the
    wrong matrix still finds an element.
    """

    n1, n2, m = 4, 3, 5

    def __init__(self) -> None:
        generator = np.random.default_rng(7)
        self.net = Network([self.n1, self.n2, 1], dtype="float64", backend="numpy", random_state=generator)
        self.net.parameters.flat *= 2.0  # large enough for the curvature of the sigmoid to show
        self.X = generator.normal(size=(self.n1, self.m))
        self.Y = np.array([[0.0, 1.0, 1.0, 0.0, 1.0]])
        self.trace = self.net.trace(self.X, self.Y)
        self.inputs, self.units = range(1, self.n1 + 1), range(1, self.n2 + 1)
        self.samples = range(1, self.m + 1)
        self.values = {i: self.sample(i) for i in self.samples}

    # Symbols ---------------------------------------------------------------------------------------------------------

    def x(self, i: int, k: int) -> float:
        return _element(self.X, k, i)

    def y(self, i: int) -> float:
        return _element(self.Y, 1, i)

    def w1(self, j: int, k: int) -> float:
        """W^(1)_{j,k}: unit j, input k. It lies in row k and column j of W1."""
        return _element(self.net.weights[0], k, j)

    def b1(self, j: int) -> float:
        return _element(self.net.biases[0], j, 1)

    def w2(self, j: int) -> float:
        """W^(2)_{1,j}: unit 1, input j."""
        return _element(self.net.weights[1], j, 1)

    def b2(self) -> float:
        return _element(self.net.biases[1], 1, 1)

    def z1(self, j: int, i: int) -> float:
        return self.values[i]["z1"][j]

    def a1(self, j: int, i: int) -> float:
        return self.values[i]["a1"][j]

    def z2(self, i: int) -> float:
        return self.values[i]["z2"][1]

    def a2(self, i: int) -> float:
        return self.values[i]["a2"][1]

    def j(self, i: int) -> float:
        return self.values[i]["j"][1]

    # Matrices of the element-wise values -----------------------------------------------------------------------------

    def column(self, symbol: str, i: int) -> np.ndarray:
        """z1, a1, z2 or a2 of one sample, (n, 1)."""
        return np.array([[value] for value in self.values[i][symbol].values()])

    def matrix(self, symbol: str) -> np.ndarray:
        """Z1, A1, Z2 or A2, (n, m)."""
        return np.hstack([self.column(symbol.lower(), i) for i in self.samples])

    def alone(self, i: int) -> dict[str, Any]:
        """The trace of a batch of one sample."""
        return self.net.trace(self.X[:, i - 1 : i], self.Y[:, i - 1 : i])

    # The network, element by element ---------------------------------------------------------------------------------

    def sample(self, i: int, wrt: str = "", at: tuple[int, ...] = (), h: float = 0.0) -> dict[str, dict[int, float]]:
        """z1, a1, z2, a2 and j of a sample, with h added to the element `at` of the quantity `wrt` on the way."""

        def bump(name: str, *index: int) -> float:
            return h if (name, index) == (wrt, at) else 0.0

        z1, a1 = {}, {}
        for j in self.units:
            z1[j] = self.b1(j) + bump("b1", j) + bump("z1", j)
            for k in self.inputs:
                z1[j] += (self.w1(j, k) + bump("W1", j, k)) * self.x(i, k)
            a1[j] = sigmoid(z1[j]) + bump("a1", j)
        z2 = self.b2() + bump("b2") + bump("z2")
        for j in self.units:
            z2 += (self.w2(j) + bump("W2", j)) * a1[j]
        a2 = sigmoid(z2) + bump("a2")
        loss = -(self.y(i) * math.log(a2) + (1 - self.y(i)) * math.log(1 - a2))
        return {"z1": z1, "a1": a1, "z2": {1: z2}, "a2": {1: a2}, "j": {1: loss}}

    def partial(self, i: int, of: str, wrt: str, *at: int, unit: int = 1) -> float:
        """∂ of / ∂ wrt[at] for sample i, by a central difference; `unit` is the element of `of`."""
        return float(derivative(lambda h: self.sample(i, wrt, at, h)[of][unit]))

    def partial_J(self, wrt: str, *at: int) -> float:
        """∂J/∂wrt[at], J the mean of j over the samples, by a central difference."""
        return float(derivative(lambda h: sum(self.sample(i, wrt, at, h)["j"][1] for i in self.samples) / self.m))

    def gradient(self, parameter: str) -> np.ndarray:
        """∂J/∂W1, ∂J/∂b1, ∂J/∂W2 or ∂J/∂b2, in its matrix layout, by central differences."""
        return self._layout(parameter, lambda *at: self.partial_J(parameter, *at))

    def sample_gradient(self, i: int, parameter: str) -> np.ndarray:
        """∂j/∂parameter of one sample, in its matrix layout, by central differences."""
        return self._layout(parameter, lambda *at: self.partial(i, "j", parameter, *at))

    def _layout(self, parameter: str, element: Callable[..., float]) -> np.ndarray:
        if parameter == "W1":
            return np.array([[element(j, k) for j in self.units] for k in self.inputs])
        if parameter == "b2":
            return np.array([[element()]])
        return np.array([[element(j)] for j in self.units])


class LogisticRegression:
    """A = σ(wᵀX + b): m samples, numbered from 1."""

    n1, m = 4, 6

    def __init__(self) -> None:
        generator = np.random.default_rng(3)
        self.net = Network([self.n1, 1], dtype="float64", backend="numpy", random_state=generator)
        self.net.parameters.flat *= 2.0
        self.w, self.b = self.net.weights[0], self.net.biases[0].item()
        self.X = generator.normal(size=(self.n1, self.m))
        self.Y = np.array([[0.0, 1.0, 1.0, 0.0, 1.0, 0.0]])
        self.trace = self.net.trace(self.X, self.Y)
        self.a = self.outputs()

    def outputs(self, dw: np.ndarray | float = 0.0, db: float = 0.0) -> list[float]:
        """a of every sample, by a sum over its inputs."""
        w = (self.w + dw).ravel()
        columns = self.X.T
        return [sigmoid(sum(w[k] * x[k] for k in range(self.n1)) + self.b + db) for x in columns]

    def J(self, dw: np.ndarray | float = 0.0, db: float = 0.0) -> float:
        pairs = zip(self.outputs(dw, db), self.Y[0], strict=True)
        return -sum(y * math.log(a) + (1 - y) * math.log(1 - a) for a, y in pairs) / self.m


class SecondNote:
    """Three layers, two outputs, a row per sample, no bias, J = Σ ½(y - ŷ)² over samples and outputs."""

    def __init__(self, n_in: int = 3, n_hidden: int = 4, n_out: int = 2, m: int = 5) -> None:
        generator = np.random.default_rng(11)
        options = {"loss": "sum_squared_error", "bias": False, "dtype": "float64", "backend": "numpy"}
        self.net = Network([n_in, n_hidden, n_out], random_state=generator, **options)
        self.net.parameters.flat *= 2.0
        self.X = generator.normal(size=(m, n_in))
        self.y = generator.uniform(size=(m, n_out))
        self.W1, self.W2 = self.net.weights
        self.trace = self.net.trace(self.X, self.y, rows=True)
        values = self.forward()
        self.z2, self.a2, self.z3, self.yhat = (values[name] for name in ("z2", "a2", "z3", "yhat"))
        self.J = float(values["J"])

    def forward(self, wrt: str = "", change: np.ndarray | float = 0.0) -> dict[str, np.ndarray]:
        """Every quantity, by explicit sums over units, with `change` added to the quantity `wrt` on the way."""

        def bump(name: str) -> np.ndarray | float:
            return change if name == wrt else 0.0

        z2 = np.einsum("ik,kh->ih", self.X, self.W1 + bump("W1")) + bump("z2")
        a2 = f(z2) + bump("a2")
        z3 = np.einsum("ih,ho->io", a2, self.W2 + bump("W2")) + bump("z3")
        yhat = f(z3) + bump("yhat")
        J = np.array(sum(0.5 * residual**2 for residual in (self.y - yhat).ravel()))
        return {"z2": z2, "a2": a2, "z3": z3, "yhat": yhat, "J": J}

    def partial(self, of: str, wrt: str) -> np.ndarray:
        """∂ of / ∂ wrt by central differences: of.shape + wrt.shape."""
        shape = np.shape(getattr(self, wrt))
        return jacobian(lambda change: self.forward(wrt, change)[of], np.zeros(shape))


def f(z: np.ndarray) -> np.ndarray:
    """The activation of the second note."""
    return 1 / (1 + np.exp(-z))


def f_slope(z: np.ndarray) -> np.ndarray:
    """f', as a quotient."""
    return np.exp(-z) / (1 + np.exp(-z)) ** 2


def _element(matrix: np.ndarray, row: int, column: int) -> float:
    """The element of a matrix in a row and column counted from 1."""
    if not (1 <= row <= matrix.shape[0] and 1 <= column <= matrix.shape[1]):
        raise ShapeMismatchError(f"no element ({row}, {column}) in a matrix of shape {matrix.shape}")
    return float(matrix[row - 1, column - 1])
