"""What a training step does on a GPU on each path: its operations, with their launches, bytes, flops and seconds.

Operations and bytes are those that `tests/cuda/test_paths.py` counts on the emulator. Samples pass in one chunk.
"""

from __future__ import annotations

from typing import NamedTuple

from fusedmlp.backends.cupy import costs
from fusedmlp.backends.cupy.cards import Card
from fusedmlp.backends.cupy.costs import NOW, Launches, Operation, losses, pass_over, sum_rows
from fusedmlp.backends.cupy.cuda_tables import CUDA_ACTIVATIONS
from fusedmlp.backends.cupy.epilogue_products import mask_words
from fusedmlp.backends.cupy.lower_layer import width_of
from fusedmlp.backends.cupy.lower_layers import has_epilogue
from fusedmlp.backends.cupy.mini_batch import SMALL_BATCH
from fusedmlp.backends.cupy.narrow_step import Variant
from fusedmlp.backends.cupy.sums import ranges_of
from fusedmlp.model.architecture import Architecture


class ArrayOperations(NamedTuple):
    """What CuPy's own functions move where a composed step has no kernel."""

    numbers: float
    """Numbers of the network's dtype, for each unit and sample."""
    doubles: float
    """Numbers of float64, for each unit and sample."""
    sums: float
    """Numbers of float64, for each sample: sums over the outputs."""
    operations: int


OUTPUTS = {
    "binary_cross_entropy": ArrayOperations(13, 20, 2, 16),
    "categorical_cross_entropy": ArrayOperations(15, 11.5, 13, 18),
    "squared_error": ArrayOperations(5, 7, 4, 7),
    "poisson": ArrayOperations(12, 24.25, 2, 17),
    "sum_squared_error": ArrayOperations(21, 15, 4, 18),
    "absolute_error": ArrayOperations(13, 6.5, 2, 11),
    "huber": ArrayOperations(9, 16, 2, 12),
    "quantile": ArrayOperations(13, 11.5, 2, 13),
}
"""Loss, output activation and dZ of the output layer, by loss."""

ACTIVATIONS = {
    "leaky_relu": ArrayOperations(10, 0.25, 0, 5),
    "elu": ArrayOperations(18, 0.5, 0, 9),
    "selu": ArrayOperations(22, 0.5, 0, 11),
    "softplus": ArrayOperations(28, 0, 0, 13),
    "gelu": ArrayOperations(27, 12, 0, 17),
    "silu": ArrayOperations(34, 0, 0, 15),
    "mish": ArrayOperations(64, 0, 0, 28),
    "softsign": ArrayOperations(19, 0, 0, 8),
}
"""f and its derivative, by hidden activation: those without a CUDA function."""

_NUMBERS_OF_A_LOSS = 12  # operations of CuPy on single numbers, by which a composed batch scales and adds up its loss


class Shape(NamedTuple):
    """The sizes of a step: m samples, products by cuBLAS in an arithmetic that the card has."""

    card: Card
    architecture: Architecture
    arithmetic: str
    m: int

    @property
    def item(self) -> int:
        """Bytes of a number."""
        return self.architecture.itemsize

    def product(self, n: int, columns: int, depth: int) -> Operation:
        """A product by cuBLAS, (n, depth) times (depth, columns)."""
        return costs.product(self.card, n, columns, depth, self.arithmetic)

    def over(self, name: str, numbers: int, flops: int, share: float = costs.PASS) -> Operation:
        """A kernel that moves so many numbers."""
        return pass_over(self.card, name, self.item * numbers, flops, share)

    def by_arrays(self, name: str, moved: ArrayOperations, n: int) -> Operation:
        """CuPy's own functions on n units."""
        n_bytes = round(self.m * (n * (self.item * moved.numbers + 8 * moved.doubles) + 8 * moved.sums))
        operation = pass_over(self.card, name, n_bytes, moved.operations * n * self.m)
        return operation._replace(launches=moved.operations)


# Full batch ----------------------------------------------------------------------------------------------------------


def narrow_pass(shape: Shape, variant: Variant, launches: Launches = NOW) -> list[Operation]:
    """`NarrowEngine.backpropagate`."""
    card, architecture, _, m = shape
    n_in, n, n_out = architecture.layer_sizes
    P, item, tiles = architecture.n_parameters, shape.item, variant.tiles(n)
    operations = []

    def kernel(name: str, work: str, flops: int, numbers: int) -> tuple[Operation, int]:
        seconds, ranges = costs.narrow_kernel(card, variant, n, (n_in, n_out), m, work, launches.ranges)
        numbers += n_in * m + P + (ranges * P if work == "step" else 0)
        least = item * numbers / (costs.PASS * card.copy)
        return Operation(f"narrow_{name}", item * numbers, flops, max(seconds, least)), ranges

    if tiles > 1 and not variant.clustered:
        forward, _ = kernel("forward", "forward", (2 * n_in + 2 * n_out + 10) * n * m, tiles * n_out * m)
        operations += [forward, sum_rows(card, tiles, n_out * m, item)]
    read_b2 = not operations and architecture.bias  # the logits of the forward pass contain it
    name = "cluster" if variant.clustered else "step"
    numbers = 2 * n_out * m - (architecture.bias - read_b2) * n_out
    step, ranges = kernel(name, "step", (4 * n_in + 6 * n_out + 20) * n * m, numbers)
    operations.append(step)
    if ranges > 1:
        operations.append(sum_rows(card, ranges, P, item))
    return operations


def middle_pass(shape: Shape, launches: Launches = NOW) -> list[Operation]:
    """`MiddleEngine.backpropagate`."""
    card, architecture, _, m = shape
    sizes, bias = architecture.layer_sizes, architecture.bias
    epilogues = has_epilogue(architecture) and not launches.as_measured
    last, operations = len(sizes) - 2, []
    for layer in range(1, last + 1):
        product = shape.product(m, sizes[layer], sizes[layer - 1])
        if layer == last:
            operations.append(product)
        elif epilogues:
            operations.append(_with_epilogue(shape, product, sizes[layer]))
        else:
            operations += [product, _activate(shape, sizes[layer])]
    operations += costs.hidden_layer(card, sizes[last], sizes[-1], m, architecture.dtype, bias, launches)
    for layer in range(last, 0, -1):
        below, n = sizes[layer - 1], sizes[layer]
        operations.append(shape.product(below, n, m))
        if launches.as_measured and bias and layer < last:
            operations += _sum_samples(shape, n)
        if layer > 1:
            operations += _errors_below(shape, below, n, launches)
    return operations


def _errors_below(shape: Shape, n: int, n_above: int, launches: Launches) -> list[Operation]:
    """dZ of a lower hidden layer, and db, as `LowerLayers.backward`."""
    architecture, product = shape.architecture, shape.product(n, shape.m, n_above)
    if launches.as_measured:
        return _fused_backward(shape, n, n_above)
    if has_epilogue(architecture):
        return [_with_epilogue(shape, product, n, architecture.bias * n)]
    if architecture.hidden_activation == "identity":
        return [product, *(_sum_samples(shape, n) if architecture.bias else [])]
    kernel = costs.lower_layer(shape.card, n, n_above, shape.m, architecture.dtype, architecture.bias, launches)
    return kernel if width_of(n_above) is not None else [product, *kernel]


def _with_epilogue(shape: Shape, product: Operation, n: int, sums: int | None = None) -> Operation:
    """A product of cuBLASLt's that also moves a mask, and b in the forward pass or db in the backward pass."""
    numbers = shape.m * mask_words(n) + (shape.architecture.bias * n if sums is None else sums)
    n_bytes = product.bytes + shape.item * numbers
    return product._replace(name="epilogue", bytes=n_bytes)


def _sum_samples(shape: Shape, n: int) -> list[Operation]:
    ranges = ranges_of(shape.m)
    operations = [sum_rows(shape.card, shape.m, n, shape.item, ranges)]
    if ranges > 1:
        operations.append(sum_rows(shape.card, ranges, n, shape.item))
    return operations


def composed_pass(shape: Shape) -> list[Operation]:
    """The pass of `ComposedEngine`, with the loss."""
    _, architecture, _, m = shape
    sizes, bias = architecture.layer_sizes, architecture.bias
    last, operations = len(sizes) - 1, []
    for layer in range(1, last + 1):
        operations.append(shape.product(sizes[layer], m, sizes[layer - 1]))
        if layer < last:
            operations.append(_activate(shape, sizes[layer]))
    n_out = sizes[-1]
    if bias:
        operations.append(shape.over("add", 2 * n_out * m + n_out, n_out * m))
    operations.append(shape.by_arrays("output layer", OUTPUTS[architecture.loss.partition(":")[0]], n_out))
    for layer in range(last, 0, -1):
        below, n = sizes[layer - 1], sizes[layer]
        operations.append(shape.product(below, n, m))
        if bias:
            operations.append(shape.over("sum", n * m + n, n * m, costs.REDUCTION))
        if layer > 1:
            operations += _fused_backward(shape, below, n)
    return operations


def with_losses(shape: Shape, operations: list[Operation]) -> list[Operation]:
    """A fused pass and the sum of its losses."""
    return [*operations, *losses(shape.card, shape.m, shape.architecture.n_outputs, shape.item)]


def _activate(shape: Shape, n: int) -> Operation:
    activation, bias = shape.architecture.hidden_activation, shape.architecture.bias
    if activation in ACTIVATIONS:
        moved = ACTIVATIONS[activation]
        moved = moved._replace(numbers=moved.numbers + 2 * bias, operations=moved.operations + bias)
        return shape.by_arrays(f"{activation} and its derivative", moved, n)
    return shape.over("activate", 2 * n * shape.m + bias * n, n * shape.m)


def _fused_backward(shape: Shape, n_in: int, n_out: int) -> list[Operation]:
    """W dZ ⊙ f'(A)."""
    activation, m = shape.architecture.hidden_activation, shape.m
    if activation in CUDA_ACTIVATIONS[:3] and n_out <= 16:
        numbers = (2 * n_in + n_out) * m + n_in * n_out
        return [shape.over("fused_backward", numbers, (2 * n_out + 3) * n_in * m)]
    operations = [shape.product(n_in, m, n_out)]
    if activation in CUDA_ACTIVATIONS[:3]:
        operations.append(shape.over("times_derivative", 3 * n_in * m, 3 * n_in * m))
    return operations


# Mini-batches --------------------------------------------------------------------------------------------------------


def captured_step(shape: Shape, operations: list[Operation]) -> list[Operation]:
    """A step of `CapturedSteps` around a fused pass, with Adam."""
    card, architecture, _, size = shape
    n_in, n_out, P = architecture.n_inputs, architecture.n_outputs, architecture.n_parameters
    gather = shape.over("gather", 2 * (n_in + n_out) * size, 0)
    finish = Operation("finish", 0, 0, 0.0)
    sums = losses(card, size, n_out, shape.item)
    if size <= SMALL_BATCH:
        seconds = -(-size // 256) * n_out * costs.LOSS_OF_A_SAMPLE
        sums, finish = [], Operation("finish", shape.item * 2 * n_out * size, 40 * n_out * size, seconds)
    return [gather, *operations, *sums, finish, shape.over("adam", 7 * P, 14 * P)]


def composed_step(shape: Shape, operations: list[Operation]) -> list[Operation]:
    """A step of a composed epoch, with Adam; every operation is started from Python."""
    n_in, n_out, P = shape.architecture.n_inputs, shape.architecture.n_outputs, shape.architecture.n_parameters
    gather = shape.over("take", 2 * (n_in + n_out) * shape.m, 0)._replace(launches=2)
    numbers = Operation("loss of the batch", 0, 0, 0.0, _NUMBERS_OF_A_LOSS)
    return [gather, *operations, numbers, shape.over("adam", 7 * P, 14 * P)]
