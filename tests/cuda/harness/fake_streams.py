"""Streams, graphs and devices of the fake CuPy."""

from __future__ import annotations

import threading


class Stream:
    """cupy.cuda.Stream; counts how often it was waited for. Work is done at once, or kept for a graph."""

    current: threading.local  # of the fake CuPy it belongs to: the streams entered, the null stream first

    def __init__(self, null=False, non_blocking=False):
        self.ptr = 0 if null else id(self)
        self.synchronized = 0
        self._captured = None

    def __eq__(self, other):
        return isinstance(other, Stream) and self.ptr == other.ptr

    def __hash__(self):
        return self.ptr

    def __enter__(self):
        self.current.stack.append(self)
        return self

    def __exit__(self, *exc):
        self.current.stack.pop()

    def synchronize(self):
        self.synchronized += 1

    def begin_capture(self):
        assert self.ptr, "the null stream cannot be captured"
        self._captured = []

    def is_capturing(self):
        return self._captured is not None

    def end_capture(self):
        graph, self._captured = Graph(self._captured), None
        return graph

    def submit(self, work):
        """Do a function's work, or keep it for the graph that is captured."""
        if self._captured is None:
            work()
        else:
            self._captured.append(work)


class Graph:
    """cupy.cuda.Graph."""

    def __init__(self, work):
        self._work = work

    def launch(self, stream=None):
        for work in self._work:
            work()


class StreamsOfThread(threading.local):
    """The streams that a thread has entered."""

    def __init__(self, null):
        self.stack = [null]


class DeviceOfThread(threading.local):
    """The current device of a thread."""

    number = 0


class Device:
    """cupy.cuda.Device."""

    current: DeviceOfThread

    def __init__(self, number):
        self._number = number

    def __enter__(self):
        self._before, self.current.number = self.current.number, self._number

    def __exit__(self, *exc):
        self.current.number = self._before
