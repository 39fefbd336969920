"""A scratch folder for arrays that are larger than memory. It is removed at the end, after an error and Ctrl-C too."""

from __future__ import annotations

import importlib
import mmap
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from fusedmlp.training.interrupts import terminations_raise

fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None

_PREFIX = "fusedmlp-rows-"
_LOCK, _UNLOCKED = "lock", "new-lock"
_SPARE_BYTES = 64 * 2**20
"""So much of a disk stays free."""


class Scratch:
    """Arrays in files of a new folder.

    Folders that killed processes have left beside it are removed.

    Parameters
    ----------
    parent : path, optional
        Where the folder is made; by default the system's temporary folder.
    argument : str
        What the user calls `parent`, for messages.

    Attributes
    ----------
    folder : Path

    Raises
    ------
    OSError
        The folder cannot be made.
    """

    def __init__(self, parent: str | os.PathLike[str] | None = None, argument: str = "--scratch") -> None:
        parent = Path(tempfile.gettempdir() if parent is None else parent)
        if not parent.is_dir():
            raise FileNotFoundError(f"{argument}: expected a folder; there is no folder {parent}")
        _remove_abandoned(parent)
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        self._argument = argument
        self._maps: list[mmap.mmap] = []
        self._file = open(self.folder / _UNLOCKED, "wb")  # noqa: SIM115 - it is open as long as the folder is used
        if _lock(self._file.fileno()):  # only now may others find it
            os.rename(self.folder / _UNLOCKED, self.folder / _LOCK)
        self.remove = weakref.finalize(self, _remove, self.folder, self._file)
        """Removes the folder; so does the end of the process, and that of this object."""

    def require(self, needed: int, what: str) -> None:
        """Raise an OSError if the folder's disk has not so many free bytes; `what` says what needs them."""
        free = shutil.disk_usage(self.folder).free
        if needed + _SPARE_BYTES > free:
            raise OSError(
                f"{self._argument}: {what} need {in_words(needed)} in {self.folder.parent}; expected that much free "
                f"space, got {in_words(free)} ({self._argument} names another folder)"
            )

    @contextmanager
    def writing(self, name: str, dtype: Any, shape: tuple[int, ...]) -> Iterator[ArrayWriter]:
        """Write an array to a new file from its first row to its last; it is all there at the end of the block."""
        with open(self.folder / f"{name}.npy", "xb") as file:
            writer = ArrayWriter(file, np.dtype(dtype), shape)
            yield writer
        writer.check_whole()

    def array(self, name: str) -> np.ndarray:
        """An array that was written, memory-mapped."""
        array: np.ndarray = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        base: Any = array.base
        if isinstance(base, mmap.mmap):
            self._maps.append(base)
        return array

    def release(self) -> None:
        """Let the pages that were read count as the process's no longer; they stay in the system's cache."""
        for each in self._maps:
            if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
                each.madvise(mmap.MADV_DONTNEED)


class ArrayWriter:
    """Writes the rows of an array to a ``.npy`` file, one block after the other."""

    def __init__(self, file: Any, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        self._file, self._dtype, self._shape, self.rows = file, dtype, shape, 0
        described = np.lib.format.dtype_to_descr(dtype)
        header = {"descr": described, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)

    def write(self, rows: np.ndarray) -> None:
        """Write the next rows."""
        if rows.shape[1:] != self._shape[1:]:
            raise ValueError(f"rows: expected the shape (rows, {self._shape[1:]}); got {rows.shape}")
        self._file.write(np.ascontiguousarray(rows, self._dtype).data)
        self.rows += len(rows)

    def check_whole(self) -> None:
        """Raise a RuntimeError if rows are missing."""
        if self.rows != self._shape[0]:
            raise RuntimeError(f"expected {self._shape[0]} rows; got {self.rows}")


@contextmanager
def scratch_folder(parent: str | os.PathLike[str] | None = None) -> Iterator[Scratch]:
    """A `Scratch` for the time of the block. SIGTERM becomes a TerminatedError, so that it ends the block too."""
    scratch = Scratch(parent)
    try:
        with terminations_raise():
            yield scratch
    finally:
        scratch.remove()


def _remove(folder: Path, lock: Any) -> None:
    lock.close()
    shutil.rmtree(folder, ignore_errors=True)


def _lock(file: int) -> bool:
    """Whether the lock on an open file could be had. The system releases it when the process ends."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders whose process is gone. What cannot be removed stays."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError), open(folder / _LOCK, "rb") as lock:
            if _lock(lock.fileno()):
                shutil.rmtree(folder, ignore_errors=True)


def in_words(n_bytes: float) -> str:
    """Bytes in a unit that suits them: "3.2 GB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes / 1e3:.1f} kB"
