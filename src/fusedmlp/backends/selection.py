"""Which backend runs: argument > ``use_backend`` > FUSEDMLP_BACKEND > default; and at which precision.

This module is the only reader of FUSEDMLP_BACKEND and FUSEDMLP_PRECISION. It reads them when a backend is resolved,
never at import.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
import weakref
from contextvars import ContextVar, Token
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from fusedmlp.backends.base import PRECISIONS, Backend, check_precision
from fusedmlp.errors import BackendUnavailableError

ENVIRONMENT_VARIABLE = "FUSEDMLP_BACKEND"
PRECISION_VARIABLE = "FUSEDMLP_PRECISION"

DEFAULT = "numba-cpu"
AUTO_ORDER = ("cupy", "numba-cpu", "numpy")

REGISTRY: dict[str, str | type[Backend]] = {
    "numpy": "fusedmlp.backends.numpy_backend:NumpyBackend",
    "numba-cpu": "fusedmlp.backends.numba_cpu:NumbaCpuBackend",
    "cupy": "fusedmlp.backends.cupy:CupyBackend",
}
"""Name -> "module:class", or the class. Others come by `register_backend` and by entry points."""

ENTRY_POINTS = "fusedmlp.backends"
"""The group of entry points by which an installed package brings a backend: its name, and module:class."""


class _ProcessChoice(NamedTuple):
    """One `use_backend` call: the last of them holds for the process, unless its `with` block is entered."""

    spec: str | None
    selection: weakref.ref[_Selection]


_log = logging.getLogger("fusedmlp")
_lock = threading.RLock()
_instances: dict[str, Backend] = {}
_entry_points_read: list[bool] = []
_process_choices: list[_ProcessChoice] = []
_context_choice: ContextVar[str | None] = ContextVar("fusedmlp_backend", default=None)


def register_backend(name: str, backend: str | type[Backend]) -> None:
    """Make a backend known by a name, for FUSEDMLP_BACKEND and every ``backend`` argument.

    Parameters
    ----------
    name : str
        Not empty, without commas, and none of a backend that is there; "auto" is taken.
    backend : type or str
        A subclass of `Backend`, or "module:class", which is imported when it is first asked for.

    Raises
    ------
    ValueError
        The name or the class will not do.
    """
    if not isinstance(name, str) or not name or name != name.strip() or "," in name or name == "auto":
        raise ValueError(f"name: expected a name without commas, not 'auto'; got {name!r}")
    if not (isinstance(backend, str) and backend.count(":") == 1):
        if not (isinstance(backend, type) and issubclass(backend, Backend)):
            raise ValueError(f"backend: expected a subclass of Backend, or 'module:class'; got {backend!r}")
        if backend.name != name:
            raise ValueError(f"name: expected the name of the class, {backend.name!r}; got {name!r}")
    with _lock:
        if name in registry():
            raise ValueError(f"name: there is a backend {name!r} already")
        REGISTRY[name] = backend


def registry() -> dict[str, str | type[Backend]]:
    """All backends that are known: this package's, those of installed packages, and registered ones."""
    with _lock:
        if not _entry_points_read:
            for point in entry_points(group=ENTRY_POINTS):
                REGISTRY.setdefault(point.name, point.value)
            _entry_points_read.append(True)
        return REGISTRY


def is_registered(backend: Backend) -> bool:
    """Whether a backend of this class is known by its name."""
    return backend.name in registry() and type(backend) is backend_class(backend.name)


def backend_class(name: str) -> type[Backend]:
    """The class registered under `name`; importing this package's needs nothing but the core dependencies."""
    registered = registry()[name]
    if not isinstance(registered, str):
        return registered
    module, _, attribute = registered.partition(":")
    return getattr(importlib.import_module(module), attribute)


def unavailable_reason(name: str) -> str | None:
    """Why this machine cannot run the backend `name`, or None where it can."""
    with _lock:
        return None if name in _instances else backend_class(name).unavailable_reason()


def available_backends() -> list[str]:
    """The names of the backends that this machine can run, in the order of the registry."""
    return [name for name in registry() if unavailable_reason(name) is None]


def parse(spec: object, source: str = "backend") -> list[str]:
    """The names of a specification, "auto" written out; ValueError where one is unknown."""
    if not isinstance(spec, str):
        raise ValueError(f"{source}: expected the name of a backend or a Backend; got {spec!r}")
    names: list[str] = []
    for part in (part.strip() for part in spec.split(",")):
        if part != "auto" and part not in registry():
            raise ValueError(
                f"{source}: unknown backend {part!r} in {spec!r}; expected one of {', '.join(registry())}, auto, "
                "or several in order of preference, separated by commas"
            )
        names += [name for name in (AUTO_ORDER if part == "auto" else (part,)) if name not in names]
    return names


def specification(name: str | None = None) -> tuple[str, str]:
    """(what was asked for, by whom): the first of argument, `use_backend`, environment and default that is set."""
    here = _context_choice.get()
    process = _process_choices[-1].spec if _process_choices and here is None else None
    for spec, source in (
        (name, "backend"),
        (here, "use_backend"),
        (process, "use_backend"),
        (os.environ.get(ENVIRONMENT_VARIABLE, "").strip(), ENVIRONMENT_VARIABLE),
    ):
        if spec is not None and spec != "":
            return spec, source
    return DEFAULT, "default"


def instance_of(name: str) -> Backend:
    """The object of a backend that can run here, by its own name."""
    with _lock:
        if name not in _instances:
            _instances[name] = backend_class(name)()
        return _instances[name]


def get_backend(name: str | Backend | None = None) -> Backend:
    """The backend to run on.

    Parameters
    ----------
    name : str or Backend, optional
        "numpy", "numba-cpu", "cupy", "auto" (the first available of cupy, numba-cpu, numpy), or several names in order
        of preference, separated by commas. None or "": what `use_backend` set, else the environment variable
        FUSEDMLP_BACKEND, else "numba-cpu". A Backend is returned as it is.

    Returns
    -------
    Backend
        One object per name and process.

    Raises
    ------
    ValueError
        A name is unknown.
    BackendUnavailableError
        None of the named backends can run here; the message says why, and which pip command mends it.
    """
    if isinstance(name, Backend):
        return name
    spec, source = specification(name)
    names = parse(spec, source)
    reasons = {}
    for candidate in names:
        reason = unavailable_reason(candidate)
        if reason is None:
            _log.info("backend %s (%s=%s)", candidate, source, spec)
            return instance_of(candidate)
        reasons[candidate] = reason
    if len(reasons) == 1:
        raise BackendUnavailableError(*reasons.popitem())
    raise BackendUnavailableError(spec, "; ".join(f"{name}: {reason}" for name, reason in reasons.items()))


def resolve_precision(precision: str | None = None) -> str:
    """The precision of products to allow.

    Parameters
    ----------
    precision : {"strict", "high", "medium"}, optional
        "tf32" is another name of "medium". None: the environment variable FUSEDMLP_PRECISION; where that is empty or
        not set, "strict".

    Returns
    -------
    {"strict", "high", "medium"}

    Raises
    ------
    ValueError
        It is none of these; the message says whether the argument or the variable.
    """
    if precision is not None:
        return check_precision("precision", precision)
    setting = os.environ.get(PRECISION_VARIABLE, "").strip() or PRECISIONS[0]
    return check_precision(PRECISION_VARIABLE, setting)


class _Selection:
    """What `use_backend` returns: entering it turns the process-wide choice into one for the block alone."""

    def __init__(self, spec: str | None) -> None:
        self._spec = spec
        self._token: Token[str | None] | None = None
        with _lock:
            # Of the choices nobody can enter any more only the last still counts.
            settled = [choice for choice in _process_choices if choice.selection() is None][-1:]
            pending = [choice for choice in _process_choices if choice.selection() is not None]
            _process_choices[:] = [*settled, *pending, _ProcessChoice(spec, weakref.ref(self))]

    def __enter__(self) -> Backend:
        with _lock:
            _process_choices[:] = [choice for choice in _process_choices if choice.selection() is not self]
        # "" says: in this block no choice, whatever the process has; None would say: nothing said here.
        self._token = _context_choice.set(self._spec or "")
        return get_backend()

    def __exit__(self, *exc: Any) -> None:
        if self._token is not None:
            _context_choice.reset(self._token)
            self._token = None


def use_backend(name: str | None) -> _Selection:
    """Choose the backend for networks made from now on.

    As a statement, ``use_backend("numpy")`` sets it for the process. As a context manager,
    ``with use_backend("cupy") as backend:`` sets it for the block, in this thread (or asynchronous task) only.
    ``use_backend(None)`` goes back to the environment variable and the default.

    Raises
    ------
    ValueError, BackendUnavailableError
        As `get_backend`; the choice then stays as it was.
    """
    spec = name or None
    if spec is not None:
        get_backend(spec)
    return _Selection(spec)
