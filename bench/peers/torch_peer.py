"""PyTorch: eager, and compiled by torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from bench.peers.cases import ADAM, SOFTMAX, Case
from bench.peers.device import Device
from bench.peers.peer import Bound, Latest, NotHereError, Peer, named_epoch, named_step, repeat
from bench.peers.problem import Problem


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
        torch = self._torch
        activation = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}[case.hidden_activation]

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
        functional = torch.nn.functional
        torch.set_float32_matmul_precision("high" if case.precision == "tf32" else "highest")
        X, Y = self._tensor(problem.X), self._targets(problem)
        layers = [self._tensor(x).requires_grad_(case.task != "forward") for x in problem.layers()]
        self._keep_in_place(X, Y, *layers)
        logits = self._logits(case)
        if case.task == "forward":
            output = torch.sigmoid if case.loss != SOFTMAX else (lambda Z: torch.softmax(Z, dim=1))
            forward = self._compile(lambda layers, X: output(logits(layers, X)))
            with_no_grad = torch.no_grad()(forward)
            A = Latest(lambda: with_no_grad(layers, X))
            return Bound(A, lambda: {"A": A.value.cpu().numpy()})
        criterion = functional.cross_entropy if case.loss == SOFTMAX else functional.binary_cross_entropy_with_logits
        loss = self._compile(lambda layers, X, Y: criterion(logits(layers, X), Y))
        if case.task == "epoch":
            return self._epoch(problem, loss, layers, X, Y)

        def step() -> Any:
            self._begin_step()
            J = loss(layers, X, Y)
            return J.detach(), torch.autograd.grad(J, layers)

        latest = Latest(step)
        return Bound(latest, lambda: named_step(case, latest.value[0].cpu(), [g.cpu() for g in latest.value[1]]))

    def _keep_in_place(self, *tensors: Any) -> None:
        """Tell a compiler that these tensors are the same ones in every call."""

    def _begin_step(self) -> None:
        """Tell a compiler that the results of the step before are no longer needed."""

    def _epoch(self, problem: Problem, loss: Any, layers: Any, X: Any, Y: Any) -> Bound:
        torch, batch_size = self._torch, problem.case.batch_size
        order = self._tensor(problem.order)
        # Asking a GPU for every loss would leave it idle after each batch.
        value = torch.Tensor.item if not self._cuda else torch.Tensor.detach
        optimizer = torch.optim.Adam(
            layers, lr=ADAM.learning_rate, betas=(ADAM.beta_1, ADAM.beta_2), eps=ADAM.epsilon, fused=True
        )

        def epoch() -> float:
            total: Any = 0.0
            for samples in order.split(batch_size):
                self._begin_step()
                optimizer.zero_grad()
                J = loss(layers, X[samples], Y[samples])
                J.backward()
                optimizer.step()
                total += value(J) * len(samples)
            return float(total) / problem.case.m

        J = Latest(epoch)
        return Bound(J, lambda: named_epoch(problem, np.float32(J.value), [x.detach().cpu() for x in layers]))


class TorchCompile(Torch):
    """torch.compile of the loss; autograd runs the backward graph that was compiled with it."""

    mode: ClassVar[str | None] = None
    """The mode of torch.compile; None is its default."""

    def _compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        self._torch.compiler.reset()  # the graphs of earlier shapes, of which it keeps only a few
        return self._torch.compile(function, dynamic=False, mode=self.mode)


class TorchCompileGraphs(TorchCompile):
    """torch.compile with CUDA graphs; on a GPU only."""

    mode = "reduce-overhead"

    def _keep_in_place(self, *tensors: Any) -> None:
        # Otherwise a graph copies every argument, all of X too, to the addresses it was captured with.
        for tensor in tensors:
            self._torch._dynamo.mark_static_address(tensor)

    def _begin_step(self) -> None:
        self._torch.compiler.cudagraph_mark_step_begin()
