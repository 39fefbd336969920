"""Which rows of a table are held out: the same share of every class."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fusedmlp.data.messages import counted

MANY_ROWS = 2**20
"""From so many rows on, they are drawn block by block: an order of all rows would be larger than the rows' classes."""
_BLOCK_ROWS = 2**16


def split_rows(
    m: int, test_fraction: float, classes: np.ndarray | None, random_state: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the rows to hold out; the same share of every class that has enough rows.

    Parameters
    ----------
    m : int
        Number of rows.
    test_fraction : float in (0, 1)
    classes : array of shape (m,) of int, optional
    random_state : int

    Returns
    -------
    train, test : arrays of int
        Row numbers in rising order.

    Raises
    ------
    ValueError
        No row would be left to train on.
    """
    held_out = held_out_rows(m, test_fraction, classes, random_state)
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def held_out_rows(
    m: int, test_fraction: float, classes: np.ndarray | None, random_state: int, many: int = MANY_ROWS
) -> np.ndarray:
    """As `split_rows`: a bool for each row, which takes an eighth of the memory of row numbers.

    Up to `many` rows, scikit-learn's train_test_split draws them.
    """
    n_test = max(1, round(m * test_fraction))
    if n_test >= m:
        raise ValueError(f"--test-fraction: {test_fraction:g} of {counted(m, 'row')} leaves none to train on")
    if classes is not None:
        classes = strata(classes, min(n_test, m - n_test))
    if m > many:
        return _drawn_by_blocks(m, n_test, classes, np.random.default_rng(random_state))
    from sklearn.model_selection import train_test_split

    held_out = np.zeros(m, bool)
    rows = train_test_split(np.arange(m), test_size=n_test, random_state=random_state, stratify=classes)[1]
    held_out[rows] = True
    return held_out


def _drawn_by_blocks(m: int, n_test: int, groups: np.ndarray | None, generator: np.random.Generator) -> np.ndarray:
    """So many of m rows, drawn at random, the same share of each group to a row.

    In each block of rows the number that is drawn is hypergeometric: every choice of rows is as likely as any other.
    """
    groups = np.zeros(m, np.int8) if groups is None else groups
    names, sizes = _sizes(groups)
    shares = sizes * (n_test / m)
    left = np.floor(shares).astype(np.int64)
    left[np.argsort(left - shares, kind="stable")[: n_test - int(left.sum())]] += 1  # the largest fractions
    rest, held_out = sizes.copy(), np.zeros(m, bool)
    for block in _blocks(m):
        for place, name in enumerate(names):
            rows = block.start + np.flatnonzero(groups[block] == name)
            others = int(rest[place]) - len(rows)
            drawn = int(generator.hypergeometric(len(rows), others, int(left[place]))) if left[place] else 0
            held_out[generator.permutation(rows)[:drawn]] = True
            rest[place], left[place] = others, left[place] - drawn
    return held_out


def strata(classes: np.ndarray, most: int, smallest: int = 2) -> np.ndarray | None:
    """The classes, with those that are small, or are too many for a part of `most` rows, as one; None: no strata.

    The largest classes stay by themselves. Every stratum has `smallest` rows at least.
    """
    names, counts = _sizes(classes)
    sizes = np.zeros(int(names.max()) + 1, np.int64)
    sizes[names] = counts
    by_size = np.argsort(-sizes, kind="stable")
    kept = by_size[: max(0, most - 1)] if np.count_nonzero(sizes) > most else by_size
    kept = kept[sizes[kept] >= smallest]
    stratum = np.full(len(sizes), -1, np.min_scalar_type(-len(sizes)))
    stratum[kept] = kept
    others = int(sizes[stratum == -1].sum())
    if 0 < others < smallest:  # they join the largest class
        stratum[stratum == -1] = by_size[0]
    return stratum[classes] if len(np.unique(stratum[sizes > 0])) > 1 else None


def _sizes(classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the different numbers, how often each comes)."""
    counts: dict[int, int] = {}
    for block in _blocks(len(classes)):
        for name, count in zip(*np.unique(classes[block], return_counts=True), strict=True):
            counts[int(name)] = counts.get(int(name), 0) + int(count)
    names = np.array(sorted(counts))
    return names, np.array([counts[name] for name in names.tolist()], np.int64)


def _blocks(m: int) -> Iterator[slice]:
    for start in range(0, m, _BLOCK_ROWS):
        yield slice(start, min(start + _BLOCK_ROWS, m))
