"""The samples of many networks: X, Y and weights are checked and converted once for all networks that share them."""

from __future__ import annotations

from typing import Any

from fusedmlp.engines.base import Engine
from fusedmlp.engines.samples import Samples, as_samples
from fusedmlp.model.activations import Array
from fusedmlp.model.architecture import Architecture
from fusedmlp.streams.base import Stream


class SharedSamples:
    """One X, with the Y and the weights of every network.

    Parameters
    ----------
    X : array or SciPy's sparse matrix of shape (n1, m)
    backend : Primitives
    prefix : str
        A prefix of the arguments' names in error messages.
    """

    def __init__(self, X: Any, backend: Any, prefix: str = "") -> None:
        if isinstance(X, Stream):
            raise ValueError(f"{prefix}X: expected an array; got {type(X).__name__}, which one network reads")
        self._given, self._backend, self._prefix = X, backend, prefix
        self._X: dict[int, Array] = {}
        self._checked: dict[tuple[Any, ...], Samples] = {}
        self._prepared: dict[Architecture, Array] = {}
        self._copies: dict[int, Array] = {}
        self._kept: list[Any] = []

    def of(self, engine: Engine, Y: Any, sample_weight: Any) -> Samples:
        """The samples as the engine's epochs read them.

        Raises
        ------
        ValueError
            As `as_samples`.
        """
        a = engine.architecture
        key = a.n_inputs, a.n_outputs, a.loss, id(Y), id(sample_weight)
        if key not in self._checked:
            X = self._X.get(a.n_inputs)
            given = self._given if X is None or not self._backend.owns(X) else X
            samples = as_samples(given, Y, sample_weight, a, self._backend, self._prefix)
            X = self._X.setdefault(a.n_inputs, samples.X)
            self._checked[key] = Samples(X, samples.Y, samples.sample_weight)
            self._kept.append((Y, sample_weight))  # or their ids might be those of others
        samples = self._checked[key]
        X = self._read_by(engine, samples.X)
        return samples if X is samples.X else Samples(X, samples.Y, samples.sample_weight)

    def _read_by(self, engine: Engine, X: Array) -> Array:
        """`Engine.prepared`; a copy that it makes serves all engines that want one."""
        if engine.architecture not in self._prepared:
            prepared = engine.prepared(X)
            self._prepared[engine.architecture] = X if prepared is X else self._copies.setdefault(id(X), prepared)
        return self._prepared[engine.architecture]
