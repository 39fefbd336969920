"""The mistakes of the second note that can be computed, as a table: docs/derivation.md, M2."""

from __future__ import annotations

import numpy as np
from notes_math import hadamard, product
from notes_mistakes import Mistake
from notes_networks import SecondNote, f, f_slope

n = SecondNote()
square = SecondNote(n_in=4, n_hidden=4, n_out=4, m=4)  # where the products of matrices exist as printed


def error(s: SecondNote) -> np.ndarray:
    return -(s.y - s.yhat)


def delta3(s: SecondNote) -> np.ndarray:
    return hadamard(error(s), f_slope(s.z3))


def loss(yhat: np.ndarray, y: np.ndarray) -> float:
    return 0.5 * float(((y - yhat) ** 2).sum())


def above_the_chord(J, one: np.ndarray, other: np.ndarray) -> float:
    """How far J lies above its chord half-way between two points: 0 for every pair where J is convex."""
    return max(0.0, J((one + other) / 2) - (J(one) + J(other)) / 2)


def loss_of_weights(weights: np.ndarray) -> float:
    """J of the network whose W1 and W2 lie one above the other in `weights` (W2 transposed), for its own outputs as
    targets: 0 at the weights of `square`."""
    W1, W2 = weights[:4], weights[4:].T
    return loss(f(product(f(product(square.X, W1)), W2)), square.yhat)


WEIGHTS = np.vstack([square.W1, square.W2.T])
RENUMBERED = WEIGHTS[:, [1, 2, 3, 0]]  # another order of the hidden units: the same network, so J = 0 again

SECOND_NOTE = [
    Mistake(
        "M2.1",
        "N2.8",
        truth=lambda: n.net.loss(n.X.T, n.y.T),
        printed=(lambda: sum(0.5 * (n.y[[i]] - n.yhat[[i]]) ** 2 for i in range(len(n.y))),),
        corrected=lambda: sum(0.5 * residual**2 for residual in (n.y - n.yhat).ravel()),
    ),
    Mistake(
        "M2.2",
        "N2.11",
        truth=lambda: np.einsum("ioih->ioh", n.partial("z3", "z2")),
        printed=(lambda: hadamard(np.tile(n.W2[:, 0], (len(n.X), 1)), f_slope(n.z2)),),
        corrected=lambda: np.einsum("ho,ih->ioh", n.W2, f_slope(n.z2)),
    ),
    Mistake(
        "M2.3",
        "N2.18",
        truth=lambda: 0.0,
        printed=(lambda: above_the_chord(loss_of_weights, WEIGHTS, RENUMBERED),),
        corrected=lambda: above_the_chord(lambda yhat: loss(yhat, n.y), n.yhat, 1 - n.yhat),
    ),
    *(
        Mistake(
            "M2.4",
            "N2.21",
            truth=lambda s=s: s.partial("J", "z3"),
            printed=(lambda s=s: product(error(s), f_slope(s.z3)),),
            corrected=lambda s=s: hadamard(error(s), f_slope(s.z3)),
        )
        for s in (n, square)
    ),
    *(
        Mistake(
            "M2.5",
            "N2.22",
            truth=lambda s=s: s.partial("J", "z2"),
            printed=(lambda s=s: product(delta3(s), s.W2.T, f_slope(s.z2)),),
            corrected=lambda s=s: hadamard(product(delta3(s), s.W2.T), f_slope(s.z2)),
        )
        for s in (n, square)
    ),
    *(
        Mistake(
            "M2.6",
            "N2.23",
            truth=lambda s=s: s.partial("J", "z2"),
            printed=(lambda s=s: product(error(s), f_slope(s.z3), s.W2.T, f_slope(s.z2)),),
            corrected=lambda s=s: hadamard(product(hadamard(error(s), f_slope(s.z3)), s.W2.T), f_slope(s.z2)),
        )
        for s in (n, square)
    ),
    Mistake(
        "M2.7",
        "N2.24",
        truth=lambda: n.partial("J", "W2"),
        printed=(lambda: np.einsum("io,iohp->iohp", error(n), n.partial("yhat", "W2")),),
        corrected=lambda: np.einsum("io,iohp->hp", error(n), n.partial("yhat", "W2")),
    ),
    *(
        Mistake(
            "M2.8",
            "N2.25",
            truth=lambda s=s: s.partial("J", "W2"),
            printed=(lambda s=s: product(hadamard(error(s), f_slope(s.z3)), s.a2),),
            corrected=lambda s=s: product(s.a2.T, hadamard(error(s), f_slope(s.z3))),
        )
        for s in (n, square)
    ),
    *(
        Mistake(
            "M2.9",
            "N2.28",
            truth=lambda W=W: n.partial("J", W),
            printed=(lambda W=W: np.einsum("iohp->hp", n.partial("z3", W)),),
            corrected=lambda W=W: np.einsum("io,iohp->hp", delta3(n), n.partial("z3", W)),
        )
        for W in ("W1", "W2")
    ),
]
