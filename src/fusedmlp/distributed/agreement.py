"""What all processes of a training have to have in common, and the ValueError where they have not."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusedmlp.distributed.peers import Peers
from fusedmlp.distributed.sharded_samples import as_matrix
from fusedmlp.engines.sparse import is_sparse
from fusedmlp.training.setup import FitArguments, TrainableNetwork

_LOOKED_AT = 64
"""Samples, and inputs of each, that a fingerprint looks at."""
_APART = ("callbacks", "gradient_phase", "state", "random_state")
"""Arguments that may differ, or that are compared in another way."""


def agree(peers: Peers, values: Mapping[str, object]) -> None:
    """See that all processes have the same values.

    Parameters
    ----------
    peers : Peers
    values : mapping
        The same names in all processes.

    Raises
    ------
    ValueError
        In all processes: it names the first value that differs, and who has which.
    """
    texts = {name: text_of(value) for name, value in values.items()}
    digest = hashlib.blake2b(repr(texts).encode(), digest_size=7).digest()
    if peers.same(int.from_bytes(digest, "big")):
        return
    everyones = peers.everyones(texts)
    for name in texts:
        ranks: dict[str, list[int]] = {}
        for rank, theirs in enumerate(everyones):
            ranks.setdefault(theirs.get(name, "nothing"), []).append(rank)
        if len(ranks) > 1:
            got = "; ".join(f"{text} on {_ranks(numbers)}" for text, numbers in ranks.items())
            raise peers.shared(ValueError(f"{name}: expected the same on all ranks; got {got}"))


def _ranks(numbers: list[int]) -> str:
    """ "rank 3", "ranks 0, 2-5"."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1][1:] = [number]
        else:
            spans.append([number])
    text = ", ".join("-".join(map(str, span)) for span in spans)
    return f"rank{'s' if len(numbers) > 1 else ''} {text}"


def text_of(value: object) -> str:
    """A value as text that is the same in every process."""
    if isinstance(value, np.random.Generator | np.random.RandomState):
        return type(value).__name__  # all go on with that of rank 0
    if isinstance(value, np.ndarray | np.generic):
        return repr(value.tolist())
    text = repr(value)
    if " at 0x" in text:  # a function's address, or an object's, differs
        kind = value if hasattr(value, "__qualname__") else type(value)
        text = f"{kind.__module__}.{kind.__qualname__}"
    return text


def arguments_of(network: TrainableNetwork, given: FitArguments, shards: bool) -> dict[str, object]:
    """What `fit` was given, by the names that its caller knows; the samples are apart."""
    a = network.architecture
    values: dict[str, object] = {
        "shards": shards,
        "layer_sizes": list(a.layer_sizes),
        "hidden_activation": a.hidden_activation,
        "loss": a.loss,
        "bias": a.bias,
        "dtype": a.dtype,
        "backend": network.backend.name,
    }
    values |= {name: getattr(given, name) for name in given.__dataclass_fields__ if name not in _APART}
    values["random_state"] = given.random_state
    state = given.state
    values["state"] = None if state is None else f"a TrainingState after {state.epoch} epochs and {state.steps} steps"
    return values


def agree_on_samples(peers: Peers, data: tuple[Any, Any, Any], prefix: str, shards: bool) -> None:
    """See that the processes have samples that go together.

    Raises
    ------
    ValueError
        In all processes: some have weights and some have not, X has other numbers of inputs, or, without `shards`,
        other samples.

    Warns
    -----
    UserWarning
        On rank 0: with `shards`, all processes have the same samples.
    """
    X, Y, weight = peers.together(lambda: tuple(map(as_matrix, data)))
    agree(peers, {f"{prefix}sample_weight": "None" if weight is None else "weights"})
    if shards:
        agree(peers, {f"inputs of {prefix}X": X.shape[0] if X.ndim == 2 else X.shape})
        same = peers.same(_fingerprint(X, Y, weight)) and X.shape[-1] > 0
        if same and peers.size > 1 and peers.rank == 0:
            warnings.warn(
                f"{prefix}X: all ranks have the same samples, so that each counts {peers.size} times; shards=False "
                "gives each rank its slice of them",
                stacklevel=5,
            )
        return
    agree(peers, {f"shape of {prefix}X": tuple(X.shape)})
    if not peers.same(_fingerprint(X, Y, weight)):
        raise peers.shared(
            ValueError(
                f"{prefix}X: expected the same samples on all ranks, of which each takes its slice; the ranks gave "
                "others. Pass shards=True where each rank has samples of its own"
            )
        )


def agree_on_rows(peers: Peers, X: Any, y: Any, sample_weight: Any) -> None:
    """See that all processes have the same rows.

    Raises
    ------
    ValueError
        In all processes.
    """
    arrays = peers.together(lambda: [as_matrix(x) for x in (X, y, sample_weight)])
    agree(peers, {f"shape of {name}": getattr(x, "shape", None) for name, x in zip(("X", "y"), arrays, strict=False)})
    if not peers.same(_fingerprint(*arrays)):
        raise peers.shared(ValueError("X: expected the same X, y and sample_weight on all ranks"))


def agree_on_numbers(peers: Peers, name: str, arrays: Sequence[Any]) -> None:
    """See that all processes have the same arrays, by their shapes and some of their numbers.

    Raises
    ------
    ValueError
        In all processes: it names the argument that the arrays come from.
    """
    if not peers.same(peers.together(lambda: _fingerprint(*map(as_matrix, arrays)))):
        raise peers.shared(ValueError(f"{name}: expected the same numbers on all ranks; the ranks gave others"))


def _fingerprint(*arrays: Any) -> int:
    """A number below 2**56 that some numbers of each array decide."""
    code = hashlib.blake2b(digest_size=7)
    for x in arrays:
        if x is None:
            continue
        some = x
        if is_sparse(x):
            some = x.tocsc().data
        for axis, size in enumerate(some.shape):
            some = some[(slice(None),) * axis + (slice(None, None, max(1, size // _LOOKED_AT)),)]
        some = some.get() if hasattr(some, "get") else some
        numbers = np.ascontiguousarray(some)
        bits = repr(numbers.tolist()).encode() if numbers.dtype.hasobject else numbers.tobytes()
        code.update(repr((x.shape, str(x.dtype))).encode() + bits)
    return int.from_bytes(code.digest(), "big")
