"""The mistakes of the first note that can be computed, as a table: docs/derivation.md, M1."""

from __future__ import annotations

import math

import numpy as np
from notes_deep_network import DeepNetwork
from notes_math import ShapeMismatchError, derivative, hadamard, product, sigmoid, sigmoid_slope
from notes_mistakes import Mistake
from notes_networks import FirstNote, LogisticRegression

n = FirstNote()
W1, W2 = n.net.weights
b1, b2 = n.net.biases
A1, ERROR = n.matrix("A1"), n.matrix("A2") - n.Y
SLOPE1 = np.array([[sigmoid_slope(n.z1(j, i)) for i in n.samples] for j in n.units])  # σ'(Z1), (n2, m)
SLOPE2 = np.array([[sigmoid_slope(n.z2(i)) for i in n.samples]])  # σ'(Z2), (1, m)
THROUGH_W2 = product(ERROR.T, W2.T)  # (A2 - Y)ᵀ W2ᵀ, (m, n2)


def x(i: int) -> np.ndarray:
    return n.X[:, [i - 1]]


def over_units(element) -> np.ndarray:
    """element(j, i) for every hidden unit and sample, (n2, m)."""
    return np.array([[element(j, i) for i in n.samples] for j in n.units])


def over_weights(element) -> np.ndarray:
    """element(j, k) in the layout of W1, (n1, n2)."""
    return np.array([[element(j, k) for j in n.units] for k in n.inputs])


def every_sigmoid(z: np.ndarray) -> np.ndarray:
    return np.vectorize(sigmoid)(z)


def without_the_output_error(i: int, j: int, k: int) -> float:
    return n.w2(j) * n.a1(j, i) * (1 - n.a1(j, i)) * n.x(i, k)


FORWARD = [
    Mistake(
        "M1.1",
        "N1.8",
        truth=lambda: n.trace["Z1"][0, 1],
        printed=(lambda: product(W1.T, x(2)) + b1,),
        corrected=lambda: (product(W1[:, [0]].T, x(2)) + b1[0]).item(),
    ),
    Mistake(
        "M1.2",
        "N1.9",
        truth=lambda: n.trace["Z1"],
        printed=(lambda: over_units(lambda j, i: sum(n.w1(j, k) * n.x(1, k) for k in n.inputs) + n.b1(j)),),
        corrected=lambda: over_units(lambda j, i: sum(n.w1(j, k) * n.x(i, k) for k in n.inputs) + n.b1(j)),
    ),
    Mistake(
        "M1.3",
        "N1.12",
        truth=lambda: n.trace["A1"][0, 1],
        printed=(lambda: every_sigmoid(product(W1.T, x(2)) + n.b1(1)),),
        corrected=lambda: sigmoid((product(W1[:, [0]].T, x(2)) + n.b1(1)).item()),
    ),
    Mistake(
        "M1.4",
        "N1.17",
        truth=lambda: n.net.biases[0],
        printed=(lambda: np.array([[n.b2()]]),),
        corrected=lambda: np.array([[n.b1(j)] for j in n.units]),
    ),
    Mistake(
        "M1.5",
        "N1.19",
        truth=lambda: n.trace["Z2"][0],
        printed=(
            lambda: [
                sum(n.w2(j) * n.a1(j, i) for j in n.units[:-1]) + n.w1(1, n.n2) * n.a1(n.n2, i) + n.b2()
                for i in n.samples
            ],
        ),
        corrected=lambda: [sum(n.w2(j) * n.a1(j, i) for j in n.units) + n.b2() for i in n.samples],
    ),
    Mistake(
        "M1.6",
        "N1.21",
        truth=lambda: n.trace["A2"],
        printed=(lambda: every_sigmoid(product(W2.T, A1)),),
        corrected=lambda: every_sigmoid(product(W2.T, A1) + n.b2()),
    ),
]

OUTPUT_LAYER = [
    Mistake(
        "M1.7",
        "N1.27",
        truth=lambda: over_units(lambda j, i: n.alone(i)["dW2"][j - 1, 0]),
        printed=(lambda: over_units(lambda j, i: n.partial(i, "j", "W1", 1, j)),),
        corrected=lambda: over_units(lambda j, i: n.partial(i, "j", "W2", j)),
    ),
    Mistake(
        "M1.8",
        "N1.46",
        truth=lambda: n.sample_gradient(2, "W2"),
        printed=(lambda: n.a2(2) - n.y(2) * n.column("a1", 2),),
        corrected=lambda: (n.a2(2) - n.y(2)) * n.column("a1", 2),
    ),
    Mistake(
        "M1.9",
        "N1.54",
        truth=lambda: n.gradient("b2"),
        printed=(lambda: sum(ERROR for _ in n.samples) / n.m,),
        corrected=lambda: [[sum(n.a2(i) - n.y(i) for i in n.samples) / n.m]],
    ),
]

HIDDEN_LAYER = [
    Mistake(
        "M1.10",
        "N1.62",
        truth=lambda: over_weights(lambda j, k: n.partial(2, "z2", "W1", j, k)),
        printed=(lambda: over_weights(lambda j, k: sum(without_the_output_error(2, unit, k) for unit in n.units)),),
        corrected=lambda: over_weights(lambda j, k: without_the_output_error(2, j, k)),
    ),
    Mistake(
        "M1.11",
        "N1.63",
        truth=lambda: over_weights(
            lambda j, k: (
                n.partial(2, "z2", "a1", j)
                * n.partial(2, "a1", "z1", j, unit=j)
                * n.partial(2, "z1", "W1", j, k, unit=j)
            )
        ),
        printed=(lambda: over_weights(lambda j, k: (n.a2(2) - n.y(2)) * without_the_output_error(2, j, k)),),
        corrected=lambda: over_weights(lambda j, k: without_the_output_error(2, j, k)),
    ),
    *(
        Mistake(
            name,
            formula,
            truth=lambda: n.sample_gradient(1, "W1"),
            printed=(lambda k=k: over_weights(lambda *at: (n.a2(1) - n.y(1)) * without_the_output_error(1, 1, k)),),
            corrected=lambda: over_weights(lambda *at: (n.a2(1) - n.y(1)) * without_the_output_error(1, *at)),
        )
        for name, formula, k in (("M1.12", "N1.68", 3), ("M1.13", "N1.69", 4))
    ),
    Mistake(
        "M1.14",
        "N1.71",
        truth=lambda: n.gradient("b1"),
        printed=tuple(
            lambda k=k: [[sum(n.partial(i, "j", "W1", j, k) for i in n.samples) / n.m] for j in n.units]
            for k in n.inputs
        ),
        corrected=lambda: [[sum(n.partial(i, "j", "b1", j) for i in n.samples) / n.m] for j in n.units],
    ),
    Mistake(
        "M1.15",
        "N1.72",
        truth=lambda: n.gradient("W1"),
        printed=(lambda: n.gradient("b1"),),
        corrected=lambda: over_weights(lambda j, k: n.partial_J("W1", j, k)),
    ),
    Mistake(
        "M1.16",
        "N1.74",
        truth=lambda: n.gradient("W1"),
        printed=(
            lambda: hadamard(product(n.X, ERROR.T), SLOPE1.T, W2.T) / n.m,  # from left to right
            lambda: product(n.X, hadamard(ERROR.T, SLOPE1.T, W2.T)) / n.m,  # ⊙ before the product
        ),
        corrected=lambda: product(n.X, hadamard(THROUGH_W2, SLOPE1.T)) / n.m,
    ),
    Mistake(
        "M1.17",
        "N1.74",
        truth=lambda: n.gradient("W1"),
        printed=(lambda: product(n.X, hadamard(THROUGH_W2, SLOPE1.T)),),
        corrected=lambda: product(n.X, hadamard(THROUGH_W2, SLOPE1.T)) / n.m,
    ),
    Mistake(
        "M1.18",
        "N1.76",
        truth=lambda: over_units(lambda j, i: n.partial(i, "j", "z1", j)).T,
        printed=(lambda: hadamard(THROUGH_W2, SLOPE2.T), lambda: THROUGH_W2 * SLOPE2.T),  # the second broadcasts
        corrected=lambda: hadamard(THROUGH_W2, SLOPE1.T),
    ),
    Mistake(
        "M1.19",
        "N1.78",
        truth=lambda: n.gradient("W1"),
        printed=(
            lambda: product(n.X, hadamard(THROUGH_W2, SLOPE2.T)) / n.m,
            lambda: product(n.X, THROUGH_W2 * SLOPE2.T) / n.m,
            lambda: product(n.X, THROUGH_W2 * SLOPE2.T),  # the line as a whole
        ),
        corrected=lambda: product(n.X, hadamard(THROUGH_W2, SLOPE1.T)) / n.m,
    ),
    Mistake(
        "M1.20",
        "N1.78",
        truth=lambda: n.gradient("W1"),
        printed=(lambda: product(n.X, hadamard(THROUGH_W2, SLOPE1.T)),),
        corrected=lambda: product(n.X, hadamard(THROUGH_W2, SLOPE1.T)) / n.m,
    ),
    Mistake(
        "M1.21",
        "N1.79",
        truth=lambda: n.gradient("b1"),
        printed=(
            lambda: sum(hadamard(THROUGH_W2, SLOPE2.T)[[i]].T for i in range(n.m)) / n.m,
            lambda: sum((THROUGH_W2 * SLOPE2.T)[[i]].T for i in range(n.m)) / n.m,
            lambda: THROUGH_W2 * SLOPE2.T,  # the line as a whole
        ),
        corrected=lambda: sum(hadamard(THROUGH_W2, SLOPE1.T)[[i]].T for i in range(n.m)) / n.m,
    ),
    Mistake(
        "M1.22",
        "N1.79",
        truth=lambda: n.gradient("b1"),
        printed=(lambda: hadamard(THROUGH_W2, SLOPE1.T) / n.m, lambda: hadamard(THROUGH_W2, SLOPE1.T).T / n.m),
        corrected=lambda: sum(hadamard(THROUGH_W2, SLOPE1.T)[[i]].T for i in range(n.m)) / n.m,
    ),
    Mistake(
        "M1.23",
        "N1.79",
        truth=lambda: n.gradient("b1"),
        printed=(lambda: sum(hadamard(THROUGH_W2, SLOPE1.T)[[i]].T for i in range(n.m)),),
        corrected=lambda: sum(hadamard(THROUGH_W2, SLOPE1.T)[[i]].T for i in range(n.m)) / n.m,
    ),
]

# Logistic regression -------------------------------------------------------------------------------------------------

r = LogisticRegression()


def logistic_output(i: int) -> float:
    """a of a sample, numbered from 1 as the columns of X are."""
    if not 1 <= i <= r.m:
        raise ShapeMismatchError(f"no sample {i} among {r.m}")
    return r.a[i - 1]


def first_terms() -> float:
    return -sum(y * math.log(a) for y, a in zip(r.Y[0], r.a, strict=True)) / r.m


def second_terms() -> list[float]:
    return [(1 - y) * math.log(1 - a) for y, a in zip(r.Y[0], r.a, strict=True)]


LOGISTIC = [
    Mistake(
        "M1.24",
        "N1.83",
        truth=lambda: r.net.forward(r.X),
        printed=(lambda: [[logistic_output(i) for i in range(r.m + 1)]],),
        corrected=lambda: [[logistic_output(i) for i in range(1, r.m + 1)]],
    ),
    Mistake(
        "M1.25",
        "N1.84",
        truth=lambda: r.trace["J"],
        printed=(
            lambda: [first_terms() + term for term in second_terms()],  # i is free: a number per sample
            lambda: first_terms() + sum(second_terms()) / r.m,  # the minus sign reaches the first term only
        ),
        corrected=lambda: first_terms() - sum(second_terms()) / r.m,
    ),
]

# The recursion -------------------------------------------------------------------------------------------------------

deep = DeepNetwork("sigmoid", "binary_cross_entropy")
square = DeepNetwork("tanh", "binary_cross_entropy", sizes=(4, 3, 3, 3, 3))
LAYER = 2


def deltas(d: DeepNetwork, layer: int) -> np.ndarray:
    """δ of a layer for every sample, (n, m), each a central difference."""
    return np.array([[d.partial(i, "z", layer, k) for i in d.samples] for k in d.units(layer)])


def slopes(d: DeepNetwork, layer: int) -> np.ndarray:
    return np.hstack([d.slopes(i, layer) for i in d.samples])


def change_of_next_z(h: float) -> np.ndarray:
    return deep.sample(0, ("z", LAYER, 0), h)["z"][LAYER + 1]


RECURSION = [
    Mistake(
        "M1.26",
        "N1.90",
        truth=lambda: derivative(change_of_next_z),
        printed=(lambda: np.subtract(change_of_next_z(1e-5), change_of_next_z(-1e-5)) / deep.z[0][LAYER][0],),
        corrected=lambda: deep.w[LAYER + 1][:, 0] * deep.slope(LAYER, deep.z[0][LAYER][0]),
    ),
    Mistake(
        "M1.27",
        "N1.93",
        truth=lambda: deltas(deep, LAYER),
        printed=(lambda: hadamard(product(deep.w[LAYER + 1], deltas(deep, LAYER + 1)), slopes(deep, LAYER)),),
        corrected=lambda: hadamard(product(deep.w[LAYER + 1].T, deltas(deep, LAYER + 1)), slopes(deep, LAYER)),
    ),
    Mistake(
        "M1.27",  # with layers of one size, where the product exists
        "N1.93",
        truth=lambda: deltas(square, LAYER),
        printed=(lambda: hadamard(product(square.w[LAYER + 1], deltas(square, LAYER + 1)), slopes(square, LAYER)),),
        corrected=lambda: hadamard(product(square.w[LAYER + 1].T, deltas(square, LAYER + 1)), slopes(square, LAYER)),
    ),
]

FIRST_NOTE = [*FORWARD, *OUTPUT_LAYER, *HIDDEN_LAYER, *LOGISTIC, *RECURSION]
