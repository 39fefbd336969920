"""Logistic regression, N1.83 to N1.85, and P.1 and P.2 that follow from them: the network [n1, 1]."""

from __future__ import annotations

import numpy as np
import pytest
from notes_math import Formulas, derivative, product
from notes_networks import LogisticRegression

formula = Formulas()


@pytest.fixture(scope="module")
def regression() -> LogisticRegression:
    return LogisticRegression()


@pytest.mark.parametrize("name", formula)
def test_logistic_regression(regression, name):
    formula.check(name, regression)


@formula("N1.83")
def output(n):
    yield n.trace["A1"], n.net.forward(n.X), [n.a]
    yield len(n.a), n.m


@formula("N1.84")
def loss(n):
    yield n.trace["J"], n.net.loss(n.X, n.Y), n.J()


@formula("N1.85")
def a_sample_is_a_column(n):
    for i in range(n.m):
        column = np.array([[n.X[k, i]] for k in range(n.n1)])
        yield n.trace["Z1"][:, [i]], n.net.trace(column, n.Y[:, [i]])["Z1"]


@formula("P.1")
def gradient_in_w(n):
    numeric = [[derivative(lambda h, k=k: n.J(dw=h * np.eye(n.n1)[:, [k]]))] for k in range(n.n1)]
    error = np.array([n.a]) - n.Y
    yield n.trace["dZ1"], error
    yield n.trace["dW1"], numeric, product(n.X, error.T) / n.m


@formula("P.2")
def gradient_in_b(n):
    numeric = derivative(lambda h: n.J(db=h))
    yield n.trace["db1"].item(), numeric, sum(a - y for a, y in zip(n.a, n.Y[0], strict=True)) / n.m


def test_trace_holds_one_layer(regression):
    assert list(regression.trace) == ["Z1", "A1", "J", "dZ1", "dW1", "db1"]
