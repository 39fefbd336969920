"""Which methods of estimators ran, where, and for how long: for listeners, and for one line per kind of slow path."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fusedmlp.engines.sparse import is_sparse
from fusedmlp.network import Network

_log = logging.getLogger("fusedmlp")
_said: set[str] = set()


@dataclass
class Record:
    """One call of a method.

    Attributes
    ----------
    estimator : str
        The class.
    method : str
    seconds : float
    backend, engine : str
        Empty where the call ended before there was a network.
    note : str
        What ran in another way than fused on a dense X, and why.
    """

    estimator: str
    method: str
    seconds: float = 0.0
    backend: str = ""
    engine: str = ""
    note: str = ""

    def ran_on(self, network: Network, X: Any) -> None:
        """Note the backend and the engine, and say once in a process what is not as fast as it could be."""
        self.backend, self.engine = network.backend.name, network.engine.kind
        a = network.architecture
        if self.engine == "composed" and self.backend != "numpy":
            self.note = f"{a.hidden_activation} with {a.loss} runs composed on {self.backend}: it has no fused kernel"
        if is_sparse(X) and not network.backend.takes_sparse:
            self.note = f"sparse X is made dense batch by batch on {self.backend}"
        if self.note:
            self.say(self.note)

    def say(self, note: str) -> None:
        """Keep a note, and log it as a warning if no call of this process has had it before."""
        self.note = note
        if note not in _said:
            _said.add(note)
            _log.warning("%s.%s: %s", self.estimator, self.method, note)


listeners: list[Callable[[Record], None]] = []
"""Called with the record of each call, when it is done."""


@contextmanager
def recorded(estimator: Any, method: str) -> Iterator[Record]:
    """A record of what happens inside; listeners get it at the end, also after an exception."""
    record = Record(type(estimator).__name__, method)
    start = time.perf_counter()
    try:
        yield record
    finally:
        record.seconds = time.perf_counter() - start
        for listener in listeners:
            listener(record)


def print_record(record: Record) -> None:
    """Print a record as a line on standard error."""
    where = f"{record.backend}, {record.engine}" if record.backend else "ended with an error"
    note = f" ({record.note})" if record.note else ""
    line = f"fusedmlp: {record.estimator}.{record.method}: {where}, {record.seconds:.3g} s{note}"
    print(line, file=sys.stderr)


class Profile:
    """Calls, seconds, backends and engines of each method; a listener."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str, str, str], list[float]] = {}

    def __call__(self, record: Record) -> None:
        key = f"{record.estimator}.{record.method}", record.backend, record.engine, record.note
        self._rows.setdefault(key, []).append(record.seconds)

    def print(self) -> None:
        """Print a table on standard error, the longest first."""
        from rich.console import Console
        from rich.table import Table

        table = Table("method", "calls", "seconds", "backend", "engine", "note", title="fusedmlp")
        for (method, *where), seconds in sorted(self._rows.items(), key=lambda row: -sum(row[1])):
            table.add_row(method, str(len(seconds)), f"{sum(seconds):.3f}", *where)
        Console(stderr=True).print(table)
