"""BlockPool: what is free, idle or held, and which block is taken next."""

from __future__ import annotations

import pytest

from kvik.scheduler.block_pool import BlockPool


def test_all_blocks_are_taken_once_and_then_none() -> None:
    pool = BlockPool(3)
    assert [pool.take() for _ in range(3)] == [0, 1, 2]
    assert (pool.num_free, pool.num_idle, pool.num_held) == (0, 0, 3)
    with pytest.raises(IndexError, match="all 3 KV blocks are held"):
        pool.take()


def test_a_block_is_free_when_its_last_holder_releases_it() -> None:
    pool = BlockPool(2)
    block = pool.take()
    pool.hold(block)
    pool.release(block)
    assert pool.refs[block] == 1
    assert pool.num_free == 1
    pool.release(block)
    assert pool.num_free == 2
    assert pool.take() == block


def test_idle_blocks_are_taken_last_and_the_oldest_of_them_first() -> None:
    pool = BlockPool(4)
    blocks = [pool.take() for _ in range(4)]
    for block in (2, 0):
        pool.keep(block)
        pool.release(block)
    pool.release(3)
    assert list(pool.idle_blocks()) == [2, 0]
    assert [pool.take() for _ in range(3)] == [3, 2, 0]
    assert pool.refs == [1] * len(blocks)
    assert not pool.keeps(2)


def test_holding_an_idle_block_saves_it_and_makes_it_the_newest() -> None:
    pool = BlockPool(3)
    for block in [pool.take() for _ in range(3)]:
        pool.keep(block)
        pool.release(block)
    pool.hold(0)
    assert list(pool.idle_blocks()) == [1, 2]
    pool.release(0)
    assert list(pool.idle_blocks()) == [1, 2, 0]


def test_dropping_an_idle_block_frees_it() -> None:
    pool = BlockPool(1)
    pool.keep(pool.take())
    pool.release(0)
    pool.drop(0)
    pool.drop(0)
    assert (list(pool.free_blocks()), list(pool.idle_blocks())) == ([0], [])
    assert (pool.num_free, pool.num_idle) == (1, 0)


def test_a_held_block_that_is_dropped_is_freed_at_its_release() -> None:
    pool = BlockPool(1)
    pool.keep(pool.take())
    pool.drop(0)
    assert pool.num_held == 1
    pool.release(0)
    assert pool.num_free == 1


def test_releasing_or_sharing_a_free_block_is_an_error() -> None:
    pool = BlockPool(1)
    with pytest.raises(ValueError, match="block 0 is released but nobody holds it"):
        pool.release(0)
    with pytest.raises(ValueError, match="block 0 is free"):
        pool.hold(0)
