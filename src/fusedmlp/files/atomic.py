"""Writing files atomically: at every instant a file has its old content or its new content, whole.

The content goes into a temporary file in the same folder, ``.HASH-RANDOM.tmp``, which is flushed to the disk and then
renamed over the file; HASH stands for the file's name. A process that is killed in between leaves its temporary file
behind. The next call for the same file removes it. A temporary file that a running process writes is left alone: its
writer holds a lock on it, which the system releases when the process ends.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

# On Windows there is no fcntl; there an open file cannot be removed, and needs no lock.
fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None

Buffer = bytes | bytearray | memoryview

_KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFLNK: "link that leads back to itself",
}
_MOST_AT_ONCE = 2**26
"""Bytes of one system call: an interrupt is answered between two of them."""


def write_atomically(path: str | os.PathLike[str], *parts: Buffer) -> None:
    """Write `parts` to the file `path`; see `write_parts_atomically`."""
    write_parts_atomically(path, parts)


def write_parts_atomically(path: str | os.PathLike[str], parts: Iterable[Buffer]) -> None:
    """Write `parts`, one after the other as they come, to the file `path`.

    The file is a new one or replaces a regular file, whose permissions it keeps. A symbolic link stays, and the file it
    leads to is replaced. If anything fails, an interrupt included, the old file is unchanged and the temporary file is
    removed; only if the last step fails, flushing the folder, is the new file there already.

    Parameters
    ----------
    path : str or path
    parts : iterable of bytes, bytearray or memoryview
        If it raises an error, that is one of the things that fail.

    Raises
    ------
    ValueError
        `path` is a folder, a device, a fifo or a socket.
    OSError
        The system refuses. The error's ``filename`` is `path`.
    """
    with _errors_name(path):
        target = _target(path)
        _remove_abandoned(target)
        with _open_folder(target) as flush_folder:
            with _temporary(target) as (temporary, file):
                if target.exists():
                    os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
                for part in parts:
                    _write(file.fileno(), part)
                os.fsync(file.fileno())
                if fcntl is None:  # Windows renames closed files only
                    file.close()
                os.replace(temporary, target)
            flush_folder()


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise now what `write_atomically` would raise for `path` later; a full disk cannot be foreseen.

    A temporary file is made and removed again; the file itself is not touched.

    Raises
    ------
    ValueError, OSError
        As `write_atomically`; also PermissionError if the file is write-protected.
    """
    with _errors_name(path):
        target = _target(path)
        with _open_folder(target), _temporary(target):
            pass
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, "the file is write-protected")


@contextlib.contextmanager
def _errors_name(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let errors of the system name the file that the caller named, not a temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def _target(path: str | os.PathLike[str]) -> Path:
    """The file that `path` leads to, which need not exist; a ValueError if it is anything but a regular file."""
    target = Path(os.path.realpath(path))
    try:
        kind = stat.S_IFMT(os.lstat(target).st_mode)
    except FileNotFoundError:
        return target
    if kind != stat.S_IFREG:
        raise ValueError(
            f"{os.fspath(path)}: expected the name of a new file or of a regular one; "
            f"got a {_KINDS.get(kind, 'special file')}"
        )
    return target


@contextlib.contextmanager
def _open_folder(target: Path) -> Iterator[Callable[[], None]]:
    """Open the folder of `target`, and give a function that flushes it to the disk. On Windows it does nothing."""
    if os.name != "posix":
        yield lambda: None
        return
    folder = os.open(target.parent, os.O_RDONLY)

    def flush() -> None:
        try:
            os.fsync(folder)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system without this operation
                raise

    try:
        yield flush
    finally:
        os.close(folder)


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[tuple[Path, FileIO]]:
    """Give a new, locked temporary file for `target`. At the end it is closed, and removed if it was not renamed."""
    path, file = _new_temporary(target)
    try:
        with file:
            yield path, file
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _new_temporary(target: Path) -> tuple[Path, FileIO]:
    while True:
        path = target.with_name(f"{_prefix(target)}{os.urandom(4).hex()}.tmp")
        try:
            file = FileIO(path, "xb")
        except FileExistsError:
            continue
        # Between the two calls another process may have taken the file for an abandoned one.
        if _lock(file.fileno()) is not False and os.fstat(file.fileno()).st_nlink:
            return path, file
        file.close()


def _prefix(target: Path) -> str:
    """Short, so that a temporary name is valid wherever the file's own name is."""
    return f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:8]}-"


def _lock(file: int) -> bool | None:
    """Whether the lock on an open file could be had; None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def _remove_abandoned(target: Path) -> None:
    """Remove the temporary files for `target` that no process holds open. What cannot be removed stays."""
    with contextlib.suppress(OSError):
        for path in target.parent.glob(f"{_prefix(target)}????????.tmp"):
            with contextlib.suppress(OSError):
                if fcntl is None:
                    path.unlink()
                    continue
                file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    if _lock(file):
                        path.unlink()
                finally:
                    os.close(file)


def _write(file: int, part: Buffer) -> None:
    """Write all of `part`; the system may take less at a time."""
    rest = memoryview(part).cast("B")
    while len(rest):
        rest = rest[os.write(file, rest[:_MOST_AT_ONCE]) :]
