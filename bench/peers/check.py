"""Whether a library's result is right: the reference in float64, the errors that are allowed, the verdict."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from bench import exact
from bench.measure import WrongResultError
from bench.peers import registry
from bench.peers.cases import ADAM, Case
from bench.peers.peer import names
from bench.peers.problem import draw
from bench.peers.results import OURS_FIRST

TOLERANCE = {
    # (kind of device, task): the largest error of our fused engine and of the others, relative to the largest number
    # of each part of the result
    ("cpu", "step"): (1e-5, 1e-4),
    ("cpu", "forward"): (1e-5, 1e-5),
    ("cuda", "step"): (1e-4, 1e-3),
    # The change of all parameters by the first steps of an epoch, in the Euclidean norm: float32 gives 1e-5.
    ("cpu", "epoch"): (1e-4, 1e-3),
    ("cuda", "epoch"): (1e-3, 1e-3),
}
LOSS_TOLERANCE = {("cpu", "step"): 1e-5, ("cpu", "epoch"): 1e-4, ("cuda", "step"): 1e-4, ("cuda", "epoch"): 1e-4}
"""The largest relative error of J. On a CPU our fused engine is allowed a tenth of it."""
WHOLE_EPOCH_LOSS_TOLERANCE = 2e-3
"""The largest relative error of J of a whole epoch, in which relu's rounding errors have grown: 4e-4 at most."""
TF32_TOLERANCE = {"step": 1e-2, "epoch": 0.25}
"""The largest errors with TF32. Adam divides by the size of the gradient: the change of a parameter whose gradient is
smaller than TF32's rounding may have any sign. On a CPU, float32 with operands of products rounded to TF32 is off by up
to 0.12 in the first steps at 784-512-512-10, and by up to 0.08 at the other sizes."""
TF32_LOSS_TOLERANCE = 1e-3
KINK_FACTOR = 5
"""With relu, steps with TF32 and strict epochs may be off by so many times as much: a Z near 0 whose sign is decided by
rounding changes the gradient of its unit. On a CPU TF32 is off by 0.013 at 784-512-512-10 and m = 4,096. The samples
of a strict step are chosen so that there is no such Z."""
MANY_SAMPLES, MANY_SAMPLES_TOLERANCE = 500_000, 1e-2
"""From so many samples on, the others' gradients may be off by this, and ours on a GPU by a tenth of it.

torch and jax add up dW2 term by term in float32. At 2-64-1 and m = 1,000,000 one unit is nearly the same for all
samples, each addition is rounded the same way, and their dW2 is off by 0.0034. A float32 sum in a loop gives that
number too.
"""
FLOAT64_TOLERANCE = 1e-9
"""The largest error of a step in float64."""


class Right(NamedTuple):
    """The right results of a case, in float64.

    Attributes
    ----------
    common : dict
        The result of `expected`, for `Case.checked`.
    own : dict
        The same with epsilon where the libraries with ``corrected_epsilon`` add it.
    J : float
        The loss of the whole epoch; 0 for another task.
    """

    common: dict[str, np.ndarray]
    own: dict[str, np.ndarray]
    J: float = 0.0

    @classmethod
    def of(cls, case: Case, xp: Any) -> Right:
        """Compute it in arrays of `xp`."""
        common = expected(case.checked, xp)
        if case.task != "epoch":
            return cls(common, common)
        J = common["J"] if case.checked == case else expected(case, xp)["J"]
        return cls(common, expected(case.checked, xp, corrected_epsilon=True), float(J))


def expected(case: Case, xp: Any, corrected_epsilon: bool = False) -> dict[str, np.ndarray]:
    """The right result: of a step J, dW1, db1, ...; of an epoch J and the parameters' change; of a prediction A."""
    problem = draw(case, xp)
    X, Y, what = problem.X, problem.Y, (case.hidden_activation, case.loss)
    if case.task == "epoch":
        J, change = exact.epoch_of_adam(problem.layers(), X, Y, *what, problem.batches(), ADAM, corrected_epsilon)
        return {"J": np.array(J), "change": change}
    layers = [xp.asarray(x) for x in problem.layers()]
    if case.task == "forward":
        return {"A": exact.forward(layers, X, *what)}
    J, gradients = exact.loss_and_gradients(layers, X, Y, *what)
    return {"J": np.array(J), **{f"d{name}": g for name, g in zip(names(case), gradients, strict=True)}}


def errors_of(result: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> dict[str, float]:
    """The relative error of each part; infinity where a part is missing, of another shape, or not finite."""
    errors = {}
    for name, wanted in right.items():
        got = result.get(name)
        if got is None or got.shape != wanted.shape or not np.isfinite(got).all():
            errors[name] = float("inf")
            continue
        difference, size = np.ravel(got - wanted).astype(np.float64), np.ravel(wanted)
        norm = np.linalg.norm if name == "change" else (lambda x: np.max(np.abs(x)))
        errors[name] = float(norm(difference) / norm(size))
    return errors


def tolerance(case: Case, kind: str, ours: bool, part: str) -> float:
    """The error that is allowed in a part of the result."""
    if case.dtype == "float64" and case.task == "step":
        return FLOAT64_TOLERANCE
    kink = KINK_FACTOR if case.hidden_activation == "relu" else 1
    if case.precision == "medium":
        if part == "J":
            return TF32_LOSS_TOLERANCE
        return TF32_TOLERANCE[case.task] * (kink if case.task == "step" else 1)
    if part == "J":
        return LOSS_TOLERANCE[kind, case.task] / (10 if ours and kind == "cpu" else 1)
    if case.task == "step" and case.m >= MANY_SAMPLES and (kind == "cuda" or not ours):
        return MANY_SAMPLES_TOLERANCE / (10 if ours else 1)
    return TOLERANCE[kind, case.task][0 if ours else 1] * (kink if case.task == "epoch" else 1)


def check(case: Case, kind: str, peer: str, errors: dict[str, float]) -> None:
    """Compare the errors with what is allowed.

    Raises
    ------
    WrongResultError
    """
    for part, error in errors.items():
        allowed = tolerance(case, kind, peer == OURS_FIRST, part)
        if not error <= allowed:
            raise WrongResultError(f"{part}: error {error:.2g} of the largest value; expected at most {allowed:g}")


def check_whole_epoch(result: dict[str, np.ndarray], right: Right) -> None:
    """Compare the loss of a whole epoch, of which `compare` has seen the first steps; all parameters are finite.

    Raises
    ------
    WrongResultError
    """
    error = abs(float(result["J"]) / right.J - 1)
    if not (error <= WHOLE_EPOCH_LOSS_TOLERANCE and np.isfinite(result["change"]).all()):
        raise WrongResultError(
            f"J of the whole epoch: error {error:.2g}; expected at most {WHOLE_EPOCH_LOSS_TOLERANCE:g}, and finite "
            "parameters"
        )


def compare(case: Case, kind: str, peer: str, result: dict[str, np.ndarray], right: Right) -> tuple[Any, str]:
    """Compare a library's result of `Case.checked` with float64.

    A library that adds Adam's epsilon in another place is compared with float64 by its own formula: where a gradient is
    as small as epsilon, the two formulas differ by far more than rounding.

    Returns
    -------
    errors : dict
        By part, against the common reference.
    note : str
        Where the result is right by the library's own formula and not by the common one: both errors, and the reason.

    Raises
    ------
    WrongResultError
    """
    errors = errors_of(result, right.common)
    if not (case.task == "epoch" and registry.PEERS[peer].corrected_epsilon):
        check(case, kind, peer, errors)
        return errors, ""
    own = errors_of(result, right.own)
    check(case, kind, peer, own)
    if errors["change"] <= tolerance(case, kind, peer == OURS_FIRST, "change"):
        return errors, ""
    return errors, (
        f"differs by its arithmetic: its Adam adds epsilon to √(v / (1 - β₂ᵗ)), the others' to √v; against float64 "
        f"with epsilon there its error is {own['change']:.2g}, against the common reference {errors['change']:.2g}"
    )
