"""Threads that share a run: who joins, who works alone, and that they sleep, end and survive a fork."""

import ctypes
import os
import threading
import time

import numpy as np
import pytest

from processes import run_python

pytest.importorskip("numba")

from fusedmlp.backends.numba_cpu.machine.buffers import AlignedArray, address_of
from fusedmlp.backends.numba_cpu.machine.compilation import routine_address
from fusedmlp.backends.numba_cpu.machine.intrinsics import INTEGER, atomic_add, atomic_load, load, relax
from fusedmlp.backends.numba_cpu.machine.records import (
    LayerRecord,
    NetworkRecord,
    RunRecord,
    WorkerRecord,
    layer_at,
    network_at,
    run_at,
    worker_at,
    written,
)
from fusedmlp.backends.numba_cpu.machine.simd import store
from fusedmlp.backends.numba_cpu.workers import crew as crews

MOST_LOOKS = 200_000_000  # some seconds: a test that waits for nobody fails, and does not hang
LONG = 1e9


def meet(run, worker):
    """A run of [entered, awaited]: stay until so many have entered; a worker of [0] notes that it came."""
    atomic_add(run, 1)
    store(INTEGER + 1, worker)
    looks = 0
    while atomic_load(run) < load(INTEGER, run + 8) and looks < MOST_LOOKS:
        relax()
        looks += 1


@pytest.fixture(scope="module")
def meeting():
    return routine_address(meet, 2)


class Task:
    """A run for `meet`, with its workers."""

    def __init__(self, awaited, workers):
        self.run, self.notes, self.workers = (
            AlignedArray(2, "int64"),
            AlignedArray(workers, "int64"),
            AlignedArray(workers, "int64"),
        )
        self.run.numbers[1] = awaited
        self.workers.numbers[:] = self.notes.address + 8 * np.arange(workers)

    def share(self, crew, routine, nanoseconds=LONG):
        crew.share(routine, self.run.address, self.workers, len(self.notes.numbers), nanoseconds)
        return int(self.run.numbers[0])


def awake(crew):
    return int(crew._board.numbers[crews._AWAKE // 8])


@pytest.mark.parametrize("workers", [2, 4])
def test_helpers_join_as_workers_of_their_own(meeting, workers):
    crew = crews.Crew()
    for _ in range(20):
        task = Task(workers, workers)
        assert task.share(crew, meeting) == workers
        assert task.notes.numbers.tolist() == [1] * workers
    crew._dismiss()


def test_one_worker_wakes_nobody(meeting):
    crew = crews.Crew()
    assert Task(1, 1).share(crew, meeting) == 1
    assert not crew._helpers


def test_nobody_is_woken_for_a_single_short_run(meeting):
    crew = crews.Crew()
    assert Task(1, 2).share(crew, meeting, nanoseconds=1000) == 1
    assert not crew._helpers
    task = Task(2, 2)  # one after the other: now it is worth it
    assert task.share(crew, meeting, nanoseconds=1e5) == 2
    crew._dismiss()


def test_who_comes_second_works_alone(meeting):
    crew, first = crews.Crew(), Task(3, 2)  # stays until somebody else says that a third has come
    leader = threading.Thread(target=first.share, args=(crew, meeting))
    leader.start()
    while first.run.numbers[0] < 2:
        time.sleep(0.001)
    assert Task(1, 2).share(crew, meeting) == 1
    first.run.numbers[0] += 1
    leader.join(10)
    assert not leader.is_alive()
    assert Task(2, 2).share(crew, meeting) == 2  # and the board is free again
    crew._dismiss()


def test_helpers_sleep_when_there_is_nothing_to_do(meeting):
    crew = crews.Crew()
    Task(3, 3).share(crew, meeting)
    deadline = time.monotonic() + 10
    while awake(crew) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert awake(crew) == 0
    used = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - used < 0.15
    assert Task(3, 3).share(crew, meeting) == 3  # and they come again
    crew._dismiss()


def test_dismissed_helpers_end(meeting):
    crew = crews.Crew()
    Task(3, 3).share(crew, meeting)
    crew._dismiss()
    assert not any(helper.is_alive() for helper in crew._helpers)


THREE = os.environ | {"FUSEDMLP_NUM_THREADS": "3"}
STEPS = """
    import numpy as np
    from fusedmlp import Network
    X, Y = np.ones((20, 4000), np.float32), np.ones((1, 4000), np.float32)
    net = Network([20, 50, 1], backend="numba-cpu", random_state=0)
    for _ in range(50):
        net.loss_and_gradients(X, Y)
"""


def test_a_process_ends_while_helpers_are_awake():
    assert run_python(STEPS + "\n    print('last')", THREE) == "last"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_has_helpers_of_its_own():
    code = """
    import os, sys
    expected = net.loss(X, Y)
    child = os.fork()
    if child == 0:
        same = all(net.loss(X, Y) == expected for _ in range(50))
        os._exit(0 if same else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), net.loss(X, Y) == expected)
    """
    assert run_python(STEPS + code, THREE) == "0 True"


# Records and addresses ------------------------------------------------------------------------------------------------


def read_layer(out, record):
    it = layer_at(record)
    store(it.n_in, out)
    store(it.blocked, out + 8)


def read_network(out, record):
    it = network_at(record)
    store(it.layers, out)
    store(it.forward, out + 8)
    store(it.yielder, out + 16)


def read_run(out, record):
    it = run_at(record)
    store(it.network, out)
    store(it.pieces, out + 8)
    store(np.int64(it.alpha), out + 16)
    store(np.int64(it.scale), out + 24)
    it.scale = 1.5


def read_worker(out, record):
    it = worker_at(record)
    store(it.workspace, out)
    store(it.key, out + 8)
    it.key = 77


@pytest.mark.parametrize(
    ("kind", "read", "names"),
    [
        (LayerRecord, read_layer, ("n_in", "blocked")),
        (NetworkRecord, read_network, ("layers", "forward", "yielder")),
        (RunRecord, read_run, ("network", "pieces", "alpha", "scale")),
        (WorkerRecord, read_worker, ("workspace", "key")),
    ],
)
def test_compiled_code_reads_what_python_wrote(kind, read, names):
    record = kind(*range(100, 100 + len(kind._fields)))
    block, out = written(record, record), AlignedArray(8, "int64")
    routine = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(routine_address(read, 2))
    half = len(block.numbers) // 2
    routine(out.address, block.address + 8 * half)
    assert out.numbers[: len(names)].tolist() == [getattr(record, name) for name in names]
    if kind is RunRecord:
        assert block.numbers[half:].view(np.float64)[-1] == 1.5
    if kind is WorkerRecord:
        assert block.numbers[-1] == 77
    assert block.numbers[half - 1] != block.numbers[-1] or kind in (LayerRecord, NetworkRecord)


def test_blocks_start_at_cache_lines_and_grow():
    for dtype in ("float32", "float64", "int64"):
        for size in (1, 7, 1000):
            block = AlignedArray(size, dtype)
            assert block.address % 64 == 0
            assert block.address == block.numbers.ctypes.data
            assert block.numbers.dtype == dtype
            assert block.numbers.tolist() == [0] * size
    before = block.address
    assert block.with_room(900).address == before
    assert len(block.with_room(5000).numbers) == 5000
    assert block.address == block.numbers.ctypes.data


def test_addresses_are_those_of_the_arrays():
    x = np.zeros((6, 4), np.float32)
    for view in (x, x[1:], x.T, x[::-1, ::-2], np.zeros(0), np.broadcast_to(x[0], (3, 4))):
        assert address_of(view) == view.__array_interface__["data"][0]
