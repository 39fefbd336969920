"""Atomic writing: the old file or the new one, whole, whatever happens; and only where a file belongs."""

from __future__ import annotations

import errno
import os
import random
import socket
import stat
import subprocess
import sys
import time

import pytest

from fusedmlp.files import atomic
from fusedmlp.files.atomic import check_writable, write_atomically

pytestmark = pytest.mark.skipif(os.name != "posix", reason="devices, links, modes and signals of POSIX")
BOTH = pytest.mark.parametrize("function", [write_atomically, check_writable])


def names(folder):
    """The names in a folder, in order."""
    return sorted(path.name for path in folder.iterdir())


@BOTH
@pytest.mark.parametrize("kind", ["folder", "fifo", "socket", "character device"])
@pytest.mark.parametrize("linked", [False, True])
def test_only_regular_files_are_replaced(tmp_path, monkeypatch, function, kind, linked):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    path = tmp_path / "special"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("special")
    else:
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))  # a null device of our own
        except PermissionError:
            pytest.skip("devices can be made by root only")
    name = path
    if linked:
        name = tmp_path / "link"
        name.symlink_to(path)
    before = names(tmp_path), os.lstat(path)
    with pytest.raises(
        ValueError, match=rf"{name.name}: expected the name of a new file or of a regular one; got a {kind}"
    ):
        function(name)
    assert (names(tmp_path), os.lstat(path)) == before


@BOTH
def test_a_link_to_itself(tmp_path, function):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(ValueError, match="got a link that leads back to itself"):
        function(tmp_path / "a")
    assert names(tmp_path) == ["a", "b"]


def test_links_and_modes_are_kept(tmp_path):
    target, link, dangling = tmp_path / "target", tmp_path / "link", tmp_path / "dangling"
    write_atomically(target, b"old")
    target.chmod(0o600)
    link.symlink_to(target)
    dangling.symlink_to("new")
    write_atomically(link, b"new ", memoryview(b"content"))
    write_atomically(dangling, b"")
    assert link.is_symlink()
    assert dangling.is_symlink()
    assert target.read_bytes() == b"new content"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert names(tmp_path) == ["dangling", "link", "new", "target"]


def test_any_valid_name_works(tmp_path):
    for name in ("x" * 255, "é" * 127, "[a]*?", "a\nb"):
        check_writable(tmp_path / name)
        write_atomically(tmp_path / name, b"1")
        assert (tmp_path / name).read_bytes() == b"1"


@BOTH
@pytest.mark.parametrize(
    ("name", "error"),
    [("x" * 256, errno.ENAMETOOLONG), ("missing/file", errno.ENOENT), ("file/file", errno.ENOTDIR)],
)
def test_what_the_system_refuses_names_the_file(tmp_path, function, name, error):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=name) as caught:
        function(tmp_path / name)
    assert (caught.value.errno, caught.value.filename) == (error, str(tmp_path / name))
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["open", "write", "fsync", "chmod", "replace", "lstat"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT, KeyboardInterrupt])
def test_a_failing_call_leaves_the_old_file(tmp_path, monkeypatch, call, error):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*args, **kwargs):
        raise error if error is KeyboardInterrupt else OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, call, fail)
        with pytest.raises((OSError, KeyboardInterrupt)) as caught:
            write_atomically(path, b"new")
    if error is not KeyboardInterrupt:
        assert (caught.value.errno, caught.value.filename) == (error, str(path))
        assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_short_writes_are_continued(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic.os, "write", lambda file, data, write=os.write: write(file, data[:3]))
    write_atomically(tmp_path / "file", b"0123456789", b"", b"ab")
    assert (tmp_path / "file").read_bytes() == b"0123456789ab"


def test_a_disk_that_is_full(tmp_path):
    code = """
import resource, signal, sys
from fusedmlp.files.atomic import write_atomically
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
write_atomically(sys.argv[1], b"old")
try:
    write_atomically(sys.argv[1], bytes(10_000))
except OSError as error:
    print(error.filename)
"""
    path = tmp_path / "file"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout == f"{path}\n"
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


WRITER = """
import sys
from fusedmlp.files.atomic import write_atomically
print(flush=True)
for i in range(10**9):
    write_atomically(sys.argv[1], bytes([i % 256]) * 300_000)
"""


def test_killed_writers(tmp_path):
    """After each of 20 kills the file is whole, and at most one temporary file is left, which the next call removes."""
    path = tmp_path / "file"
    path.write_bytes(bytes(300_000))
    for seed in range(20):
        with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(0.01 + 0.02 * random.Random(seed).random())
            process.kill()
        assert len(names(tmp_path)) <= 2
        data = path.read_bytes()
        assert len(data) == 300_000
        assert len(set(data)) == 1
    write_atomically(path, b"last")
    assert names(tmp_path) == ["file"]


def test_temporary_files_of_killed_runs(tmp_path):
    path, other = tmp_path / "file", tmp_path / "other"
    with atomic._temporary(path) as (in_use, _), atomic._temporary(other) as (of_another, _):
        (tmp_path / f"{in_use.name[:10]}00000000.tmp").write_bytes(b"abandoned")
        (tmp_path / f"{in_use.name[:10]}11111111.tmp").symlink_to(other)
        os.mkfifo(tmp_path / f"{in_use.name[:10]}22222222.tmp")
        write_atomically(path, b"1")
        left = set(names(tmp_path))
        assert {in_use.name, of_another.name, "file"} <= left
        assert f"{in_use.name[:10]}00000000.tmp" not in left


def test_a_temporary_file_taken_for_an_abandoned_one_is_made_again(tmp_path, monkeypatch):
    taken = []

    def lock(file, real=atomic._lock):
        if not taken:
            (path,) = tmp_path.iterdir()
            path.unlink()
            taken.append(path)
        return real(file)

    monkeypatch.setattr(atomic, "_lock", lock)
    write_atomically(tmp_path / "file", b"1")
    assert taken
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may write everywhere")
def test_write_protection(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "file").chmod(0o400)
    with pytest.raises(PermissionError, match="file is write-protected"):
        check_writable(tmp_path / "file")
