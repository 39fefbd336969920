"""PyTorch on the CPU: eager, and compiled by torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.peers.cases import ADAM, SOFTMAX, Case, Problem
from bench.peers.peer import Bound, Latest, Peer, named_epoch, named_step


class Torch(Peer):
    """Eager mode; an epoch is the usual loop, with the optimizer's fused kernel."""

    name = "torch"
    module = "torch"
    distributions = ("torch",)

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._torch = torch

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
        Y = self._torch.from_numpy(problem.Y)
        return Y.argmax(dim=1) if problem.case.loss == SOFTMAX else Y

    def bind(self, problem: Problem) -> Bound:
        torch, case = self._torch, problem.case
        functional = torch.nn.functional
        X, Y = torch.from_numpy(problem.X), self._targets(problem)
        layers = [torch.from_numpy(x).requires_grad_(case.task != "forward") for x in problem.layers()]
        logits = self._logits(case)
        if case.task == "forward":
            output = torch.sigmoid if case.loss != SOFTMAX else (lambda Z: torch.softmax(Z, dim=1))
            forward = self._compile(lambda layers, X: output(logits(layers, X)))
            with_no_grad = torch.no_grad()(forward)
            A = Latest(lambda: with_no_grad(layers, X))
            return Bound(A, lambda: {"A": A.value.numpy()})
        criterion = functional.cross_entropy if case.loss == SOFTMAX else functional.binary_cross_entropy_with_logits
        loss = self._compile(lambda layers, X, Y: criterion(logits(layers, X), Y))
        if case.task == "epoch":
            return self._epoch(problem, loss, layers, X, Y)

        def step() -> Any:
            J = loss(layers, X, Y)
            return J.detach(), torch.autograd.grad(J, layers)

        latest = Latest(step)
        return Bound(latest, lambda: named_step(problem, latest.value[0], latest.value[1]))

    def _epoch(self, problem: Problem, loss: Any, layers: Any, X: Any, Y: Any) -> Bound:
        torch, batch_size = self._torch, problem.case.batch_size
        order = torch.from_numpy(problem.order)
        optimizer = torch.optim.Adam(
            layers, lr=ADAM.learning_rate, betas=(ADAM.beta_1, ADAM.beta_2), eps=ADAM.epsilon, fused=True
        )

        def epoch() -> float:
            total = 0.0
            for samples in order.split(batch_size):
                optimizer.zero_grad()
                J = loss(layers, X[samples], Y[samples])
                J.backward()
                optimizer.step()
                total += J.item() * len(samples)
            return total / problem.case.m

        J = Latest(epoch)
        return Bound(J, lambda: named_epoch(problem, np.float32(J.value), [x.detach().numpy() for x in layers]))


class TorchCompile(Torch):
    """torch.compile of the loss; autograd runs the backward graph that was compiled with it."""

    name = "torch.compile"
    tasks = ("step", "forward")

    def _compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        self._torch.compiler.reset()  # the graphs of earlier shapes, of which it keeps only a few
        return self._torch.compile(function, dynamic=False)
