"""Plans as tensors, and how decode steps are padded to captured sizes."""

from __future__ import annotations

import numpy as np
import pytest

from kvik.step import StepPlan, as_int32

torch = pytest.importorskip("torch")

from kvik.runners.cuda import plain  # noqa: E402
from kvik.runners.cuda.batch import batch_of, slots_of  # noqa: E402
from kvik.runners.cuda.cache import KVCache  # noqa: E402
from kvik.runners.cuda.graphs import MOST_ROWS, Inputs, bucket_of, buckets, padded_inputs  # noqa: E402
from kvik.runners.cuda.heads import Heads  # noqa: E402

CPU = torch.device("cpu")


def plan_of(spans: list[tuple[int, int]], tables: list[list[int]]) -> StepPlan:
    positions = [position for start, stop in spans for position in range(start, stop)]
    return StepPlan(
        step=0,
        keys=np.arange(len(spans)),
        token_ids=as_int32(range(100, 100 + len(positions))),
        positions=as_int32(positions),
        query_start_loc=as_int32(np.cumsum([0] + [stop - start for start, stop in spans])),
        seq_lens=as_int32([stop for _, stop in spans]),
        block_tables=as_int32(tables),
    )


def test_slots_follow_the_block_tables() -> None:
    plan = plan_of([(31, 34), (0, 1)], [[5, 2], [7, -1]])
    assert slots_of(plan, 32).tolist() == [5 * 32 + 31, 2 * 32, 2 * 32 + 1, 7 * 32]


def test_every_token_is_in_one_tile_of_its_row() -> None:
    plan = plan_of([(3, 4), (0, 9), (40, 41), (0, 4)], [[0, 1]] * 4)
    batch = batch_of(plan, 32, 4, CPU)
    assert (batch.single.rows.tolist(), batch.single.starts.tolist()) == ([0, 2], [0, 10])
    assert batch.several.rows.tolist() == [1, 1, 1, 3]
    assert batch.several.starts.tolist() == [1, 5, 9, 11]
    assert batch.several.counts.tolist() == [4, 4, 1, 4]


def test_a_step_without_several_has_no_such_tiles() -> None:
    batch = batch_of(plan_of([(3, 4)], [[0]]), 32, 4, CPU)
    assert (len(batch.single), len(batch.several)) == (1, 0)


def test_buckets_are_dense_where_steps_are_small_and_end_at_the_most() -> None:
    assert buckets(256)[:7] == [1, 2, 4, 8, 16, 32, 48]
    assert buckets(256)[-1] == 256
    assert buckets(5) == [1, 2, 4, 5]
    assert all(a < b for a, b in zip(buckets(256), buckets(256)[1:], strict=False))


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (3, 4), (16, 16), (17, 32), (255, 256), (257, None)])
def test_a_step_runs_in_the_smallest_bucket_that_holds_it(rows: int, size: int | None) -> None:
    assert bucket_of(rows, buckets(MOST_ROWS)) == size


def test_padding_has_no_slot_and_no_tile() -> None:
    plan = plan_of([(31, 32), (40, 41)], [[5, -1], [7, 9]])
    token_ids, positions, slots, counts = padded_inputs(plan, 32, 4).tolist()
    assert token_ids == [100, 101, 0, 0]
    assert positions == [31, 40, 0, 0]
    assert slots == [5 * 32 + 31, 9 * 32 + 8, -1, -1]
    assert counts == [1, 1, 0, 0]


def test_fixed_places_hold_what_a_batch_of_the_plan_would() -> None:
    inputs = Inputs(8, 4, CPU)
    for spans, tables in (([(3, 4)] * 5, [[r, 9, 9] for r in range(5)]), ([(31, 32), (40, 41)], [[5, -1], [7, 9]])):
        plan = plan_of(spans, tables)
        size = bucket_of(len(spans), buckets(8)) or 0
        inputs.fill(plan, 32, size)
        ours, theirs, rows = inputs.batch(size), batch_of(plan, 32, 1, CPU), len(spans)
        for name in ("token_ids", "positions", "slots"):
            assert torch.equal(getattr(ours, name)[:rows], getattr(theirs, name)), name
        assert torch.equal(ours.block_tables[:rows, : len(tables[0])], theirs.block_tables)
        assert ours.single.counts.tolist() == [1] * rows + [0] * (size - rows)
        assert ours.single.rows.tolist() == ours.single.starts.tolist() == list(range(size))


@pytest.mark.parametrize("form", ["f32", "bf16", "int8", "fp8"])
def test_padding_writes_nowhere_and_copies_take_whole_blocks(form: str) -> None:
    heads = Heads(2, 1, 8)
    cache = KVCache(2, 3, 32, heads, form=form, device=CPU)
    layer = cache.layer(1)
    values = torch.ones(2, 1, 8)
    plain.store(layer.keys, layer.key_scales, torch.tensor([40, -1]), values)
    assert layer.keys.float().count_nonzero() == 8
    cache.copy_blocks(as_int32([[1, 2]]))
    slots = torch.tensor([40, 72])
    kept = plain.fetch(layer.keys, layer.key_scales, slots)
    assert torch.equal(kept[0], kept[1])
    assert (kept - 1).abs().max() < 1e-6
    assert cache.layer(0).keys.float().count_nonzero() == 0
