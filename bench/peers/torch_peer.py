"""PyTorch: eager, compiled by torch.compile, and with steps in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.peers.cases import ADAM, BCE, SOFTMAX, Case
from bench.peers.device import Device
from bench.peers.peer import Bound, Latest, NotHereError, Peer, named_epoch, named_step, repeat
from bench.peers.problem import Problem

CALLS_BEFORE_CAPTURE = 3
"""Steps before one is captured, as torch's documentation asks."""


class Torch(Peer):
    """Eager mode; an epoch is the usual loop, with the optimizer's fused kernel."""

    distributions = ("torch", "triton")

    def __init__(self, device: Device, threads: int) -> None:
        super().__init__(device, threads)
        import torch

        self._torch = torch
        self._cuda = device.kind == "cuda"
        if not self._cuda:
            torch.set_num_threads(threads)
        elif not torch.cuda.is_available():
            raise NotHereError(f"torch {torch.__version__} has no CUDA here")

    def seconds(self, bound: Bound, calls: int) -> float:
        if not self._cuda:
            return super().seconds(bound, calls)
        start, stop = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        repeat(bound, calls)
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3

    def memory(self) -> int | None:
        return self._torch.cuda.memory_allocated() if self._cuda else super().memory()

    def peak(self) -> int | None:
        return self._torch.cuda.max_memory_allocated() if self._cuda else super().peak()

    def forget_peak(self) -> None:
        super().forget_peak()
        if self._cuda:
            self._torch.cuda.empty_cache()
            self._torch.cuda.reset_peak_memory_stats()

    def _tensor(self, x: Any) -> Any:
        """x on the device; where it lies there already (a CuPy array), without a copy."""
        torch = self._torch
        return torch.from_numpy(x).to(self.device.kind) if isinstance(x, np.ndarray) else torch.from_dlpack(x)

    def _compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def _logits(self, case: Case) -> Callable[[Any, Any], Any]:
        torch, functional = self._torch, self._torch.nn.functional
        if case.hidden_activation in ("sigmoid", "tanh"):
            activation = getattr(torch, case.hidden_activation)
        elif case.hidden_activation == "identity":
            activation = torch.nn.Identity()
        else:
            activation = getattr(functional, case.hidden_activation)  # under the same names

        def logits(layers: Any, X: Any) -> Any:
            A = X
            for layer in range(0, len(layers), 2):
                Z = torch.addmm(layers[layer + 1], A, layers[layer])
                A = activation(Z)
            return Z

        return logits

    def _targets(self, problem: Problem) -> Any:
        """Class numbers for a softmax, which takes them directly; else the labels."""
        Y = self._tensor(problem.Y)
        return Y.argmax(dim=1) if problem.case.loss == SOFTMAX else Y

    def bind(self, problem: Problem) -> Bound:
        torch, case = self._torch, problem.case
        torch.set_float32_matmul_precision("high" if case.precision == "medium" else "highest")
        X, Y = self._tensor(problem.X), self._targets(problem)
        layers = [self._tensor(x).requires_grad_(case.task != "forward") for x in problem.layers()]
        logits = self._logits(case)
        if case.task == "forward":
            output = self._output(case.loss)
            forward = self._compile(lambda layers, X: output(logits(layers, X)))
            with_no_grad = torch.no_grad()(forward)
            A = Latest(lambda: with_no_grad(layers, X))
            return Bound(A, lambda: {"A": A.value.cpu().numpy()})
        criterion = self._criterion(case)
        loss = self._compile(lambda layers, X, Y: criterion(logits(layers, X), Y))
        if case.task == "epoch":
            return self._epoch(problem, loss, layers, X, Y)

        def step() -> Any:
            J = loss(layers, X, Y)
            return J.detach(), torch.autograd.grad(J, layers)

        latest = Latest(step)
        return Bound(latest, lambda: named_step(case, latest.value[0].cpu(), [g.cpu() for g in latest.value[1]]))

    def _output(self, loss: str) -> Callable[[Any], Any]:
        """The output activation of a loss."""
        torch = self._torch
        if loss == SOFTMAX:
            return lambda Z: torch.softmax(Z, dim=1)
        outputs = {BCE: torch.sigmoid, "sum_squared_error": torch.sigmoid, "poisson": torch.exp}
        return outputs.get(loss, torch.nn.Identity())

    def _criterion(self, case: Case) -> Callable[[Any, Any], Any]:
        """J from the logits."""
        torch, functional = self._torch, self._torch.nn.functional
        if case.loss == SOFTMAX:
            return functional.cross_entropy
        if case.loss == "sum_squared_error":
            return lambda Z, Y: 0.5 * (torch.sigmoid(Z) - Y).square().sum()
        means = {  # over samples and outputs
            BCE: functional.binary_cross_entropy_with_logits,
            "squared_error": lambda Z, Y: 0.5 * functional.mse_loss(Z, Y),
            "poisson": lambda Z, Y: functional.poisson_nll_loss(Z, Y) + (torch.xlogy(Y, Y) - Y).mean(),
            "absolute_error": functional.l1_loss,
            "huber": functional.huber_loss,
            "quantile": lambda Z, Y: 0.5 * functional.l1_loss(Z, Y),
        }
        mean, outputs = means[case.loss], case.layer_sizes[-1]
        return mean if outputs == 1 else (lambda Z, Y: outputs * mean(Z, Y))

    def _epoch(self, problem: Problem, loss: Any, layers: Any, X: Any, Y: Any) -> Bound:
        torch, batch_size = self._torch, problem.case.batch_size
        order = self._tensor(problem.order)
        # Asking a GPU for every loss would leave it idle after each batch.
        value = torch.Tensor.item if not self._cuda else torch.Tensor.detach
        optimizer = self._adam(layers)

        def epoch() -> float:
            total: Any = 0.0
            for samples in order.split(batch_size):
                optimizer.zero_grad()
                J = loss(layers, X[samples], Y[samples])
                J.backward()
                optimizer.step()
                total += value(J) * len(samples)
            return float(total) / problem.case.m

        J = Latest(epoch)
        return Bound(J, lambda: named_epoch(problem, np.float32(J.value), [x.detach().cpu() for x in layers]))

    def _adam(self, layers: Any, **more: bool) -> Any:
        betas = ADAM.beta_1, ADAM.beta_2
        return self._torch.optim.Adam(layers, lr=ADAM.learning_rate, betas=betas, eps=ADAM.epsilon, fused=True, **more)


class TorchCompile(Torch):
    """torch.compile of the loss; autograd runs the backward graph that was compiled with it."""

    def _compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        self._torch.compiler.reset()  # the graphs of earlier shapes, of which it keeps only a few
        return self._torch.compile(function, dynamic=False)


class TorchGraph(Torch):
    """Whole steps of training in CUDA graphs, one for each size of a batch: gathering, loss, gradients and Adam."""

    def _epoch(self, problem: Problem, loss: Any, layers: Any, X: Any, Y: Any) -> Bound:
        torch, m = self._torch, problem.case.m
        batches = self._tensor(problem.order).split(problem.case.batch_size)
        before = [x.detach().clone() for x in layers]
        optimizer = self._adam(layers, capturable=self._cuda)
        total = torch.zeros((), dtype=torch.float64, device=self.device.kind)
        samples = {len(batch): batch.clone() for batch in batches}

        def step(rows: Any) -> None:
            J = loss(layers, X[rows], Y[rows])
            J.backward()
            optimizer.step()
            total.add_(J.detach().to(torch.float64), alpha=len(rows))

        replays = {size: self._captured(optimizer, step, rows) for size, rows in samples.items()}
        with torch.no_grad():  # capturing has trained: back to the start
            for x, start in zip(layers, before, strict=True):
                x.copy_(start)
            for moments in optimizer.state.values():
                for value in moments.values():
                    value.zero_()

        def epoch() -> float:
            total.zero_()
            for batch in batches:
                samples[len(batch)].copy_(batch)
                replays[len(batch)]()
            return float(total) / m

        J = Latest(epoch)
        return Bound(J, lambda: named_epoch(problem, np.float32(J.value), [x.detach().cpu() for x in layers]))

    def _captured(self, optimizer: Any, step: Callable[[Any], None], rows: Any) -> Callable[[], None]:
        """A step on the samples whose numbers `rows` holds when it is called."""
        cuda = self._torch.cuda
        stream = cuda.Stream()
        stream.wait_stream(cuda.current_stream())
        with cuda.stream(stream):  # what torch sets up in its first steps must not be captured
            for _ in range(CALLS_BEFORE_CAPTURE):
                optimizer.zero_grad()
                step(rows)
        cuda.current_stream().wait_stream(stream)
        optimizer.zero_grad()  # the gradients of the graph are in its own memory
        graph = cuda.CUDAGraph()
        with cuda.graph(graph):
            step(rows)
        return graph.replay
