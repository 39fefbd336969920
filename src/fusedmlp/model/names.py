"""The names that users write, as types: a type checker finds a typing error in one."""

from __future__ import annotations

from typing import Literal

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
PrecisionName = Literal["strict", "tf32"]
