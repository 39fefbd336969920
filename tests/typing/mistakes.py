"""Mistakes that a type checker finds, a line each."""

from __future__ import annotations

import numpy as np

from fusedmlp import Network, Predictor

X = np.zeros((3, 40))
net = Network([3, 8, 1], hidden_activation="sigmiod")
net = Network([3, 8, 1], dtype="float16")
net = Network("3-8-1")
net.fit(X, X, optimizer="adamm")
net.fit(X, X, schedule="cosinus")
net.fit(X, X, epoch=3)
net.fit(X, X, epochs="many")
net.los(X, X)
number: int = net.loss(X, X)
net.fit(X, None)
net.loss({"x1": 1.0}, X)
output: float = net.forward(X)
Predictor.train("iris", activation="rellu")
