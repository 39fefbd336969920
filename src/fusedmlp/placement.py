"""PlacedNetwork: a network's description and parameters on a backend, with an engine for each thread."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import numpy as np

from fusedmlp.backends.base import Backend
from fusedmlp.backends.selection import get_backend, is_registered, resolve_precision
from fusedmlp.engines.base import Engine
from fusedmlp.engines.samples import Samples, as_samples
from fusedmlp.errors import BackendUnavailableError
from fusedmlp.model.activations import Array
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.parameters import Parameters
from fusedmlp.training.history import History

_log = logging.getLogger("fusedmlp")

RandomState = int | np.random.Generator | np.random.RandomState | None


def as_generator(random_state: RandomState) -> np.random.Generator | np.random.RandomState:
    """A generator from a seed; generators are returned as they are."""
    if isinstance(random_state, np.random.Generator | np.random.RandomState):
        return random_state
    try:
        return np.random.default_rng(random_state)
    except (TypeError, ValueError):
        raise ValueError(
            f"random_state: expected None, a whole number >= 0, or a numpy random generator; got {random_state!r}"
        ) from None


class PlacedNetwork:
    """The attributes of a `fusedmlp.Network`, and how it is copied and pickled."""

    architecture: Architecture
    backend: Backend
    precision: str
    parameters: Parameters
    history: History | None

    def _set_up(
        self,
        architecture: Architecture,
        backend: str | Backend | None,
        precision: str | None,
        generator: Any,
        flat: np.ndarray,
    ) -> None:
        self.architecture = architecture
        self.precision = resolve_precision(precision)
        self.backend = get_backend(backend).at_precision(self.precision)
        self.parameters = Parameters(architecture, self.backend.asarray(flat))
        self._generator = generator
        self._engines = threading.local()
        self._fitting = threading.Lock()

    @property
    def weights(self) -> list[Array]:
        """[W1, W2, ...], each (n_in, n_out): views of ``parameters.flat``, writable."""
        return self.parameters.weights

    @property
    def biases(self) -> list[Array]:
        """[b1, b2, ...], each (n_out, 1): views of ``parameters.flat``, writable; empty without bias."""
        return self.parameters.biases

    @property
    def engine(self) -> Engine:
        """The engine of the calling thread."""
        if not hasattr(self._engines, "engine"):
            self._engines.engine = self.backend.engine(self.architecture)
        return self._engines.engine

    def __repr__(self) -> str:
        a = self.architecture
        return (
            f"Network({list(a.layer_sizes)}, hidden_activation={a.hidden_activation!r}, loss={a.loss!r}, "
            f"bias={a.bias}, dtype={a.dtype!r}, backend={self.backend.name!r}, precision={self.precision!r})"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Attributes; the parameters in host memory, the backend by its name, if it is registered."""
        state = {
            name: value for name, value in vars(self).items() if name not in ("_engines", "_fitting", "parameters")
        }
        state["backend"] = self.backend.name if is_registered(self.backend) else self.backend
        return state | {"flat": self.backend.to_numpy(self.parameters.flat).copy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """On the backend that it had; where this machine has not got that, on the one that it would choose now."""
        state = dict(state)
        backend, flat = state.pop("backend"), state.pop("flat")
        try:
            backend = get_backend(backend)
        except (BackendUnavailableError, ValueError) as error:
            backend = get_backend()
            _log.warning("a network that was made on another backend comes back on %s: %s", backend.name, error)
        vars(self).update(state)
        self._set_up(self.architecture, backend, self.precision, self._generator, flat)

    @classmethod
    def from_parameters(
        cls,
        parameters: Parameters,
        backend: str | Backend | None = None,
        random_state: RandomState = None,
        precision: str | None = None,
    ) -> Self:
        """A network that starts from a copy of given parameters (numpy arrays) instead of drawn ones."""
        network = cls.__new__(cls)
        network.history = None
        generator = as_generator(random_state)
        network._set_up(parameters.architecture, backend, precision, generator, parameters.flat.copy())
        return network

    def _numpy_parameters(self) -> Parameters:
        return Parameters(self.architecture, self.backend.to_numpy(self.parameters.flat))

    @contextmanager
    def _fitting_alone(self) -> Iterator[None]:
        """Let no other thread, and no callback, train this network meanwhile."""
        if not self._fitting.acquire(blocking=False):
            raise RuntimeError("fit: this network is being trained already, by another thread or a callback")
        try:
            yield
        finally:
            self._fitting.release()

    # Arrays in and out -----------------------------------------------------------------------------------------------

    def _samples(self, X: Any, Y: Any, sample_weight: Any = None, prefix: str = "") -> Samples:
        return as_samples(X, Y, sample_weight, self.architecture, self.backend, prefix)

    def _check_result(self, result: Any) -> None:
        """Where a result is not finite, say that the weights are to blame if they are."""
        if not math.isfinite(result) if isinstance(result, float) else not self.backend.all_finite(result):
            self._check_weights()

    def _check_weights(self) -> None:
        if not self.backend.all_finite(self.parameters.flat):
            raise ValueError("weights: expected finite numbers; the network's parameters hold NaN or infinity")

    def _like(self, X: Any, result: Array) -> Array:
        """`result` in the kind of array that X is: one of the backend's own, else numpy."""
        return result if self.backend.owns(X) else self.backend.to_numpy(result)
