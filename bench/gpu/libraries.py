"""The libraries on a device: the peers of `bench.peers` and the package's own engines, with what a GPU asks of them."""

from __future__ import annotations

import importlib.util
import inspect
import time
from abc import ABC, abstractmethod
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

import numpy as np

import fusedmlp
from bench.gpu.device import Device
from bench.peers import jax_peer, torch_peer
from bench.peers.cases import ADAM, Case, Problem
from bench.peers.peer import TASKS, Bound, Latest, Peer, named_step
from fusedmlp import Gradients, Network, get_backend
from fusedmlp.model.optimizers import OptimizerState


class NotHereError(RuntimeError):
    """A library cannot do this on this machine: it is left out, with the reason."""


class Library(ABC):
    """A library in a process of its own, which it may import and start.

    Parameters
    ----------
    device : Device
    """

    module: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]] = TASKS

    def __init__(self, device: Device) -> None:
        self.device = device

    @abstractmethod
    def bind(self, problem: Problem, tf32: bool) -> Bound:
        """As `Peer.bind`, with or without TF32; `Bound.call` may return before the device is done.

        Raises
        ------
        NotHereError
        """

    @abstractmethod
    def seconds(self, bound: Bound, calls: int) -> float:
        """The device's time for so many calls in a row."""

    @abstractmethod
    def start_counting(self) -> None:
        """From here on `peak_bytes` counts; memory that is not used goes back to the device first."""

    @abstractmethod
    def peak_bytes(self) -> int | None:
        """The most memory that was taken since `start_counting`, beyond what was there; None: not known."""

    @abstractmethod
    def versions(self) -> str: ...

    def engine(self) -> str:
        """What ran, where the library has a name for it."""
        return ""


class Own(Library):
    """The package's engine that a `Network` takes on this device."""

    module = "fusedmlp"
    tasks = ("step", "epoch")
    fused: ClassVar[bool] = True

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self._backend = get_backend(device.backend)
        self._engine: Any = None
        self._before = 0

    def bind(self, problem: Problem, tf32: bool) -> Bound:
        backend, case = self._backend, problem.case
        network = Network(
            list(case.layer_sizes), case.hidden_activation, case.loss, backend=backend, **_precision(tf32, self.fused)
        )
        parameters = network.parameters
        parameters.flat[...] = backend.asarray(problem.flat)
        self._engine = engine = network.engine if self.fused else backend.engine(case.architecture, fused=False)
        X, Y = problem.X.T, problem.Y.T
        if case.task == "step":
            gradients = Gradients(case.architecture, backend.xp.empty_like(parameters.flat))
            J = Latest(lambda: engine.loss_and_gradients(parameters, X, Y, gradients))
            return Bound(J, lambda: named_step(problem, J.value, self._on_host(gradients)))
        state, order = OptimizerState(ADAM, backend.xp, parameters), None
        if case.batch_size < case.m:
            order = backend.asarray(problem.order)
        J = Latest(lambda: engine.train_epoch(parameters, state, X, Y, None, order, case.batch_size))

        def result() -> dict[str, np.ndarray]:
            change = backend.to_numpy(parameters.flat).astype(np.float64) - problem.flat
            return {"J": np.asarray(J.value), "change": change}

        return Bound(J, result)

    def _on_host(self, gradients: Gradients) -> list[np.ndarray]:
        named = ((name, self._backend.to_numpy(g)) for name, g in gradients.named())
        return [g.reshape(-1) if name.startswith("b") else g for name, g in named]

    def seconds(self, bound: Bound, calls: int) -> float:
        return self.device.seconds(lambda: _repeat(bound, calls))

    def start_counting(self) -> None:
        self._engine = None
        self.device.free_bytes()  # gives back what the array module keeps in reserve
        self._before = self.device.held_bytes() or 0

    def peak_bytes(self) -> int | None:
        held = self.device.held_bytes()
        return None if held is None else held - self._before

    def versions(self) -> str:
        return f"fusedmlp {fusedmlp.__version__}, {self._backend.describe()['versions']}"

    def engine(self) -> str:
        path = getattr(self._engine, "path", None)
        return self._engine.kind + (f", {path}" if path else "")


class Composed(Own):
    """The package's engine of primitives, on the same device."""

    fused = False


class TorchLibrary(Library):
    """PyTorch, with its own events and its own count of memory."""

    module = "torch"
    peer: ClassVar[type[torch_peer.Torch]] = torch_peer.Torch

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        import torch

        self._torch = torch
        if device.kind == "cuda" and not torch.cuda.is_available():
            raise NotHereError(f"torch {torch.__version__} has no CUDA here")
        self._peer: Peer = self.peer(torch.get_num_threads(), device.kind)
        self._before = 0

    def bind(self, problem: Problem, tf32: bool) -> Bound:
        if self.device.kind == "cuda":
            self._torch.set_float32_matmul_precision("high" if tf32 else "highest")
        elif tf32:
            raise NotHereError("no TF32 on a CPU")
        return self._peer.bind(problem)

    def seconds(self, bound: Bound, calls: int) -> float:
        if self.device.kind == "cpu":
            return self.device.seconds(lambda: _repeat(bound, calls))
        start, stop = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        _repeat(bound, calls)
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3

    def start_counting(self) -> None:
        if self.device.kind == "cuda":
            self._torch.cuda.empty_cache()
            self._torch.cuda.reset_peak_memory_stats()
            self._before = self._torch.cuda.memory_allocated()

    def peak_bytes(self) -> int | None:
        return None if self.device.kind == "cpu" else self._torch.cuda.max_memory_allocated() - self._before

    def versions(self) -> str:
        return f"torch {self._torch.__version__}" + _of("triton")


class TorchCompileLibrary(TorchLibrary):
    """The same, compiled; in an epoch the loss is, with its backward graph."""

    peer = torch_peer.TorchCompile


class TorchGraphsLibrary(TorchLibrary):
    """The same with CUDA graphs."""

    peer = torch_peer.TorchCompileGraphs


class JaxLibrary(Library):
    """JAX: many calls, one wait, by the clock on the wall; memory is what XLA plans for the compiled function."""

    module = "jax"

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        import jax

        self._jax = jax
        self._peer = jax_peer.Jax(1, device.kind)
        self._before = 0
        try:
            jax.devices()
        except RuntimeError as error:
            raise NotHereError(f"jax has no {device.kind} here: {error}".splitlines()[0]) from None

    def bind(self, problem: Problem, tf32: bool) -> Bound:
        if self.device.kind == "cuda":
            self._jax.config.update("jax_default_matmul_precision", "tensorfloat32" if tf32 else "highest")
        elif tf32:
            raise NotHereError("no TF32 on a CPU")
        return self._peer.bind(problem)

    def seconds(self, bound: Bound, calls: int) -> float:
        start = time.perf_counter()
        _repeat(bound, calls)
        self._jax.block_until_ready(getattr(bound.call, "value"))  # noqa: B009 - a Latest
        return time.perf_counter() - start

    def start_counting(self) -> None:
        self._before = self._statistics().get("bytes_in_use", 0)

    def peak_bytes(self) -> int | None:
        """An upper bound where an earlier case took more: jax's own peak is never forgotten."""
        peak = self._statistics().get("peak_bytes_in_use")
        return None if peak is None else peak - self._before

    def _statistics(self) -> dict[str, int]:
        return self._jax.devices()[0].memory_stats() or {}

    def versions(self) -> str:
        return f"jax {version('jax')}" + _of("jaxlib") + _of("jax-cuda13-plugin") + _of("jax-cuda12-plugin")


LIBRARIES: dict[str, type[Library]] = {
    "fused": Own,
    "composed": Composed,
    "torch": TorchLibrary,
    "torch.compile": TorchCompileLibrary,
    "torch.compile, graphs": TorchGraphsLibrary,
    "jax": JaxLibrary,
}
"""In the order of a report. "composed" is no peer of "fused"."""


def missing(name: str) -> str | None:
    """Why a library cannot be measured, where it is not installed."""
    module = LIBRARIES[name].module
    return None if importlib.util.find_spec(module) else f"{module} is not installed"


def cannot(name: str, case: Case) -> str | None:
    """Why a library has no time at a case."""
    return None if case.task in LIBRARIES[name].tasks else f"no {case.task} of its own"


def _precision(tf32: bool, fused: bool) -> dict[str, str]:
    """What `Network` is told about TF32."""
    if not tf32:
        return {}
    if "precision" not in inspect.signature(Network).parameters:
        raise NotHereError(f"fusedmlp {fusedmlp.__version__} computes in strict float32 alone")
    if not fused:
        raise NotHereError("measured in strict float32 alone")
    return {"precision": "tf32"}


def _repeat(bound: Bound, calls: int) -> None:
    for _ in range(calls):
        bound.call()


def _of(distribution: str) -> str:
    """ ", triton 3.6.0"; nothing where it is not installed."""
    try:
        return f", {distribution} {version(distribution)}"
    except PackageNotFoundError:
        return ""
