"""Mistakes planted in the kernels and in the host code: each is reported, whatever the numbers come out as.

A barrier that is missing, and memory that is read before anything wrote it.
"""

from __future__ import annotations

import ctypes
import re
from typing import NamedTuple

import numpy as np
import pytest
from harness import fake_cupy
from harness.emulator import compile_source
from harness.written_bytes import UnwrittenError
from test_narrow_step import Case

from fusedmlp import Network
from fusedmlp.backends.cupy import CupyBackend, kernel_sources
from fusedmlp.backends.cupy.narrow_step import Variant
from fusedmlp.backends.cupy.sums import sum_rows


def add_rows(backend):
    sum_rows(backend.launcher, fake_cupy.copied(np.ones((300, 70))), fake_cupy.allocate((70,), "float64"))


def network_step(*sizes):
    """A loss and its gradients: several rounds of every block, several sums of it."""

    def call(backend):
        rng = np.random.default_rng(0)
        net = Network(sizes, "tanh", "squared_error", dtype="float64", backend=backend, random_state=0)
        net.loss_and_gradients(rng.normal(size=(sizes[0], 600)), rng.normal(size=(sizes[-1], 600)))

    return call


def narrow(n, *variant):
    def call(backend):
        Case(backend, Variant(*variant), 9, n, 300, 1).loss_and_gradients()

    return call


def resident_training(*sizes, shared_bytes=None, sums=True, **more):
    """Batches of two tiles, the second one short; with `sums` over all threads, for the L2 term and for clipping."""
    options = {"alpha": 0.1, "clip_norm": 0.1, **more} if sums else more

    def call(backend):
        rng = np.random.default_rng(0)
        if shared_bytes is not None:
            backend.launcher.shared_bytes = lambda: shared_bytes
        X, Y = rng.normal(size=(sizes[0], 90)), rng.integers(0, 2, (sizes[-1], 90))
        net = Network(sizes, "tanh", backend=backend, random_state=0)
        net.fit(X, Y, epochs=2, batch_size=40, **options)

    return call


RESIDENT = resident_training(5, 20, 7, shared_bytes=34_000)
RESIDENT_CLUSTER = resident_training(4, 120, 3, shared_bytes=18_500)
ONE_TILE, TWO_TILES = narrow(60, 1, 2, 4, "float32"), narrow(200, 1, 2, 4, "float32")
CLUSTER = narrow(500, 1, 2, 8, "float32", True)


class Planted(NamedTuple):
    """A mistake: where, what text is replaced, which of its places, by what; and what runs that code."""

    file: str
    text: str
    place: int
    by: str
    call: object

    def __str__(self):
        return f"{self.file}: {self.text} {self.place}"

    def source(self, name, read=kernel_sources._read):
        """The text of a file with the mistake in it."""
        text = read(name)
        if name != self.file:
            return text
        begins = [found.start() for found in re.finditer(re.escape(self.text), text)]
        at = begins[self.place]
        return text[:at] + self.by + text[at + len(self.text) :]


def without(file, places, call, text="__syncthreads();"):
    return [Planted(file, text, place, "", call) for place in places]


MISTAKES = [
    *without("sum_rows.cu", [0], add_rows),
    *without("common.cuh", [0, 1], network_step(5, 20, 7)),
    Planted("common.cuh", "threadIdx.x == 0 ? sums[0] : 0", 0, "sums[0]", network_step(5, 20, 7)),
    *without("hidden_layer.cu", range(4), network_step(5, 20, 7)),
    *without("lower_layer.cu", [0], network_step(4, 9, 11, 3)),
    *without("resident_block.cuh", (*range(4), *range(5, 8), *range(9, 13)), RESIDENT),
    *without("resident_block.cuh", [4], resident_training(5, 20, 7, validation_fraction=0.5)),
    *without("resident_block.cuh", [8], resident_training(5, 20, 7, sums=False)),
    # With callbacks, nothing follows the last step of a launch but this.
    *without("resident_block.cuh", [13], resident_training(5, 20, 7, callbacks=[lambda training: None])),
    *without("resident_cluster.cu", range(2), RESIDENT_CLUSTER),
    *without("narrow_step.cu", range(1, 3), TWO_TILES),  # those of narrow_forward
    *without("narrow_step.cu", range(3, 6), ONE_TILE),
    *without("narrow_block.cuh", range(2), ONE_TILE, "__syncwarp();"),
    *without("narrow_block.cuh", range(2), narrow(60, 1, 2, 4, "tf32"), "__syncwarp();"),
    *without("narrow_cluster.cu", range(3), CLUSTER),
    *without("narrow_cluster.cu", [0], CLUSTER, "block.receive_outputs(count);"),
    Planted("narrow_cluster.cu", "parts + count % 2 * (", 0, "parts + count % 1 * (", CLUSTER),
]
SPARE = {"narrow_step.cu": {0}, "resident_block.cuh": {14}}
"""Barriers without which there is no race: the other two of narrow_forward order X and z of its tiles as well. Without
that of the resident kernel's plan, threads find no plan at all, which ends in other errors."""
BARRIERS = ("__syncthreads();", "__syncwarp();")


def test_every_barrier_has_its_mistake():
    """All barriers of the kernels are among those that are taken away, but for the spare ones."""
    for path in kernel_sources.folder().glob("*.cu*"):
        barriers = len(re.findall(r"__syncthreads\(\);", path.read_text(encoding="utf-8")))
        places = {x.place for x in MISTAKES if x.file == path.name and x.text == "__syncthreads();"}
        assert places | SPARE.get(path.name, set()) == set(range(barriers)), path.name


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_a_race_is_reported(cupy, monkeypatch, mistake):
    mistake.call(CupyBackend())
    (leave_out if mistake.text in BARRIERS and not mistake.by else replace)(cupy, monkeypatch, mistake)
    race = r"a race: thread \d+ (reads|writes) byte \d+ of shared memory, which "
    with pytest.raises(AssertionError, match=f"{race}|an announcement at an mbarrier that takes none"):
        mistake.call(CupyBackend())


def replace(cupy, monkeypatch, mistake):
    """Compile the text with the mistake in it."""

    class Module(cupy.RawModule):
        def get_function(self, name):
            """The one kernel alone, which compiles in a second."""
            kernel = compile_source(self._code, self.options).get_function(name, self.options)
            return fake_cupy.RawKernel(kernel, self.launches, self.device)

    monkeypatch.setattr(cupy, "RawModule", Module)
    monkeypatch.setattr(kernel_sources, "_read", mistake.source)


def leave_out(cupy, monkeypatch, mistake):
    """Let the emulator leave out a barrier, in the kernels as they are compiled for all tests."""
    marked, read = mistake._replace(by=MARK + mistake.text), kernel_sources._read
    lines = {}
    for file in kernel_sources.names():
        with monkeypatch.context() as patch:
            plain = kernel_sources.source(file)
            patch.setattr(kernel_sources, "_read", lambda name: marked.source(name, read))
            before, found, _ = kernel_sources.source(file).partition(MARK)
        if found:
            lines[plain] = before.count("\n") + 1

    class Module(cupy.RawModule):
        def get_function(self, name):
            function = super().get_function(name)
            if self._code in lines:
                site = ctypes.c_int.in_dll(function._kernel.library, "skipped_site")
                monkeypatch.setattr(site, "value", lines[self._code])
            return function

    monkeypatch.setattr(cupy, "RawModule", Module)


MARK = "/* the barrier that is left out */"


# Memory that nobody has written ---------------------------------------------------------------------------------------

KERNELS = """
extern "C" __global__ void shifted(const float* x, const float* y, float* out, int shift) {
    out[threadIdx.x] = x[threadIdx.x] + y[threadIdx.x + shift];
}
"""


@pytest.fixture
def shifted(compiler, cupy):
    return cupy.RawModule(code=KERNELS).get_function("shifted")


def test_a_kernel_that_reads_what_nobody_wrote(shifted):
    """By the argument and the place in it, though two arguments lie in one allocation."""
    memory = fake_cupy.allocate((100,), np.float32)
    memory[:40] = np.float32(1)
    out = fake_cupy.allocate((32,), np.float32)
    shifted((1,), (32,), (memory, memory[8:], out, np.int32(0)))
    assert (out.get() == 2).all()
    with pytest.raises(
        AssertionError, match="shifted: a read of memory that nobody has written: argument 1, at byte 128"
    ):
        shifted((1,), (32,), (memory, memory[8:], out, np.int32(1)))
    memory[40] = np.float32(1)
    shifted((1,), (32,), (memory, memory[8:], out, np.int32(1)))


def test_it_is_reported_when_the_graph_runs(shifted, cupy):
    """A launch that is captured reads when its graph does."""
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        x, out = (fake_cupy.allocate((32,), np.float32) for _ in range(2))
        stream.begin_capture()
        shifted((1,), (32,), (x, x, out, np.int32(0)))
        graph = stream.end_capture()
    with pytest.raises(AssertionError, match="argument 1, at byte 0"):
        graph.launch(stream)
    stream.synchronize()


OPERATIONS = {
    "get": lambda x: x.get(),
    "ufunc": lambda x: x + x,
    "sum": lambda x: x.sum(),
    "copy": lambda x: x[:, ::2].copy(),
    "assignment": lambda x: x.__setitem__(0, x[1]),
    "take": lambda x: x.take(fake_cupy.copied(np.array([1])), axis=0),
    "product": lambda x: CupyBackend().matmul(x, fake_cupy.copied(np.ones((6, 2)))),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_other_operations_that_read_what_nobody_wrote(cupy, name):
    x = fake_cupy.allocate((4, 6), np.float64)
    x[:2] = 1.0
    x[2, 1:] = 1.0
    OPERATIONS[name](x[:2])
    with pytest.raises((UnwrittenError, RuntimeError)):
        OPERATIONS[name](x[1:3] if name != "assignment" else x[2:])


@pytest.mark.usefixtures("never_resident")
@pytest.mark.parametrize("sizes", [(5, 20, 1), (3, 140, 3), (5, 20, 7), (4, 9, 11, 3)])
def test_a_captured_step_before_its_first_batch(emulated, monkeypatch, sizes):
    """Batch buffers that nothing filled before the first pass, as that once was."""
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(sizes[0], 100)), rng.integers(0, 2, (sizes[-1], 100))
    net = Network(sizes, "tanh", backend=emulated, random_state=0)
    net.fit(X, Y, epochs=1, batch_size=16)
    monkeypatch.setattr(fake_cupy.ndarray, "fill", lambda x, value: None)
    with pytest.raises((AssertionError, RuntimeError)) as caught:
        net.fit(X, Y, epochs=1, batch_size=16)
    narrow = len(sizes) == 3 and sizes[-1] <= 4  # which takes small batches, whatever takes the whole
    assert ("a read of memory that nobody has written: argument 0, at byte 0" in str(caught.value)) is narrow
