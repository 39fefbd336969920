"""What users write, as types: a type checker finds a typing error in a name, and what is no array."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from numpy.typing import ArrayLike


class HasShape(Protocol):
    """An array of another library's, such as CuPy's, or a sparse matrix of SciPy's."""

    @property
    def shape(self) -> Any:
        """Its axes."""


ArrayInput = ArrayLike | HasShape

ActivationName = Literal[
    "sigmoid",
    "tanh",
    "relu",
    "identity",
    "leaky_relu",
    "elu",
    "selu",
    "softplus",
    "gelu",
    "silu",
    "mish",
    "softsign",
]
OptimizerName = Literal["sgd", "momentum", "nesterov", "adam", "adamw"]
ScheduleName = Literal["constant", "step", "exponential", "inverse-scaling", "cosine"]
DtypeName = Literal["float32", "float64"]
PrecisionName = Literal["strict", "high", "medium", "tf32"]
