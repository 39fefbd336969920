"""Networks with several hidden layers on the middle path: every activation, dtype and depth, and every way through."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from harness import fake_cupy

import oracle
from fusedmlp import Gradients, Network
from fusedmlp.backends.cupy.cublaslt import Epilogue
from fusedmlp.backends.cupy.cuda_tables import CUDA_ACTIVATIONS
from fusedmlp.backends.cupy.middle_engine import MiddleEngine
from fusedmlp.engines.composed import ComposedEngine

M = 60
# Narrow layers above and wide ones, rows with gaps and without, an odd width, and one to four hidden layers.
SIZES = [(5, 7, 2), (6, 20, 9, 3), (4, 9, 40, 1), (5, 33, 5, 12, 7), (4, 18, 17, 19, 21, 2)]


def problem(sizes, dtype, order):
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(sizes[0], M)), rng.normal(size=(sizes[-1], M))
    return np.asarray(X, dtype, order=order), np.asarray(Y, dtype)


def network(backend, sizes, activation="relu", dtype="float32", bias=True, precision=None):
    net = Network(sizes, activation, "squared_error", bias, dtype, backend=backend, random_state=1, precision=precision)
    net._engines.engine = MiddleEngine(net.backend, net.architecture)
    if bias:
        for b in net.biases:
            b[...] = net.backend.asarray(np.linspace(-0.5, 0.5, b.size)[:, None], dtype)
    return net


def check(net, X, Y, tolerance=None):
    """Outputs, loss and gradients of the oracle."""
    tolerance = tolerance or (2e-5 if net.architecture.dtype == "float32" else 1e-12)
    weights, biases = [[net.backend.to_numpy(x).astype(float) for x in of] for of in (net.weights, net.biases)]
    a = net.architecture
    arguments = weights, biases, X.T.astype(float), Y.T.astype(float), a.hidden_activation, a.loss
    J, dWs, dbs = oracle.loss_and_gradients(*arguments)
    got_J, gradients = net.loss_and_gradients(X, Y)
    assert got_J == pytest.approx(J, rel=tolerance)
    assert net.loss(X, Y) == pytest.approx(J, rel=tolerance)
    _, A = oracle.forward(weights, biases, X.T.astype(float), a.hidden_activation, a.loss)
    np.testing.assert_allclose(net.forward(X), A.T, rtol=0, atol=tolerance * np.abs(A).max() * 4)
    for got, expected in zip(gradients.weights, dWs, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * 4 * max(1e-3, np.abs(expected).max()))
    for got, expected in zip(gradients.biases, dbs, strict=False):
        np.testing.assert_allclose(got[:, 0], expected, rtol=0, atol=tolerance * 4 * max(1e-3, np.abs(expected).max()))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", CUDA_ACTIVATIONS)
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "-".join(map(str, sizes)))
def test_every_depth(emulated, sizes, activation, dtype):
    for bias, order in ((True, "C"), (True, "F"), (False, "F")):
        net = network(emulated, sizes, activation, dtype, bias)
        check(net, *problem(sizes, dtype, order))


def test_samples_with_gaps(emulated):
    X, Y = problem(SIZES[1], "float32", "C")
    spread = fake_cupy.copied(np.full((2 * X.shape[0], 3 * M), np.nan, np.float32))[::2, ::3]
    spread[...] = fake_cupy.copied(X)
    for activation in ("relu", "tanh"):
        net = network(emulated, SIZES[1], activation)
        J, gradients = net.loss_and_gradients(X, Y)
        strided_J, strided = net.loss_and_gradients(spread, fake_cupy.copied(Y))
        assert strided_J == J
        np.testing.assert_allclose(strided.flat.get(), gradients.flat, rtol=0, atol=1e-5)


def routes_of(net, X, Y):
    net.loss_and_gradients(X, Y)
    return net.engine.lower.routes


def test_routes(emulated, cupy):
    """relu in float32 has no passes of its own; others have one each way, none where the layer above is narrow."""
    sizes = (4, 18, 17, 19, 21, 2)
    X, Y = problem(sizes, "float32", "F")
    net = network(emulated, sizes)
    del cupy.launches[:]
    routes = routes_of(net, X, Y)
    assert routes == dict.fromkeys(("A1", "A2", "A3", "dZ3", "dZ2", "dZ1"), "epilogue")
    assert not any(name.startswith(("activate", "lower_layer", "fused_backward")) for name in cupy.launches)
    epilogues = [product.epilogue for product in cupy.cublaslt.products]
    assert epilogues == [Epilogue.RELU_AUX_BIAS] * 3 + [Epilogue.DRELU_BGRAD] * 3
    net.loss(X, Y)
    assert [product.epilogue for product in cupy.cublaslt.products[6:]] == [Epilogue.RELU_BIAS] * 3

    for activation, dtype in (("tanh", "float32"), ("relu", "float64")):
        net = network(emulated, (5, 33, 20, 12, 3), activation, dtype)
        del cupy.launches[:]
        expected = {"A1": "pass", "A2": "pass", "dZ2": "kernel", "dZ1": "pass"}
        assert routes_of(net, *problem((5, 3), dtype, "C")) == expected
        lower = [name for name in cupy.launches if name.startswith("lower_layer")]
        assert lower == [f"lower_layer_16_{activation}_{dtype}_packed", f"lower_layer_0_{activation}_{dtype}_packed"]
        assert sum(name.startswith("activate") for name in cupy.launches) == 2
        assert not any(name.startswith(("fused_backward", "times_derivative")) for name in cupy.launches)


@pytest.mark.parametrize(
    ("missing", "routes"),
    [
        ({Epilogue.DRELU_BGRAD}, {"A1": "epilogue", "A2": "epilogue", "dZ2": "kernel", "dZ1": "pass"}),
        ({Epilogue.RELU_AUX_BIAS}, {"A1": "epilogue", "A2": "epilogue", "dZ2": "kernel", "dZ1": "pass"}),
        (
            {Epilogue.RELU_AUX_BIAS, Epilogue.RELU_BIAS},
            {"A1": "pass", "A2": "pass", "dZ2": "kernel", "dZ1": "pass"},
        ),
    ],
)
def test_where_cublaslt_has_no_algorithm(emulated, cupy, caplog, missing, routes):
    """The other way is taken, which the routes and a message say."""
    cupy.cublaslt.missing |= missing
    sizes = (6, 33, 20, 12, 3)
    net, (X, Y) = network(emulated, sizes), problem(sizes, "float32", "C")
    with caplog.at_level(logging.INFO, "fusedmlp"):
        check(net, X, Y)
        assert routes_of(net, X, Y) == routes
    for epilogue in missing:
        assert f"no algorithm for {epilogue.name} of" in caplog.text


def test_a_mask_is_of_its_own_pass(emulated, cupy):
    """A pass whose mask has no algorithm does not use that of the pass before."""
    sizes = (6, 33, 20, 12, 3)
    net, (X, Y) = network(emulated, sizes), problem(sizes, "float32", "C")
    assert routes_of(net, X, Y)["dZ1"] == "epilogue"
    assert net.engine.lower._masks == {}, "it keeps the memory of a pass"
    cupy.cublaslt.missing.add(Epilogue.RELU_AUX_BIAS)
    emulated.epilogues._threads.devices.clear()  # what was found before is forgotten
    X = -X
    assert routes_of(net, X, Y) == {"A1": "epilogue", "A2": "epilogue", "dZ2": "kernel", "dZ1": "pass"}
    check(net, X, Y)


@pytest.mark.parametrize("where", ["W1", "b2", "W4"])
def test_nan_in_the_weights_is_not_hidden(emulated, where):
    """The epilogue's relu may make 0 of it."""
    sizes = (6, 9, 8, 7, 3)
    X, Y = problem(sizes, "float32", "C")
    net = network(emulated, sizes)
    dict(net.parameters.named())[where][0, 0] = np.nan
    for call in (lambda: net.loss(X, Y), lambda: net.loss_and_gradients(X, Y)):
        with pytest.raises(ValueError, match="weights: expected finite numbers"):
            call()
    assert np.isnan(emulated.to_numpy(net.engine.forward(net.parameters, emulated.asarray(X)))).any()


@pytest.mark.usefixtures("never_resident")
@pytest.mark.parametrize("precision", ["strict", "tf32"])
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_captured_steps(emulated, cupy, activation, precision):
    """A training in graphs is the composed engine's: the products with epilogues are captured as well."""
    sizes = (6, 20, 9, 2)
    X, Y = problem(sizes, "float32", "F")
    flats, losses = [], []
    for kind in (MiddleEngine, ComposedEngine):
        net = network(emulated, sizes, activation, precision=precision)
        net._engines.engine = engine = kind(net.backend, net.architecture)
        kept = []
        history = net.fit(
            X, Y, "adam", 4, 8, callbacks=[lambda training, kept=kept: kept.append(training.optimizer_state)]
        )
        flats.append(net.parameters.flat.get())
        losses.append(history.loss)
        if kind is MiddleEngine:
            assert any(graph.launched for graph in engine._steps[kept[0]][0]._graphs.values())
            assert {product.epilogue for product in cupy.cublaslt.products} == (
                {Epilogue.RELU_AUX_BIAS, Epilogue.DRELU_BGRAD} if activation == "relu" else set()
            )
    tolerance = 2e-5 if precision == "strict" else 5e-3
    np.testing.assert_allclose(*losses, rtol=tolerance)
    np.testing.assert_allclose(*flats, rtol=0, atol=tolerance * 10)


def test_chunks(emulated, monkeypatch):
    """The last chunk is smaller; masks and sums are of the chunk."""
    sizes = (6, 20, 9, 3)
    X, Y = (np.tile(x, 10) for x in problem(sizes, "float32", "C"))
    for activation in ("relu", "tanh"):
        net = network(emulated, sizes, activation)
        net.engine._chunk = 256
        check(net, X, Y)


def test_the_same_bits_twice(emulated):
    sizes = (6, 40, 30, 3)
    X, Y = problem(sizes, "float32", "C")
    for activation in ("relu", "sigmoid"):
        net = network(emulated, sizes, activation)
        engine, samples = net.engine, net._samples(X, Y, None)
        flats = []
        for _ in range(2):
            gradients = Gradients(net.architecture, emulated.empty((net.architecture.n_parameters,), "float32"))
            engine.loss_and_gradients(net.parameters, samples.X, samples.Y, gradients)
            flats.append(gradients.flat.get())
        assert np.array_equal(*flats)
