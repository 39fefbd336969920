"""What a user writes: a type checker has nothing to say about it."""

from __future__ import annotations

import numpy as np

from fusedmlp import Adam, ArrayStream, Callback, MLPClassifier, Network, Predictor, StopAfter, available_backends

X = np.zeros((3, 40))
Y = np.zeros((1, 40))
net = Network([3, 8, 1], hidden_activation="tanh", loss="quantile:0.9", dtype="float64", backend="numpy")


class Quit(Callback):
    """Ends a training."""

    def on_epoch_end(self, training) -> None:  # type: ignore[no-untyped-def]
        training.stop()


history = net.fit(X, Y, "adamw", epochs=1, schedule="cosine", callbacks=[StopAfter(1.0), Quit()], verbose=False)
losses: list[float] = history.loss
net.fit(ArrayStream(X, Y), epochs=1, validation_data=ArrayStream(X, Y))
net.fit([(X, Y)], epochs=1)
net.fit(lambda: [(X, Y)], epochs=1)
net.fit(X, Y, Adam(0.01), epochs=1, schedule=lambda epoch, rate: rate)
A: np.ndarray = net.forward(X)
ones = net.forward([[0.0], [0.0], [0.0]])
J, gradients = net.loss_and_gradients(X, Y)
print(J + 1, gradients.weights[0], net.forward(X), available_backends())
predictor = Predictor.train("iris", hidden=(8,), activation="relu", epochs=1)
scores: dict[str, float] = predictor.evaluate("iris")
classes = MLPClassifier(max_iter=2).fit(X.T, [0, 1] * 20).predict(X.T)
print(A + ones, classes.mean())
