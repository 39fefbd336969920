"""Architecture: what a network is, as pure data. No arrays, no backend."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

from fusedmlp.checks import check_choice, check_flag
from fusedmlp.model.activations import HIDDEN_ACTIVATIONS
from fusedmlp.model.losses import loss_named

DTYPES = ("float32", "float64")


def _layer_sizes(value: Sequence[int]) -> tuple[int, ...]:
    try:
        sizes = tuple(operator.index(size) for size in value)
    except TypeError:
        raise ValueError(
            f"layer_sizes: expected a sequence of whole numbers [n1, n2, ..., nL]; got {value!r}"
        ) from None
    if len(sizes) < 2:
        raise ValueError(f"layer_sizes: expected at least an input and an output layer, [n1, ..., nL]; got {value!r}")
    if min(sizes) < 1:
        raise ValueError(f"layer_sizes: every layer needs at least 1 unit; got {value!r}")
    return sizes


@dataclass(frozen=True)
class Architecture:
    """A frozen description of a network.

    Parameters
    ----------
    layer_sizes : sequence of int
        [n1, n2, ..., nL], L >= 2: inputs, hidden units of each hidden layer, outputs.
    hidden_activation : {"sigmoid", "tanh", "relu", "identity"}
    loss : str
        A name that `losses.loss_named` knows. It fixes the output activation too.
    bias : bool
        False leaves every b out, as the second note does.
    dtype : {"float32", "float64"}

    Raises
    ------
    ValueError
        Where a value is not one of these, naming the argument.
    """

    layer_sizes: Sequence[int]
    hidden_activation: str = "sigmoid"
    loss: str = "binary_cross_entropy"
    bias: bool = True
    dtype: str = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layer_sizes", _layer_sizes(self.layer_sizes))
        object.__setattr__(
            self, "dtype", check_choice("dtype", str(getattr(self.dtype, "__name__", self.dtype)), DTYPES)
        )
        object.__setattr__(self, "bias", check_flag("bias", self.bias))
        check_choice("hidden_activation", self.hidden_activation, HIDDEN_ACTIVATIONS)
        object.__setattr__(self, "loss", loss_named(self.loss).name)
        if self.n_parameters * self.itemsize >= 2**48:
            raise ValueError(f"layer_sizes: {list(self.layer_sizes)} has {self.n_parameters:,} parameters: too many")
        if self.loss == "categorical_cross_entropy" and self.layer_sizes[-1] < 2:
            raise ValueError(
                "layer_sizes: categorical_cross_entropy needs at least 2 outputs (one per class); "
                f"got {self.layer_sizes[-1]}. For two classes in one output use loss='binary_cross_entropy'"
            )

    @property
    def n_inputs(self) -> int:
        """n1."""
        return self.layer_sizes[0]

    @property
    def n_outputs(self) -> int:
        """nL."""
        return self.layer_sizes[-1]

    @cached_property
    def weight_shapes(self) -> tuple[tuple[int, int], ...]:
        """(n_in, n_out) of W1, W2, ..., in order."""
        return tuple(zip(self.layer_sizes[:-1], self.layer_sizes[1:], strict=True))

    @cached_property
    def weight_ranges(self) -> tuple[tuple[int, int], ...]:
        """(start, end) of W1, W2, ... in the flat parameter vector; where there are biases, b1 begins at W1's end."""
        ends = list(accumulate((n_in + self.bias) * n_out for n_in, n_out in self.weight_shapes))
        starts = [0, *ends[:-1]]
        return tuple(
            (start, start + n_in * n_out) for start, (n_in, n_out) in zip(starts, self.weight_shapes, strict=True)
        )

    @cached_property
    def n_parameters(self) -> int:
        """The length of the flat parameter vector."""
        return sum((n_in + self.bias) * n_out for n_in, n_out in self.weight_shapes)

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return 4 if self.dtype == "float32" else 8

    def to_dict(self) -> dict[str, Any]:
        """The description as JSON-ready data; ``Architecture(**d)`` reads it back."""
        return {**asdict(self), "layer_sizes": list(self.layer_sizes)}
