"""The bytes that a step of the middle path moves, by count: what its time is bounded by, beside the products' flops."""

from __future__ import annotations

from fusedmlp.backends.cupy.epilogue_products import mask_words
from fusedmlp.backends.cupy.hidden_layer import tiles_of
from fusedmlp.backends.cupy.lower_layer import width_of
from fusedmlp.backends.cupy.lower_layers import has_epilogue
from fusedmlp.model.architecture import Architecture


def bytes_of_step(architecture: Architecture, m: int, epilogues: bool | None = None) -> dict[str, int]:
    """The bytes read and written for the loss and the gradients of m samples, by what they are moved for.

    Every array counts once for each operation that reads or writes it: matrices are taken to be larger than the cache.
    Left out is what does not grow with m n: biases, sums of blocks, the factors of the gradient.

    Parameters
    ----------
    architecture : Architecture
        With hidden layers and up to 16 outputs.
    m : int
    epilogues : bool, optional
        Whether cuBLASLt has algorithms for the epilogues; None: wherever the activation and the dtype have epilogues.

    Returns
    -------
    dict of str -> int
        "A1" ... of the hidden layers below the last one, "Z" and "dZ" of that, "dZ1" ... of those below it, and "dW1"
        ..., "J".
    """
    sizes, item = architecture.layer_sizes, architecture.itemsize
    epilogues = has_epilogue(architecture) if epilogues is None else epilogues
    last = len(sizes) - 2  # the last hidden layer
    numbers = {}
    for layer in range(1, last + 1):
        product = _product(sizes[layer - 1], sizes[layer], m)
        if layer == last:
            numbers["Z"] = product
        else:
            numbers[f"A{layer}"] = product + m * (mask_words(sizes[layer]) if epilogues else 2 * sizes[layer])
    n, n_out = sizes[last:]
    tiles = tiles_of(n, n_out, architecture.dtype)
    # With several tiles of units: a pass for their parts of the logits, and the sum of these.
    numbers["dZ"] = (2 * n + 2 * n_out + (n + (2 * tiles + 1) * n_out if tiles > 1 else 0)) * m
    numbers["J"] = 2 * n_out * m
    for layer in range(last, 0, -1):
        numbers[f"dW{layer}"] = _product(sizes[layer - 1], sizes[layer], m)
        if layer > 1:
            numbers[f"dZ{layer - 1}"] = _error(architecture, layer, m, epilogues)
    return {name: number * item for name, number in numbers.items()}


def _product(n_in: int, n_out: int, m: int) -> int:
    """The numbers of the three matrices of a product that has W, or dW, as one of them."""
    return (n_in + n_out) * m + n_in * n_out


def _error(architecture: Architecture, layer: int, m: int, epilogues: bool) -> int:
    """The numbers that dZ of the layer below `layer` takes."""
    n, n_above = architecture.layer_sizes[layer - 1 : layer + 1]
    product = _product(n, n_above, m)
    if epilogues:
        return product + m * mask_words(n)
    if architecture.hidden_activation == "identity":
        return product + n * m  # db
    return product + (n if width_of(n_above) else 3 * n) * m
