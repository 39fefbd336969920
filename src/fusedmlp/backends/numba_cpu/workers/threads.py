"""Threads for compiled kernels: a plain pool, safe for several Python threads at once and after a fork.

Numba's own threading layers are not used: one aborts when two Python threads enter it at once, another after a fork.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

from fusedmlp.checks import check_count

ENVIRONMENT_VARIABLES = ("FUSEDMLP_NUM_THREADS", "OMP_NUM_THREADS")

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_count: int | None = None


def usable_cores() -> int:
    """The cores that this process may run on: its affinity, and no more than its cgroups allow it, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """How many CPUs the control groups of this process allow it (a container's limit), or None for no limit.

    Parameters
    ----------
    root : Path
        Of the file system that has ``proc/self/cgroup`` and ``sys/fs/cgroup``.
    """
    mounted = root / "sys" / "fs" / "cgroup"
    quotas = []
    for line in _text(root / "proc" / "self" / "cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        names = controllers.split(",")
        if controllers and "cpu" not in names:
            continue
        top = mounted / controllers if (mounted / controllers).is_dir() else mounted / "cpu"
        group = (top if controllers else mounted) / path.strip("/")
        for folder in (group, *group.parents):
            if folder == mounted.parent:
                break
            quotas.append(_quota(folder))
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(folder: Path) -> float | None:
    """The limit of one control group, in version 2's file or version 1's."""
    words = _text(folder / "cpu.max").split() or [
        _text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")
    ]
    try:
        quota, period = (int(word) for word in words[:2])
    except ValueError:  # "max", or no such file
        return None
    return quota / period if quota > 0 and period > 0 else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def thread_count() -> int:
    """Threads to use: FUSEDMLP_NUM_THREADS, else OMP_NUM_THREADS but no more than the usable cores, else those.

    Read once, when it is first needed in a process.

    Raises
    ------
    ValueError
        A variable does not hold a whole number >= 1.
    """
    global _count
    if _count is None:
        own, omp = (os.environ.get(variable, "").strip() for variable in ENVIRONMENT_VARIABLES)
        if own:
            _count = check_count(ENVIRONMENT_VARIABLES[0], _whole_number(own))
        elif omp:  # OpenMP allows a list, one number a nesting level
            _count = min(check_count(ENVIRONMENT_VARIABLES[1], _whole_number(omp.split(",")[0])), usable_cores())
        else:
            _count = usable_cores()
    return _count


def use_at_most(count: int) -> None:
    """Use no more threads than this from now on, as other processes have the other cores; a variable says more."""
    global _count
    if not any(os.environ.get(variable, "").strip() for variable in ENVIRONMENT_VARIABLES):
        _count = min(thread_count(), count)


def _whole_number(text: str) -> Any:
    return int(text) if text.isdecimal() else text


def reset() -> None:
    """Forget the pool and the thread count: a forked child has the object but not the threads."""
    global _pool, _count, _lock
    _pool, _count, _lock = None, None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=reset)


def _executor() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            # The calling thread works too.
            _pool = ThreadPoolExecutor(thread_count() - 1, thread_name_prefix="fusedmlp")
        return _pool


def run(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run the tasks side by side, the first in the calling thread; results in order. Tasks must not call `run`."""
    if len(tasks) == 1:
        return [tasks[0]()]
    pool = _executor()
    futures = [pool.submit(task) for task in tasks[1:]]
    try:
        first = tasks[0]()
    finally:
        # No task may outlive the arrays it works on, whatever happened here.
        others = [(future.exception(), future) for future in futures]
    for error, _ in others:
        if error is not None:
            raise error
    return [first, *(future.result() for _, future in others)]


def split(n: int, smallest: int) -> list[tuple[int, int]]:
    """(start, stop) of nearly equal parts of n: one per thread, or fewer so that none is below `smallest`."""
    parts = max(1, min(thread_count(), n // max(1, smallest)))
    bounds = [n * part // parts for part in range(parts + 1)]
    return list(pairwise(bounds))
