"""The optimizer's kernel, run on the CPU, against the optimizers' own update in float64."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from harness import fake_cupy
from harness.emulator import compile_source

from fusedmlp import Gradients, Parameters, get_backend
from fusedmlp.backends.cupy import kernel_sources
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.optimizers import RULES, SGD, Adam, AdamW, OptimizerState

OPTIMIZERS = {
    "sgd": SGD(0.3),
    "momentum": SGD(0.3, momentum=0.8),
    "nesterov": SGD(0.3, momentum=0.8, nesterov=True),
    "adam": Adam(0.1, beta_1=0.8, beta_2=0.95, epsilon=1e-3),
    "adamw": AdamW(0.1, beta_1=0.8, beta_2=0.95, epsilon=1e-3, weight_decay=0.3),
}
LAYOUTS = ("packed", "strided")
# Vectors of 1 to thousands of numbers: tails of every length, more than one grid covers at once.
SIZES = [(1, 1), (2, 1), (3, 2), (5, 3, 1), (7, 9, 4, 2), (64, 65, 3), (200, 100, 7)]


def trained(xp, take_step, architecture, optimizer, decay, on_device, steps=3):
    """(parameters, moments) after some steps along gradients that follow from the seed; float64 unless on a device."""
    rng = np.random.default_rng(1)
    parameters = Parameters(architecture, on_device(rng.normal(size=architecture.n_parameters)))
    state = OptimizerState(optimizer, xp, parameters)
    for _ in range(steps):
        gradients = Gradients(architecture, on_device(rng.normal(size=architecture.n_parameters)))
        take_step(state, parameters, gradients, 0.7, decay)
    return [parameters.flat, *state.moments.values()]


def in_numpy(state, parameters, gradients, factor, decay):
    gradients.scale(parameters, factor, decay)
    state.step(np, parameters.flat, gradients.flat)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps(emulated, cupy, shuffled, name, dtype):
    """Any two of biases, decay and alignment in every combination."""
    choices = (True, 0.0, 0), (True, 0.2, 1), (False, 0.0, 1), (False, 0.2, 0)
    for sizes, (bias, decay, shift) in itertools.product(SIZES, choices):
        architecture = Architecture(sizes, bias=bias, dtype=dtype)
        exact = Architecture(sizes, bias=bias, dtype="float64")

        def on_device(x, shift=shift):
            return fake_cupy.copied(x.astype(dtype), shift=shift * np.dtype(dtype).itemsize)

        got = trained(cupy, emulated.take_step, architecture, OPTIMIZERS[name], decay, on_device)
        expected = trained(np, in_numpy, exact, OPTIMIZERS[name], decay, lambda x: x.astype(dtype).astype(float))
        for x, right in zip(got, expected, strict=True):
            assert x.dtype == dtype
            if name == "sgd" and x is not got[0]:
                assert not x.get().any()  # no use for it
            else:
                np.testing.assert_allclose(x.get(), right, rtol=0, atol=20 * np.finfo(dtype).eps * np.abs(right).max())
    layouts = {launched.rsplit("_", 1)[1] for launched in cupy.launches if launched.startswith(f"{name}_{dtype}")}
    assert layouts == set(LAYOUTS)


def test_every_kernel_has_its_test():
    names = compile_source(kernel_sources.source("optimizer.cu")).names
    rules = {f"{rule}_{t}_{v}" for rule in RULES for t in ("float32", "float64") for v in LAYOUTS}
    assert set(names) == rules | {"gradient_squares_float32", "gradient_squares_float64", "clip_factor"}
    assert OPTIMIZERS.keys() == RULES.keys()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("decay", [0.0, 0.2])
@pytest.mark.parametrize("clip_norm", [0.3, 1e6])
def test_clipping(emulated, cupy, thread_order, clip_norm, decay, dtype):
    """By the norm of the whole gradient, in two launches; the same bits in every order of the threads."""
    for sizes in ((1, 1), (7, 9, 2), (200, 400, 3)):
        flats = []
        for xp, backend in ((cupy, emulated), (np, None)):
            architecture = Architecture(sizes, dtype=dtype if backend else "float64")
            rng = np.random.default_rng(0)
            theta, gradient = (rng.normal(size=architecture.n_parameters).astype(dtype) for _ in range(2))
            theta, gradient = (fake_cupy.copied(x) if backend else x.astype(float) for x in (theta, gradient))
            parameters, gradients = Parameters(architecture, theta), Gradients(architecture, gradient)
            take_step = backend.take_step if backend else get_backend("numpy").take_step
            take_step(OptimizerState(SGD(1.0), xp, parameters), parameters, gradients, 0.7, decay, clip_norm)
            flats.append(theta)
        np.testing.assert_allclose(flats[0].get(), flats[1], rtol=0, atol=40 * np.finfo(dtype).eps)
    assert f"gradient_squares_{dtype}" in cupy.launches


@dataclass(frozen=True)
class Signs(SGD):
    """An optimizer of a user's own."""

    def update(self, xp, state, theta, gradient):
        theta -= gradient * theta.dtype.type(state.learning_rate)


def test_an_optimizer_of_the_users_own_steps_in_python(emulated, cupy):
    architecture = Architecture((3, 4, 1), dtype="float64")
    got = trained(cupy, emulated.take_step, architecture, Signs(0.5), 0.1, fake_cupy.copied)[0].get()
    assert "sgd_float64_packed" not in cupy.launches
    np.testing.assert_allclose(got, trained(np, in_numpy, architecture, Signs(0.5), 0.1, np.array)[0], rtol=1e-14)


def test_wrong_vectors(emulated):
    architecture = Architecture((3, 4, 1))
    vector = fake_cupy.copied(np.zeros(architecture.n_parameters, np.float32))
    gaps = fake_cupy.copied(np.zeros(2 * architecture.n_parameters, np.float32))[::2]
    parameters = Parameters(architecture, vector)
    state = OptimizerState(Adam(), fake_cupy.make(), parameters)
    with pytest.raises(ValueError, match=r"gradients: expected a vector without gaps; got strides \(8,\)"):
        emulated.take_step(state, parameters, Gradients(architecture, gaps), 1.0, 0.0)
    other = fake_cupy.copied(np.zeros(architecture.n_parameters))
    with pytest.raises(TypeError, match="gradients: expected float32, like the other arrays; got float64"):
        emulated.take_step(state, parameters, Gradients(architecture, other), 1.0, 0.0)
