"""How many blocks a GPU runs at a time, as the driver says it, and grids that ask for no more."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from harness import fake_cupy, fake_driver

from fusedmlp.backends.cupy import occupancy
from fusedmlp.backends.cupy.backend import CupyBackend
from fusedmlp.backends.cupy.narrow_engine import NarrowEngine
from fusedmlp.backends.cupy.narrow_step import Variant
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.parameters import Gradients, Parameters

FUNCTION = 1 << 40


def test_structures_lie_as_the_drivers_do():
    """The sizes and offsets of cuda.h on 64 bits."""
    config, attribute = occupancy.LaunchConfig, occupancy.LaunchAttribute
    assert [config.block.offset, config.shared_bytes.offset, config.stream.offset] == [12, 24, 32]
    assert [config.attributes.offset, config.n_attributes.offset, ctypes.sizeof(config)] == [40, 48, 56]
    assert [attribute.x.offset, ctypes.sizeof(attribute)] == [8, 72]


def test_numbers(monkeypatch):
    monkeypatch.setattr(occupancy, "open_library", lambda: fake_driver.make(132))
    assert occupancy.blocks_at_a_time(FUNCTION, 256, 50 * 1024, 132) == 264
    assert occupancy.blocks_at_a_time(FUNCTION, 256, 120 * 1024, 132) == 132
    assert occupancy.clusters_at_a_time(FUNCTION, 4, 256, 120 * 1024) == 33
    assert occupancy.clusters_at_a_time(FUNCTION, 8, 256, 120 * 1024) == 16


def test_what_the_driver_refuses_is_an_error(monkeypatch):
    monkeypatch.setattr(occupancy, "open_library", lambda: fake_driver.make(132))
    with pytest.raises(RuntimeError, match="cuOccupancyMaxActiveClusters failed: CUDA_ERROR_INVALID_VALUE"):
        occupancy.clusters_at_a_time(FUNCTION, 9, 256, 0)
    with pytest.raises(RuntimeError, match="MaxActiveBlocksPerMultiprocessor: the kernel does not fit"):
        occupancy.blocks_at_a_time(FUNCTION, 256, 228 * 1024, 132)


@pytest.mark.parametrize(
    ("variant", "n", "multiprocessors", "step", "forward"),
    [
        (Variant(1, 2, 8, "tf32"), 200, 3, 6, 6),  # two blocks a multiprocessor
        (Variant(1, 8, 8, "tf32", clustered=True), 1024, 26, 5, 6),  # one block a multiprocessor, four a cluster
        (Variant(4, 2, 8, "float32", clustered=True), 300, 6, 5, 6),
    ],
)
def test_a_grid_has_no_second_wave(monkeypatch, variant, n, multiprocessors, step, forward):
    """The largest grids of a step and of a prediction are what runs at a time; results do not depend on it."""
    grids, results = {}, []
    for here in (1, multiprocessors):
        cupy = fake_cupy.make(multiprocessors=here)
        cupy.driver = fake_driver.make(here, blocks_by_registers=1 if variant.R == 8 else 2, missing_clusters=1)
        fake_cupy.install(monkeypatch, cupy)
        called = fake_cupy.RawKernel.__call__

        def watched(self, grid, block, args, shared_mem=0, called=called):
            kernel = self._kernel.name.rsplit("_", 4)[0]
            grids[kernel] = max(grid, grids.get(kernel, grid))
            called(self, grid, block, args, shared_mem)

        with monkeypatch.context() as patch:
            patch.setattr(fake_cupy.RawKernel, "__call__", watched)
            backend = CupyBackend()
            architecture = Architecture((3, n, variant.N), loss="squared_error", dtype="float32")
            engine = NarrowEngine(backend, architecture, variant)
            rng = np.random.default_rng(0)
            flat = backend.asarray(rng.normal(size=architecture.n_parameters).astype(np.float32))
            X, Y = (backend.asarray(rng.normal(size=(k, 900)).astype(np.float32)) for k in (3, variant.N))
            gradients = Gradients(architecture, backend.xp.empty_like(flat))
            engine.loss_and_gradients(Parameters(architecture, flat), X, Y, gradients)
            engine.forward(Parameters(architecture, flat), X)
            results.append(gradients.flat.get())
    kernel = "narrow_cluster" if variant.clustered else "narrow_step"
    tiles = variant.tiles(n)
    assert grids[kernel] == (tiles, step)
    assert grids["narrow_forward"] == (tiles, forward)
    np.testing.assert_allclose(results[0], results[1], rtol=0, atol=1e-3 * np.abs(results[0]).max())
