"""Streams, events and pinned memory of the fake CuPy: they detect work that is not in order.

Kernels run at once. Copies of a stream made with ``non_blocking=True`` are put off: they run when something waits for
them, and not before. So who forgets to wait computes with NaN, or with numbers of another time.

Launches into a stream that is captured are kept for its graph, and run when that is launched.

Besides, each stream has a vector clock: for every stream, the number of its operations that are known to be done
before whatever comes next here. Events and synchronising carry clocks from one to another. Memory remembers who touched
it, and who touches it next without coming after that in order is in a race, although nothing ran at the same time.
"""

from __future__ import annotations

import itertools
import threading
import weakref

import numpy as np

_lock = threading.RLock()
_blocking: weakref.WeakSet = weakref.WeakSet()
_thread = threading.local()
_ids = itertools.count()
violations: list[str] = []
"""Races that could not be raised where they happened: memory given back while somebody used it.

A test puts a list of its own here: what it leaves to the garbage collector is no mistake of the test that runs then.
"""


class RaceError(AssertionError):
    """Two streams used the same memory, and neither waited for the other."""


def _host_clock():
    """What the calling thread has waited for."""
    if not hasattr(_thread, "clock"):
        _thread.clock = {}
    return _thread.clock


def _join(clock, other):
    for stream, count in other.items():
        if clock.get(stream, 0) < count:
            clock[stream] = count


class Stream:
    """cupy.cuda.Stream; `synchronized` counts how often it was waited for."""

    def __init__(self, null=False, non_blocking=False, ptds=False):
        self.synchronized = 0
        self.id = next(_ids)
        self.ptr = 0 if null else id(self)
        self._captured = None
        self.clock = {}
        self._later = [] if non_blocking else None
        if not non_blocking:
            with _lock:
                _blocking.add(self)
        self._done = 0  # operations that have run
        self._enqueued = 0

    def __eq__(self, other):
        return isinstance(other, Stream) and self.ptr == other.ptr

    def __hash__(self):
        return self.ptr

    def begin_capture(self):
        assert self.ptr, "the null stream cannot be captured"
        assert self._captured is None, "a capture in a capture"
        self._captured = []

    def is_capturing(self):
        return self._captured is not None

    def end_capture(self):
        graph, self._captured = Graph(self._captured), None
        return graph

    def submit(self, work):
        """Do a launch's work, or keep it for the graph that is captured."""
        if self._captured is None:
            work()
        else:
            self._captured.append(work)

    def enqueue(self, action=None):
        """An operation of this stream."""
        with _lock:
            _join(self.clock, _host_clock())
            # The null stream and the blocking ones wait for each other.
            for other in list(_blocking) if self.ptr == 0 else [null] if self._later is None else []:
                _join(self.clock, other.clock)
            self.clock[self.id] = self.clock.get(self.id, 0) + 1
            self._enqueued += 1
            if self._later is None:
                self._done = self._enqueued
                if action is not None:
                    action()
            else:
                self._later.append(action)

    def run_until(self, position):
        """Run what was put off, up to an operation."""
        with _lock:
            while self._done < position:
                action = self._later.pop(0)
                self._done += 1
                if action is not None:
                    action()

    def wait_event(self, event):
        with _lock:
            if event.stream is None:
                return
            _join(self.clock, event.clock)
            stream, position = event.stream, event.position
            self.enqueue(lambda: stream.run_until(position))

    def synchronize(self):
        with _lock:
            self.synchronized += 1
            self.run_until(self._enqueued)
            _join(_host_clock(), self.clock)

    def __enter__(self):
        _thread.current = [*getattr(_thread, "current", []), self]
        return self

    def __exit__(self, *exc):
        _thread.current.pop()


null = Stream(null=True)


def current():
    """cupy.cuda.get_current_stream."""
    return (getattr(_thread, "current", None) or [null])[-1]


def read():
    """The host reads memory of the GPU, and waits for the current stream to get there."""
    with _lock:
        _join(_host_clock(), current().clock)


class Graph:
    """cupy.cuda.Graph; `launched` counts how often."""

    def __init__(self, work):
        self._work = work
        self.launched = 0

    def launch(self, stream=None):
        self.launched += 1
        with stream or current():
            for work in self._work:
                work()


class Event:
    """cupy.cuda.Event."""

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.stream = None

    def record(self, stream=None):
        with _lock:
            self.stream = stream or current()
            self.stream.enqueue()
            self.clock, self.position = dict(self.stream.clock), self.stream._enqueued

    def synchronize(self):
        with _lock:
            if self.stream is not None:
                self.stream.run_until(self.position)
                _join(_host_clock(), self.clock)


class Users:
    """Who used a piece of memory, and when."""

    def __init__(self):
        self._last = {}
        self._violations = violations
        self._owner = _host_clock()  # the garbage collector of any thread may give the memory back

    def touch(self, stream, action=None):
        """An operation of a stream on this memory; RaceError if it does not come after all those of other streams."""
        with _lock:
            stream.enqueue(action)
            unordered = self._not_before(stream.clock)
            self._last[stream.id] = stream.clock[stream.id]
        if unordered:
            raise RaceError(f"stream {stream.id} uses memory that streams {unordered} are still at work on")

    def leave(self):
        """The memory goes back to the pool, where the current stream may take it again."""
        with _lock:
            clock = dict(current().clock)
            _join(clock, _host_clock())
            _join(clock, self._owner)
            unordered = self._not_before(clock)
        if unordered:
            self._violations.append(f"memory was given back while streams {unordered} were still at work on it")

    def _not_before(self, clock):
        return [stream for stream, count in self._last.items() if clock.get(stream, 0) < count]


_pinned: weakref.WeakSet = weakref.WeakSet()


class PinnedMemory(np.ndarray):
    """cupy.cuda.PinnedMemoryPointer: what np.frombuffer takes."""


def alloc_pinned_memory(n_bytes):
    """cupy.cuda.alloc_pinned_memory."""
    memory = np.full(n_bytes, 0xFF, np.uint8).view(PinnedMemory)
    with _lock:
        _pinned.add(_Range(memory))
    return memory


class _Range:
    """Addresses, for as long as their memory lives."""

    def __init__(self, memory):
        self.start, self.stop = memory.ctypes.data, memory.ctypes.data + memory.size
        memory.range = self


def is_pinned(address, n_bytes):
    """Whether these bytes of main memory are pinned."""
    with _lock:
        return any(range_.start <= address and address + n_bytes <= range_.stop for range_ in list(_pinned))


def copy_from_host_async(users, source, n_bytes, stream, copy):
    """MemoryPointer.copy_from_host_async; `source` has to be pinned: else the copy would not be asynchronous."""
    assert is_pinned(source, n_bytes), "an asynchronous copy from memory that is not pinned"
    users.touch(stream, copy)
