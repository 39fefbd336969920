"""Devices of the fake CuPy."""

from __future__ import annotations

import threading


class DeviceOfThread(threading.local):
    """The current device of a thread."""

    number = 0


class Device:
    """cupy.cuda.Device."""

    current: DeviceOfThread
    compute_capability = "90"

    def __init__(self, number):
        self._number = number

    def __enter__(self):
        self._before, self.current.number = self.current.number, self._number

    def __exit__(self, *exc):
        self.current.number = self._before
