"""The time of single operations on a GPU, from their bytes and flops and the rates of the card.

The constants explain the steps that were timed on an NVIDIA H200 (driver 580.159, CuPy 14.2) and that
`tests/cuda/harness/measured_steps.py` holds. They were fitted to all of those at once; `tests/cuda/test_costs.py` fails
where a time is off by more than a quarter.
"""

from __future__ import annotations

from typing import NamedTuple

from fusedmlp.backends.cupy.cards import Card
from fusedmlp.backends.cupy.hidden_layer import blocks_at_a_time, samples_of, shape_of, tiles_of, width_of
from fusedmlp.backends.cupy.launch import THREADS
from fusedmlp.backends.cupy.lower_layer import samples_at_a_time
from fusedmlp.backends.cupy.lower_layer import shape_of as lower_layer_shape
from fusedmlp.backends.cupy.lower_layer import width_of as lower_layer_width
from fusedmlp.backends.cupy.narrow_step import SAMPLES, Variant

LAUNCH = 2.7e-6
"""Seconds that a kernel takes besides its work: in a graph, or where the launches are ahead of the GPU."""

PYTHON_OPERATION = 35e-6
"""Seconds that it takes to start an operation from Python, by composed mini-batch steps of 30-64-1."""

EPOCH = 55e-6
"""Seconds of an epoch of captured steps besides its steps: order and rate go to the GPU, the loss comes back."""

PASS = 0.88
"""Share of a copy's bandwidth that a kernel reaches which reads and writes large matrices: `activate` 88 %,
`fused_backward` 87 %, each measured by itself."""

REDUCTION = 0.37
"""The same for cuBLAS's products with a vector and for CuPy's sums over samples, by composed steps."""

PRODUCTS = {"float32": (0.86, 32, 0), "float64": (0.86, 32, 0), "tf32": (0.65, 128, 115)}
"""Products by cuBLAS: the share of the card's rate; the least side of the tiles that the result is cut into, 128 at
most; the depth that takes as long as the beginning and the end of a tile. float64 was not measured."""

NOT_OVERLAPPED = 0.5
"""The part of a product's arithmetic or transfers, whichever is shorter, that does not overlap with the other."""

LOWER_BLOCKS = 2
"""Blocks of ``lower_layer.cu`` that a multiprocessor runs at least: the driver says how many run on a card."""

PART = 64
"""The depth of the parts that a small result is cut into, so that every multiprocessor has one."""

ROUND = 4.0e-6
"""Seconds of a round of ``hidden_layer.cu`` besides its bytes, before it copied samples ahead: a load of Z, two
barriers, the output layer. With two blocks a multiprocessor it then reached a third of the bandwidth; the profiler
said 31 %."""

HIDDEN = {1: 0.7, 4: 0.7, 16: 0.33}
"""Share of a copy's bandwidth that ``hidden_layer.cu`` is taken to reach now, by the outputs that it is compiled for.
The bytes under way allow 0.8, and with 16 outputs the instructions a third (at the top of the source). Not measured: a
path that was is not left for one that promises a little more."""

ROWS = 0.67e-6
"""Seconds that 8 rows take in ``sum_rows.cu``, however short they are: a load from memory."""

LOSS_OF_A_SAMPLE = 0.2e-6
"""Seconds that a thread of `finish` (``mini_batch.cu``) takes for one output of one sample, in double."""

SHARED_WORD = {"float32": 0.8, "float64": 0.8, "tf32": 1.4, "tf32x3": 1.4}
"""Cycles for each 32 words that the products of narrow networks read from shared memory. Below 1: lanes of a strict
product read the same words. Above 1: the loads of a TF32 product conflict in banks, 1.4-way by the profiler. Those
of 3xTF32 are the same loads."""

SCHEDULERS = 4
"""Instructions that a multiprocessor issues a cycle."""

ELEMENT = 1.8
"""How many times as long the flops of a hidden unit and a sample, besides those of the two products, take as
multiplications and additions would: exponentials and divisions are among them."""

OUTPUT_CYCLES = 690
"""Cycles that 32 samples take for each output: every warp computes the output layer, between two barriers."""

ALONE = 1.34
"""How many times as long a tile takes where a multiprocessor has one block of a narrow kernel: while that block waits,
nothing else runs."""

CLUSTERS = 120 / 132
"""Share of the multiprocessors that clusters of more than two blocks can use: of an H200's 132, the driver says, 30
clusters of 4 blocks or 15 of 8 at a time."""


class Operation(NamedTuple):
    """Launches that belong together: the bytes that they move, their flops, the seconds that the GPU works on them."""

    name: str
    bytes: int
    flops: int
    seconds: float
    launches: int = 1


class Launches(NamedTuple):
    """How many blocks run, where it is not as the kernels are launched now: as a kernel was when it was measured."""

    hidden_running: int | None = None
    """Blocks of ``hidden_layer.cu`` that a multiprocessor runs at a time."""
    hidden_launched: int | None = None
    """Blocks of it in a grid, per multiprocessor."""
    ranges: int | None = None
    """Ranges of samples of a narrow network: clusters, or blocks where there is one tile of units."""
    as_measured: bool = False
    """Whether ``hidden_layer.cu`` copies nothing ahead, and lower hidden layers have passes of their own."""


NOW = Launches()


def pass_over(card: Card, name: str, n_bytes: int, flops: int, share: float = PASS, launches: int = 1) -> Operation:
    """A kernel that the bytes bound."""
    return Operation(name, n_bytes, flops, n_bytes / (share * card.copy), launches)


def product(card: Card, n: int, m: int, depth: int, arithmetic: str) -> Operation:
    """A product by cuBLAS: (n, depth) times (depth, m)."""
    item = 8 if arithmetic == "float64" else 4
    n_bytes, flops = item * (n * depth + depth * m + n * m), 2 * n * m * depth
    if 1 in (n, m):
        return pass_over(card, "product", n_bytes, flops, REDUCTION)
    share, least, ends = PRODUCTS[arithmetic]
    tall, wide = (min(128, max(least, 1 << (size - 1).bit_length())) for size in (n, m))
    tiles = -(-n // tall) * -(-m // wide)
    worked = 2 * tiles * tall * wide * (depth + ends)
    parts = tiles * -(-depth // PART)
    waiting = max(1.0, card.multiprocessors / parts)
    computing, moving = worked * waiting / (share * card.product_rate(arithmetic)), n_bytes / card.copy
    seconds = max(computing, moving) + NOT_OVERLAPPED * min(computing, moving)
    return Operation("product", n_bytes, flops, seconds)


def sum_rows(card: Card, rows: int, n: int, item: int, ranges: int = 1) -> Operation:
    """``sum_rows.cu``: the sums of `ranges` ranges of rows of n numbers."""
    n_bytes = item * n * (rows + ranges)
    at_a_time = max(1, ranges * -(-n // 32) // (8 * card.multiprocessors))  # blocks that a multiprocessor runs in turn
    seconds = ROWS * -(-rows // ranges // 8) * at_a_time + n_bytes / card.copy
    return Operation("sum_rows", n_bytes, rows * n, seconds)


def losses(card: Card, m: int, n_out: int, item: int) -> list[Operation]:
    """The sum of the losses, in double, from the logits."""
    blocks = min(4 * card.multiprocessors, -(-m // 256))
    n_bytes, flops = item * 2 * n_out * m + 16 * blocks, 40 * n_out * m
    return [
        Operation("losses", n_bytes, flops, n_bytes / card.copy + flops / card.float64),
        sum_rows(card, blocks, 2, 8),
    ]


# hidden_layer.cu -----------------------------------------------------------------------------------------------------


def hidden_layer(
    card: Card, n: int, n_out: int, m: int, dtype: str, bias: bool, launches: Launches = NOW
) -> list[Operation]:
    """Everything between the two products of the last hidden layer of n units, and the sums of its blocks."""
    item = 8 if dtype == "float64" else 4
    tiles, length = tiles_of(n, n_out, dtype), n * n_out + bias * (n + n_out)
    width, shape = width_of(n_out), shape_of(n, n_out, dtype, bias, 2)
    at_a_time = launches.hidden_running or blocks_at_a_time(n_out, dtype, packed=width <= 4)

    def most(of_a_multiprocessor: int) -> int:
        return max(1, card.multiprocessors * of_a_multiprocessor // tiles)

    if not launches.as_measured:
        samples = samples_of(m, shape, width, most(launches.hidden_launched or at_a_time))
    else:
        samples = {1: 4, 4: 2, 16: 1}[width]
    rounds = -(-m // (THREADS // shape.team * samples))

    def one_pass(numbers: int, flops: int) -> Operation:
        # A block's beginning and end, where it reads W2 and adds up its sums, take as long as a round.
        in_turn = -(-rounds // min(most(at_a_time), rounds)) if launches.as_measured else 1
        share = 1.0 if launches.as_measured else HIDDEN[width]
        seconds = (1 + in_turn) * ROUND + item * numbers / (share * card.copy)
        return Operation("hidden_layer", item * numbers, flops, seconds)

    operations = []
    if tiles > 1:
        parts = tiles * n_out * m
        operations += [
            one_pass(n * m + length + parts, (2 * n_out + 5) * n * m),
            sum_rows(card, tiles, n_out * m, item),
        ]
    launched = min(most(launches.hidden_launched or at_a_time), rounds)
    numbers = 2 * n * m + 2 * n_out * m + length + launched * length
    operations.append(one_pass(numbers, (6 * n_out + 10) * n * m))
    if launched > 1:
        operations.append(sum_rows(card, launched, length, item))
    return operations


def lower_layer(
    card: Card, n: int, n_above: int, m: int, dtype: str, bias: bool, launches: Launches = NOW
) -> list[Operation]:
    """dZ of a lower hidden layer of n units over its A, and db: ``lower_layer.cu`` and the sums of its blocks."""
    item = 8 if dtype == "float64" else 4
    width = lower_layer_width(n_above) or 0
    shape = lower_layer_shape(n, item, packed=True)
    rounds = -(-m // (shape.over * samples_at_a_time(width)))
    launched = min(max(1, card.multiprocessors * (launches.hidden_running or LOWER_BLOCKS) // shape.across), rounds)
    numbers = (2 * n + n_above) * m + n * n_above if width else 3 * n * m
    numbers += launched * n if bias else 0
    operations = [pass_over(card, "lower_layer", item * numbers, (2 * width + 4) * n * m)]
    if bias and launched > 1:
        operations.append(sum_rows(card, launched, n, item))
    return operations


# narrow_step.cu and narrow_cluster.cu --------------------------------------------------------------------------------


def words_of_a_multiplication(arithmetic: str, rows: int, columns: int) -> float:
    """Words that a lane reads from shared memory for each of its rows x columns multiplications and additions."""
    if arithmetic in ("tf32", "tf32x3"):
        return (2 * rows + columns) / (8 * rows * columns)
    return (2 if arithmetic == "float64" else 1) * (rows + columns) / (rows * columns)


def multiplications_of_a_cycle(card: Card, arithmetic: str) -> float:
    """Multiplications and additions of a multiprocessor."""
    if arithmetic == "tf32x3":
        return card.mma_rate / (2 * 3)
    return card.product_rate(arithmetic) / (2 * card.multiprocessors * card.clock)


def split_slots(rows: int, columns: int) -> int:
    """Instructions of a warp for 8 steps of the depth of a product in 3xTF32, by a count.

    A thread has rows x columns numbers of the result; it loads 2 rows + columns operands and splits each by 4
    instructions. A result of four numbers takes three products on tensor cores and four additions. The loop has about 8
    besides. The machine code has as many, but for a tenth (`tests/cuda/test_sass.py`); none of it was timed.
    """
    operands = 2 * rows + columns
    return 3 * rows * columns // 4 + rows * columns + 5 * operands + 8


def tile_cycles(card: Card, variant: Variant, n_in: int, n_out: int, work: str) -> float:
    """Cycles that a multiprocessor works on 32 samples and the units of one block.

    Parameters
    ----------
    card : Card
    variant : Variant
    n_in, n_out : int
    work : {"step", "forward"}
        Gradients, or logits alone.
    """
    N, R, C, arithmetic, _ = variant
    units, depth, M = variant.units, -(-n_in // 8) * 8, SAMPLES // 8
    depth_of_dW1 = 0 if work == "forward" else 8 * R
    # Multiplications and additions of Z and of dW1, and the rows that a thread has of each.
    parts = [(SAMPLES * units * depth, M), (SAMPLES * units * depth_of_dW1, R)]
    products = max(
        SHARED_WORD[arithmetic] / 32 * sum(n * words_of_a_multiplication(arithmetic, rows, C) for n, rows in parts),
        sum(n for n, _ in parts) / multiplications_of_a_cycle(card, arithmetic),
    )
    if arithmetic == "tf32x3":
        steps = sum(n / (256 * rows * C) * split_slots(rows, C) for n, rows in parts)
        products = max(products, steps / SCHEDULERS)
    slower = card.strict / card.float64 if arithmetic == "float64" else 1.0
    flops = (2 * N + 10 if work == "forward" else 6 * N + 20) * SAMPLES * units
    return products + slower * (ELEMENT * flops / (2 * card.lanes) + OUTPUT_CYCLES * n_out)


def narrow_kernel(
    card: Card, variant: Variant, n: int, sizes: tuple[int, int], m: int, work: str, ranges: int | None = None
) -> tuple[float, int]:
    """The kernels for narrow networks: (seconds, the number of ranges of samples).

    Parameters
    ----------
    card : Card
    variant : Variant
    n : int
        Hidden units.
    sizes : (n_in, n_out)
    m : int
    work : {"step", "forward"}
    ranges : int, optional
        How many ranges are launched. None: as many as run at a time.
    """
    tiles, by_memory = variant.tiles(n), (card.shared_bytes + 1024) // (variant.shared_bytes + 1024)
    at_a_time = min(variant.blocks_at_a_time, by_memory)
    multiprocessors = card.multiprocessors
    if variant.clustered and tiles > 2:
        multiprocessors = max(tiles, round(CLUSTERS * multiprocessors))
    most = max(1, multiprocessors * at_a_time // tiles)  # ranges that run at the same time
    tiles_of_m = -(-m // SAMPLES)
    launched = min(ranges or most, tiles_of_m)
    together = min(at_a_time, -(-launched * tiles // card.multiprocessors))  # blocks that share a multiprocessor
    cycles = tile_cycles(card, variant, *sizes, work) * together * (ALONE if together == 1 else 1.0)
    return -(-launched // most) * -(-tiles_of_m // launched) * cycles / card.clock, launched
