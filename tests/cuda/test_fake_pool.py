"""The fake pool deals with sizes as CuPy's does."""

from __future__ import annotations

import pytest
from harness import fake_streams
from harness.fake_pool import UNIT, MemoryPool, OutOfMemoryError

NULL, OTHER = 0, 1


def taken(pool, *units, stream=NULL):
    return [pool.take(n * UNIT, stream) for n in units]


def state(pool):
    """Used, free and obtained units."""
    return [n / UNIT for n in (pool.used_bytes(), pool.free_bytes(), pool.total_bytes())]


def test_free_blocks_are_split_and_joined():
    pool = MemoryPool()
    (block,) = taken(pool, 10)
    pool.give_back(block)
    parts = taken(pool, 2, 3, 4)
    assert state(pool) == [9, 1, 10]
    for i in (1, 0, 2):
        pool.give_back(parts[i])
    taken(pool, 10)
    assert state(pool) == [10, 0, 10]


def test_the_smallest_that_is_large_enough_is_taken():
    pool = MemoryPool()
    for block in taken(pool, 8, 3, 5):
        pool.give_back(block)
    taken(pool, 4)
    assert state(pool) == [4, 12, 16]
    taken(pool, 8)
    assert state(pool) == [12, 4, 16]


def test_sizes_are_rounded_up():
    pool = MemoryPool()
    pool.take(UNIT + 1, NULL)
    assert pool.take(0, NULL) is None
    assert state(pool) == [2, 0, 2]
    assert pool.sizes == [2 * UNIT, 0]


def test_a_stream_does_not_get_what_another_one_gave_back():
    pool = MemoryPool()
    pool.give_back(*taken(pool, 5, stream=OTHER))
    taken(pool, 5)
    assert state(pool) == [5, 5, 10]


def test_the_limit_counts_free_blocks_and_does_not_free_them():
    pool = MemoryPool()
    for block in taken(pool, 5, 3):
        pool.give_back(block)
    pool.set_limit(10 * UNIT)
    with pytest.raises(OutOfMemoryError, match=r"allocating 3,072 bytes \(allocated so far: 4,096 bytes, limit"):
        taken(pool, 6)
    taken(pool, 5)  # a free block is no new one
    pool.free_all_blocks()
    assert state(pool) == [5, 0, 5]
    with pytest.raises(OutOfMemoryError):
        taken(pool, 6)
    taken(pool, 5)


def test_a_block_of_which_a_part_is_in_use_stays():
    pool = MemoryPool()
    (block,) = taken(pool, 10)
    pool.give_back(block)
    taken(pool, 1)
    pool.free_all_blocks()
    assert state(pool) == [1, 9, 10]
    pool.set_limit(pool.used_bytes() + 2 * UNIT)  # less than what the pool has: nothing new fits
    with pytest.raises(OutOfMemoryError):
        taken(pool, 10)
    taken(pool, 9)


def test_free_blocks_of_one_stream():
    pool = MemoryPool()
    stream = fake_streams.Stream()
    for block in (*taken(pool, 2), *taken(pool, 3, stream=stream.ptr)):
        pool.give_back(block)
    pool.free_all_blocks(stream)
    assert state(pool) == [0, 2, 2]
