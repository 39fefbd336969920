"""Steps that were timed on an NVIDIA H200 (driver 580.159, CuPy 14.2): milliseconds, strict and with TF32.

Clusters of more than two blocks ran in two waves then, and hidden_layer.cu had two blocks a multiprocessor, unless a
row says something else. It did not copy samples ahead; deep networks had passes of their own for lower hidden layers.
"""

from __future__ import annotations

from typing import NamedTuple

from fusedmlp.backends.cupy.costs import Launches

M = 2**20
WAVES_OF_4, WAVES_OF_8 = Launches(ranges=32), Launches(ranges=16)  # 30 and 15 clusters run at a time
OLD_GRID = Launches(hidden_running=2, hidden_launched=4, as_measured=True)


class Row(NamedTuple):
    """A step that was timed; None where it was not."""

    path: str
    sizes: tuple[int, ...]
    m: int
    strict: float | None
    tf32: float | None
    launches: Launches = OLD_GRID
    batch: int | None = None
    dtype: str = "float32"
    described: tuple[str, str] = ("sigmoid", "binary_cross_entropy")


RELU, TANH = ("relu", "binary_cross_entropy"), ("tanh", "binary_cross_entropy")
SOFTMAX = ("sigmoid", "categorical_cross_entropy")
RELU_SOFTMAX = ("relu", "categorical_cross_entropy")

FULL_BATCH = [
    Row("middle", (784, 1024, 1), 65536, 5.14, 1.42),
    Row("narrow", (64, 1024, 1), M, 17.6, 8.61, WAVES_OF_4),
    Row("narrow", (16, 256, 1), 16 * M, 13.8, 8.14),
    Row("narrow", (128, 1024, 1), M, 39.6, 18.0, WAVES_OF_8),
    Row("narrow", (32, 512, 1), 4 * M, 11.1, 4.7, described=RELU),
    Row("narrow", (100, 64, 1), 8 * M, 18.0, 8.0, described=TANH),
    Row("narrow", (8, 32, 1), 16 * M, 8.0, 5.5),
    Row("narrow", (64, 256, 4), 2 * M, 5.5, 3.4, described=SOFTMAX),
    Row("middle", (200, 2000, 1), M // 4, 15.4, 7.28),
    Row("middle", (300, 100, 1), M, 4.7, 2.1),
    Row("middle", (784, 512, 512, 10), 65536, 6.5, 3.0, described=RELU_SOFTMAX),
    Row("middle", (28, 300, 300, 1), M, 22.6, 11.0, described=RELU),
    Row("narrow", (20, 100, 1), 2 * M, 3.4, None, dtype="float64"),
    Row("composed", (784, 1024, 1), 65536, 5.24, None),
    Row("composed", (64, 1024, 1), M, 20.3, None),
    Row("composed", (16, 256, 1), 16 * M, 78.1, None),
]

OTHER_GRIDS = [
    Row("narrow", (64, 1024, 1), M, 17.4, 8.46, WAVES_OF_4),
    Row("narrow", (64, 1024, 1), M, 9.34, 4.71, Launches(ranges=30)),
    Row("narrow", (64, 1024, 1), M, 9.70, None, Launches(ranges=29)),
    Row("narrow", (64, 1024, 1), M, 17.9, None, Launches(ranges=31)),
    Row("narrow", (128, 1024, 1), M // 2, 10.7, 4.97, Launches(ranges=15)),
    Row("narrow", (32, 512, 1), 2 * M, None, 2.5, described=RELU),
    *(
        Row("middle", sizes, m, None, milliseconds, Launches(blocks, 4, as_measured=True))
        for sizes, m, times in (
            ((784, 1024, 1), 65536, (1.459, 1.263, 1.318)),
            ((200, 2000, 1), M // 4, (7.25, 5.87, 5.42)),
            ((300, 100, 1), M, (2.14, 1.85, 1.85)),
            ((64, 1024, 1), M // 2, (4.57, 3.69, 3.48)),
        )
        for blocks, milliseconds in zip((2, 3, 4), times, strict=True)
    ),
]

# Which path is faster: pairs of middle and narrow. The samples of the last six pairs were not written down: they are
# those for which the narrow time is in proportion to that of the full-batch row, or of a network with as many flops.
PAIRS = [
    (Row("middle", sizes, m, *middle), Row("narrow", sizes, m, *narrow, waves))
    for sizes, m, middle, narrow, waves in (
        ((128, 1024, 1), M // 2, (9.2, 4.7), (19.8, 9.1), WAVES_OF_8),
        ((100, 64, 1), 4 * M, (4.9, 3.5), (9.0, 4.0), OLD_GRID),
        ((8, 32, 1), 8 * M, (3.2, 4.8), (4.0, 2.8), OLD_GRID),
        ((128, 128, 1), M, (2.5, 1.5), (2.6, 1.2), OLD_GRID),
        ((128, 256, 1), M, (4.8, 2.7), (5.1, 2.3), OLD_GRID),
        ((16, 256, 1), 4 * M, (10.5, None), (3.5, None), OLD_GRID),
        ((64, 256, 4), M, (4.1, None), (2.7, None), OLD_GRID),
        ((64, 128, 1), 2 * M, (3.5, None), (2.3, None), OLD_GRID),
        ((32, 256, 1), 2 * M, (5.8, None), (2.9, None), OLD_GRID),
        ((64, 512, 1), M, (6.7, None), (4.5, None), OLD_GRID),
    )
]

MINI_BATCH = [
    Row("narrow", (30, 64, 1), 569, 0.0185, 0.020, batch=32),
    Row("middle", (784, 128, 10), 60_000, 0.039, 0.037, batch=128, described=SOFTMAX),
    Row("middle", (784, 128, 10), 60_000, 0.085, 0.076, batch=1024, described=RELU_SOFTMAX),
    Row("middle", (54, 100, 7), 500_000, 0.039, 0.034, batch=200, described=RELU_SOFTMAX),
    Row("narrow", (13, 50, 1), 20_000, 0.0163, None, batch=64, described=("tanh", "squared_error")),
    Row("middle", (28, 300, 300, 1), 1_000_000, 0.279, 0.175, batch=4096, described=RELU),
    Row("middle", (784, 512, 512, 10), 60_000, 0.105, 0.086, batch=256, described=RELU_SOFTMAX),
    Row("narrow", (30, 64, 1), 569, 0.068, None, batch=569),
    Row("composed", (30, 64, 1), 569, 1.57, None, batch=32),
    Row("composed", (30, 64, 1), 569, 1.27, None, batch=569),
]

ROWS = [*FULL_BATCH, *OTHER_GRIDS, *(row for pair in PAIRS for row in pair), *MINI_BATCH]
