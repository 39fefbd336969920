"""The networks that the formulas of docs/derivation.md are evaluated on: what each symbol of the page stands for.

The value of a symbol is what `Network.trace` gives for it. Where an engine computes the same, the two have to agree.
Derivatives are those of `Example.forward`, the network in plain numpy, in which every quantity can be changed.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from algebra import Index, ShapeMismatchError, Symbol
from scipy import special

from fusedmlp import Network
from fusedmlp.model.activations import HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATIONS, SELU_ALPHA, SELU_SCALE
from fusedmlp.model.losses import LOSSES
from fusedmlp.model.optimizers import OPTIMIZERS, OptimizerState

Key = tuple[str, int | None]

SAMPLE = Index("i", 0)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def positive(z):
    """max(z, 0), which lets the imaginary step of a derivative through."""
    return np.where(z.real > 0, z, 0)


def larger(a, b):
    return a[np.argmax(a.real)] if b is None else np.where(a.real > b.real, a, b)


FUNCTIONS = {
    r"\sigma": sigmoid,
    "sigmoid": sigmoid,
    r"\log": np.log,
    r"\tanh": np.tanh,
    r"\Phi": lambda z: (1 + special.erf(z / np.sqrt(2))) / 2,
    r"\max": larger,
    r"\min": lambda a, b: -larger(-a, -b),
    "softmax": lambda z: np.exp(z) / np.exp(z).sum(axis=0),
}
ACTIVATIONS = {
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "relu": positive,
    "identity": lambda z: z,
    "leaky_relu": lambda z: np.where(z.real > 0, z, 0.01 * z),
    "elu": lambda z: np.where(z.real > 0, z, np.exp(z) - 1),
    "selu": lambda z: SELU_SCALE * np.where(z.real > 0, z, SELU_ALPHA * (np.exp(z) - 1)),
    "softplus": lambda z: np.log(1 + np.exp(z)),
    "gelu": lambda z: z * (1 + special.erf(z / np.sqrt(2))) / 2,
    "silu": lambda z: z / (1 + np.exp(-z)),
    "mish": lambda z: z * np.tanh(np.log(1 + np.exp(z))),
    "softsign": lambda z: z / (1 + np.where(z.real > 0, z, -z)),
}

OUTPUTS = {"sigmoid": sigmoid, "softmax": FUNCTIONS["softmax"], "identity": lambda z: z, "exp": np.exp}
COSTS = {
    "binary_cross_entropy": lambda a, y: -(y * np.log(a) + (1 - y) * np.log(1 - a)),
    "categorical_cross_entropy": lambda a, y: -y * np.log(a),
    "squared_error": lambda a, y: (y - a) ** 2 / 2,
    "poisson": lambda a, y: special.xlogy(y, y) - y * np.log(a) - y + a,
    "sum_squared_error": lambda a, y: (y - a) ** 2 / 2,
    "absolute_error": lambda a, y: np.where(a.real > y, a - y, y - a),
    "huber": lambda a, y: np.where(abs(a.real - y) < 1, (y - a) ** 2 / 2, np.where(a.real > y, a - y, y - a) - 1 / 2),
    "quantile": lambda a, y: np.where(a.real > y, a - y, y - a) / 2,
}
"""j of one output, from the output."""


class Example:
    """A network and samples, and the symbols of one section of the page.

    Attributes
    ----------
    names : dict
        (symbol, number or None) -> (quantity, its number, whether transposed).
    sizes : dict
        What an index may be compared with: m, L, n_1, ...
    functions : dict
        f, σ, log and so on.
    note : bool
        Whether formulas are read in the notation of the notes rather than in that of the page.
    """

    note = False
    whole_axes: ClassVar[set[str]] = {"x", "y", "a", "j", "w"}  # numbered by samples: an index has to take all of them

    def __init__(
        self, net: Network, X: np.ndarray, Y: np.ndarray, weight: np.ndarray | None = None, alpha: float = 0.0
    ) -> None:
        self.arguments = (net, X, Y, weight, alpha)
        self.net, self.X, self.Y, self.alpha = net, X, Y, alpha
        self.w = np.ones(X.shape[1]) if weight is None else weight
        self.activation, self.loss = net.architecture.hidden_activation, LOSSES[net.architecture.loss]
        self.last = len(net.weights)
        self.layers = range(1, self.last + 1)
        shape = net.architecture.layer_sizes
        self.sizes = {"m": X.shape[1], "L": len(shape)} | {f"n_{k}": n for k, n in enumerate(shape, start=1)}
        self.functions = FUNCTIONS | {"f": ACTIVATIONS[self.activation]}
        self.quantities = self.constants() | self.of_the_code(weight)
        self.names = {key: (*key, False) for key in self.quantities} | self.own_names()

    def own_names(self) -> dict[Key, tuple[str, int | None, bool]]:
        """The symbols of a section that are not those of the whole page."""
        return {}

    def constants(self) -> dict[Key, Any]:
        sizes: dict[Key, Any] = {(name, None): size for name, size in self.sizes.items() if "_" not in name}
        sizes |= {("n", int(name[2:])): size for name, size in self.sizes.items() if "_" in name}
        samples: dict[Key, Any] = {("x", i): x[:, None] for i, x in enumerate(self.X.T, start=1)}
        samples |= {("y", i): y[:, None] for i, y in enumerate(self.Y.T, start=1)}
        samples |= {("w", i): w for i, w in enumerate(self.w, start=1)}
        return sizes | samples | {("X", None): self.X, ("Y", None): self.Y, (r"\alpha", None): self.alpha}

    def of_the_code(self, weight: np.ndarray | None) -> dict[Key, Any]:
        """Z_l, A_l, J and all gradients by `Network.trace`, and the losses of single samples."""
        trace = self.net.trace(self.X, self.Y, sample_weight=weight)
        found: dict[Key, Any] = {("A", 0): self.X}
        for name, value in trace.items():
            found[name.rstrip("0123456789"), int(name.lstrip("ZAdWbJ")) if name != "J" else None] = value
        found |= {("W", layer): W for layer, W in enumerate(self.net.weights, start=1)}
        found |= {("b", layer): b for layer, b in enumerate(self.net.biases, start=1)}
        for i in range(1, self.X.shape[1] + 1):
            one = slice(i - 1, i)
            found["j", i] = self.net.trace(self.X[:, one], self.Y[:, one])["J"]
            found["a", i] = trace[f"A{self.last}"][:, one]
        J, gradients = self.net.loss_and_gradients(self.X, self.Y, sample_weight=weight)
        self.again = {("A", self.last): [self.net.forward(self.X)]}
        self.again["J", None] = [J, self.net.loss(self.X, self.Y, sample_weight=weight)]
        self.again |= {("dW", layer): [dW] for layer, dW in enumerate(gradients.weights, start=1)}
        self.again |= {("db", layer): [db] for layer, db in enumerate(gradients.biases, start=1)}
        if self.alpha:
            J, gradients = self.net.loss_and_gradients(self.X, self.Y, sample_weight=weight, alpha=self.alpha)
            found["J_alpha", None] = J
            self.again["J_alpha", None] = [self.net.loss(self.X, self.Y, sample_weight=weight, alpha=self.alpha)]
            found |= {("G", layer): W for layer, W in enumerate(gradients.weights, start=1)}
            found |= {("g", layer): b for layer, b in enumerate(gradients.biases, start=1)}
        return found

    def forward(self, change: dict[Key, np.ndarray]) -> dict[Key, Any]:
        """Every quantity up to J, with `change` added to one of them on the way."""
        found: dict[Key, Any] = {("A", 0): self.X}
        for layer in self.layers:
            for kind in "Wb":
                if (kind, layer) in self.quantities:
                    found[kind, layer] = self.quantities[kind, layer] + change.get((kind, layer), 0)
            Z = np.einsum("kj,ki->ji", found["W", layer], found["A", layer - 1])
            Z = Z + found.get(("b", layer), 0) + change.get(("Z", layer), 0)
            f = OUTPUTS[self.loss.output_activation] if layer == self.last else self.functions["f"]
            found["Z", layer], found["A", layer] = Z, f(Z) + change.get(("A", layer), 0)
        j = COSTS[self.loss.name](found["A", self.last], self.Y).sum(axis=0)
        found |= {("j", i): value for i, value in enumerate(j, start=1)}
        found |= {("a", i): value[:, None] for i, value in enumerate(found["A", self.last].T, start=1)}
        J = (self.w * j).sum() / (self.w.sum() if self.loss.reduction == "mean" else 1)
        squares = sum((found["W", layer] ** 2).sum() for layer in self.layers)
        return found | {("J", None): J, ("J_alpha", None): J + self.alpha / 2 / self.sizes["m"] * squares}

    def numbering(self, name: str, subscripted: bool) -> tuple[int, int, bool]:
        numbers = [number for symbol, number in self.names if symbol == name and (number is not None) == subscripted]
        if not numbers:
            raise ShapeMismatchError(f"no {name} {'with' if subscripted else 'without'} a subscript")
        return (min(numbers), max(numbers), name in self.whole_axes) if subscripted else (0, 0, False)

    def value(self, name: str, number: int | None) -> np.ndarray:
        kind, layer, transposed = self.names[name, number]
        value = np.asarray(self.quantities[kind, layer])
        for other in self.again.get((kind, layer), []):
            np.testing.assert_allclose(other, value, rtol=1e-12, atol=1e-15)
        return value.T if transposed else value

    def changed(self, key: Key, step: np.ndarray) -> Example:
        kind, layer, transposed = self.names[key]
        other = copy.copy(self)
        other.quantities = self.constants() | self.forward({(kind, layer): step.T if transposed else step})
        other.again = {}
        return other

    def in_our_notation(self, symbol: Symbol) -> Symbol:
        return self.translated(symbol) if self.note and symbol.superscript is not None else symbol

    def translated(self, symbol: Symbol) -> Symbol:
        """A symbol of the first note: W^(l)_{j,k} has the unit first, z^(l)_{j,i} may lack its sample."""
        name, numbers, above = symbol.name, symbol.subscripts, (symbol.superscript,)
        if name == "W" and numbers:
            return Symbol("W", above, element=(":", *numbers) if len(numbers) == 1 else numbers[::-1])
        if name in ("z", "a"):
            element = {0: (":", SAMPLE), 1: (*numbers, SAMPLE), 2: numbers}[len(numbers)]
            return Symbol(name.upper(), above, element=element)
        if name == "dz":
            return Symbol("dZ", above, element=(":", *numbers))
        if name == "x" and numbers:
            return Symbol("X", element=(*numbers, *above))
        return Symbol(name, above, element=numbers)


class Logistic(Example):
    """[n1, 1]: the note numbers outputs by samples, a^(i), and its A, w and b have no number."""

    def own_names(self):
        return {("A", None): ("A", 1, False), ("w", None): ("W", 1, False), ("b", None): ("b", 1, False)}

    def translated(self, symbol: Symbol) -> Symbol:
        return Symbol(symbol.name, (symbol.superscript,)) if symbol.name in "ay" else super().translated(symbol)


class Recursion(Example):
    """One sample of a deep network: z_l, a_l, δ_l and y are columns, C is its loss."""

    whole_axes: ClassVar[set[str]] = set()

    def own_names(self):
        names = {("z", layer): ("Z", layer, False) for layer in self.layers}
        names |= {(r"\delta", layer): ("dZ", layer, False) for layer in self.layers}
        names |= {("a", layer): ("A", layer, False) for layer in range(self.last + 1)}
        names |= {("w", layer): ("W", layer, True) for layer in self.layers}
        return names | {("C", None): ("J", None, False), ("y", None): ("Y", None, False)}

    def translated(self, symbol: Symbol) -> Symbol:
        return Symbol(symbol.name, (symbol.superscript,), element=symbol.subscripts)


class SecondNote(Example):
    """Rows as samples, layers counted from the input: z_l is the transpose of Z_{l-1}."""

    whole_axes: ClassVar[set[str]] = set()

    def own_names(self):
        names = {("z", layer + 1): ("Z", layer, True) for layer in self.layers}
        names |= {(r"\delta", layer + 1): ("dZ", layer, True) for layer in self.layers}
        names |= {("a", layer + 1): ("A", layer, True) for layer in range(self.last + 1)}
        names |= {("X", None): ("X", None, True), ("y", None): ("Y", None, True)}
        return names | {(r"\hat{y}", None): ("A", self.last, True)}

    def of_the_code(self, weight):
        """As `Network.trace` gives them with rows=True."""
        found = super().of_the_code(weight)
        rows = self.net.trace(self.X.T, self.Y.T, rows=True)
        for layer in self.layers:
            found["Z", layer], found["dZ", layer] = rows[f"z{layer + 1}"].T, rows[f"delta{layer + 1}"].T
            found["A", layer] = rows["yhat" if layer == self.last else f"a{layer + 1}"].T
            found["dW", layer] = rows[f"dJdW{layer}"]
        return found | {("J", None): rows["J"]}

    def in_our_notation(self, symbol: Symbol) -> Symbol:
        if self.note and symbol.superscript is None and symbol.name in ("y", r"\hat{y}"):
            return Symbol(symbol.name, element=symbol.subscripts)
        return super().in_our_notation(symbol)

    def translated(self, symbol: Symbol) -> Symbol:
        return Symbol(symbol.name, (symbol.superscript,), element=symbol.subscripts)


class Output(Example):
    """The logits z of one sample, its targets y, and a loss of the code on them."""

    whole_axes: ClassVar[set[str]] = {"z", "y"}

    def __init__(self, loss: str, z: np.ndarray, y: np.ndarray) -> None:
        self.arguments = (loss, z, y)
        self.loss, self.z, self.y, self.again = LOSSES[loss], z, y, {}
        self.sizes, self.functions = {"L": 2, "n_2": len(z)}, FUNCTIONS
        output = OUTPUT_ACTIVATIONS[self.loss.output_activation](np, z[:, None], np.empty((len(z), 1)))
        self.quantities = self.symbols(z) | {
            ("j", None): self.loss.per_sample(np, z[:, None], y[:, None]).item(),
            ("dz", None): self.loss.dZ(np, output, y[:, None]),
        }
        self.names = {key: (*key, False) for key in self.quantities}

    def symbols(self, z: np.ndarray) -> dict[Key, Any]:
        found: dict[Key, Any] = {("z", None): z[:, None], ("y", None): self.y[:, None], ("n", 2): len(z)}
        found |= {("z", o): value for o, value in enumerate(z, start=1)}
        found |= {("q", None): self.loss.parameter, (r"\delta", None): self.loss.parameter}
        return found | {("y", o): value for o, value in enumerate(self.y, start=1)} | {("c", None): self.z.max()}

    def changed(self, key: Key, step: np.ndarray) -> Example:
        assert key == ("z", None)
        other, z = copy.copy(self), self.z + step.ravel()
        j = COSTS[self.loss.name](OUTPUTS[self.loss.output_activation](z), self.y).sum()
        other.quantities = self.symbols(z) | {("j", None): j}
        return other


class Unit(Example):
    """One hidden unit: z, a = f(z), and s, the slope that the code's backward pass multiplies with."""

    def __init__(self, activation: str, z: float) -> None:
        self.arguments = (activation, z)
        self.activation, self.again, self.sizes, self.functions = activation, {}, {}, FUNCTIONS
        f, Z = HIDDEN_ACTIVATIONS[activation], np.full((1, 1), z)
        A = f.value(np, Z, np.empty_like(Z))
        s = f.slope(np, Z) if f.slope else f.derivative(np, A)
        self.quantities = {("z", None): np.asarray(z), ("a", None): A, ("s", None): s}
        self.quantities |= {("p", None): SELU_SCALE, ("q", None): SELU_ALPHA, (r"\pi", None): np.pi}
        self.names = {key: (*key, False) for key in self.quantities}

    def changed(self, key: Key, step: np.ndarray) -> Example:
        assert key == ("z", None)
        other, z = copy.copy(self), self.quantities["z", None] + step
        other.quantities = self.quantities | {("z", None): z, ("a", None): ACTIVATIONS[self.activation](z)}
        return other


class Steps(Example):
    """One weight, and what an optimizer of the code makes of it and of its moments in a few steps."""

    whole_axes: ClassVar[set[str]] = set()

    def __init__(self, name: str) -> None:
        self.arguments, self.again, self.functions = (name,), {}, FUNCTIONS
        large = {"learning_rate": 0.1} | ({"epsilon": 0.01} if hasattr(OPTIMIZERS[name], "epsilon") else {})
        optimizer, gradients = replace(OPTIMIZERS[name], **large), [0.3, -0.7, 0.2]
        self.sizes = {"T": len(gradients)}
        self.quantities = {("r", None): optimizer.learning_rate, ("p", None): getattr(optimizer, "momentum", 0.0)}
        self.quantities |= {(r"\beta", k): getattr(optimizer, f"beta_{k}", 0.0) for k in (1, 2)}
        self.quantities[r"\epsilon", None] = getattr(optimizer, "epsilon", 0.0)
        self.quantities[r"\lambda", None] = getattr(optimizer, "weight_decay", 0.0)
        net = Network([1, 1], bias=False, dtype="float64", backend="numpy")
        theta = net.parameters.flat
        theta[0] = 1.5
        state = OptimizerState(optimizer, np, net.parameters)
        moments = dict(zip("uv" if len(state.moments) == 2 else "v", state.moments.values(), strict=True))
        for t, g in enumerate([0.0, *gradients]):
            if t:
                state.step(np, theta, np.array([g]))
                self.quantities["g", t] = g
            self.quantities[r"\theta", t] = theta[0]
            self.quantities |= {(symbol, t): values[0] for symbol, values in moments.items()}
        self.names = {key: (*key, False) for key in self.quantities}
