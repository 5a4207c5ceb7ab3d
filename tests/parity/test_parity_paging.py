"""How a sequence is chunked, batched, scattered over blocks or copied changes not one bit of its logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from oracle import (
    BLOCK,
    FLOAT32_BOUND,
    max_difference,
    plan_for,
    scheduled_logits,
    shuffled_tables,
    teacher_forced_logits,
)
from toys import LONG, TOYS, random_checkpoint, token_ids

from kvik.runners.runner import Runner
from kvik.step import Float32, as_int32

New = Callable[[], Runner]
NAMES = ("llama-d16-g2-linear", "qwen2-d64-g2-window", "qwen3-d80-g8-window", "mistral-d128-g1-tied")
IDS = 70


@pytest.fixture(params=["f32", "bf16"])
def new(request: pytest.FixtureRequest, new_runner: Callable[..., Runner]) -> New:
    """A runner that holds weights and KV in one form."""
    return lambda: new_runner(weights=request.param, kv_dtype=request.param)


def alone(
    runner: Runner, name: str, ids: Sequence[int], chunks: Sequence[int] | None = None, *, block_size: int = BLOCK
) -> Float32:
    return teacher_forced_logits(runner, random_checkpoint(TOYS[name]), ids, chunks, block_size=block_size)


def ready(runner: Runner, name: str, num_blocks: int) -> Runner:
    runner.load(random_checkpoint(TOYS[name]))
    runner.allocate(num_blocks, BLOCK)
    return runner


@pytest.mark.parametrize("name", NAMES)
def test_chunks_are_the_whole_prompt(name: str, new: New) -> None:
    """Token by token, block by block, and in odd pieces."""
    ids = token_ids(TOYS[name], IDS)
    whole = alone(new(), name, ids)
    for chunks in ([1] * IDS, [32, 32, 6], [7, 1, 45, 1, 16]):
        assert (alone(new(), name, ids, chunks) == whole).all()


@pytest.mark.parametrize("name", LONG)
def test_chunks_of_a_long_prompt_are_the_whole_one(name: str, new: New) -> None:
    ids, checkpoint = token_ids(LONG[name], 300), random_checkpoint(LONG[name])
    whole = teacher_forced_logits(new(), checkpoint, ids)
    for chunks in ([128, 128, 44], [1, 64, 1, 200, 1, 33]):
        assert (teacher_forced_logits(new(), checkpoint, ids, chunks) == whole).all()


@pytest.mark.parametrize("form", ["f32", "bf16"])
@pytest.mark.parametrize("attention", ["flash", "naive"])
def test_threads_change_nothing(form: str, attention: str, new_runner: Callable[..., Runner]) -> None:
    ids, checkpoint = token_ids(LONG["llama-long"], 150), random_checkpoint(LONG["llama-long"])
    one, two, three = (
        new_runner(weights=form, kv_dtype=form, attention=attention, threads=threads) for threads in (1, 2, 3)
    )
    expected = teacher_forced_logits(one, checkpoint, ids, [149, 1])
    assert (teacher_forced_logits(two, checkpoint, ids, [149, 1]) == expected).all()
    assert (teacher_forced_logits(three, checkpoint, ids, [149, 1]) == expected).all()


@pytest.mark.parametrize("block_size", [64, 96, 128])
def test_block_size_changes_nothing_that_matters(block_size: int, new: New) -> None:
    ids = token_ids(TOYS[NAMES[1]], IDS)
    got = alone(new(), NAMES[1], ids, block_size=block_size)
    assert max_difference(got, alone(new(), NAMES[1], ids)) <= FLOAT32_BOUND


@pytest.mark.parametrize("seed", range(1, 4))
def test_order_of_blocks_changes_nothing(seed: int, new: New) -> None:
    ids, checkpoint = token_ids(TOYS[NAMES[1]], IDS), random_checkpoint(TOYS[NAMES[1]])
    got = teacher_forced_logits(new(), checkpoint, ids, [10, 60], seed=seed)
    assert (got == teacher_forced_logits(new(), checkpoint, ids, [10, 60], seed=0)).all()


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_mixed_batch_are_rows_alone(name: str, new: New) -> None:
    """Prompts join and leave while others decode, and change places in the batch."""
    prompts = [token_ids(TOYS[name], length, seed) for seed, length in enumerate((IDS, 17, 3, 55))]
    tables, num_blocks = shuffled_tables([len(ids) for ids in prompts], BLOCK, seed=5)
    schedule = [{0: 40}, {0: 1, 1: 15, 2: 3}, {3: 9, 0: 1}, {1: 1, 0: 27, 3: 46}, {0: 1, 1: 1}]
    together = scheduled_logits(ready(new(), name, num_blocks), prompts, tables, schedule)
    for ids, logits in zip(prompts, together, strict=True):
        assert (logits == alone(new(), name, ids)).all()


def test_many_rows_that_decode_together_are_rows_alone(new: New) -> None:
    """More rows than any tile of a matrix kernel is high, at different lengths."""
    name = NAMES[1]
    prompts = [token_ids(TOYS[name], 5 + 2 * seed, seed) for seed in range(35)]
    tables, num_blocks = shuffled_tables([len(ids) for ids in prompts], BLOCK, seed=6)
    schedule = [{key: len(ids) - 2 for key, ids in enumerate(prompts)}, dict.fromkeys(range(35), 1)]
    schedule.append(dict.fromkeys(reversed(range(35)), 1))
    together = scheduled_logits(ready(new(), name, num_blocks), prompts, tables, schedule)
    for key in (0, 7, 16, 33, 34):
        assert (together[key] == alone(new(), name, prompts[key])).all()


def test_a_copied_block_carries_its_tokens(new: New) -> None:
    """Copy-on-write: two continuations share full blocks, and part ways inside the third with a copy of it."""
    name, shared = NAMES[1], 70
    beginning = token_ids(TOYS[name], shared)
    prompts = [beginning + token_ids(TOYS[name], 8, seed) for seed in (1, 2)]
    (table,), num_blocks = shuffled_tables([78], BLOCK, seed=2)
    spare = next(block for block in range(num_blocks) if block not in table)
    runner = ready(new(), name, num_blocks)
    runner.logits(plan_for(prompts, {0: (0, shared)}, [table]))
    tables = [table, as_int32([*table[:2], spare])]
    plan = plan_for(prompts, {0: (shared, 78), 1: (shared, 78)}, tables, copies=[(int(table[2]), spare)])
    logits = runner.logits(plan)
    assert (logits[:8] == alone(new(), name, prompts[0])[shared:]).all()
    assert (logits[8:] == alone(new(), name, prompts[1])[shared:]).all()


def test_copies_come_before_writes_and_one_source_has_several_targets(new: New) -> None:
    """The source row overwrites its block's tail in the very step that copies the block."""
    name = NAMES[0]
    prompts = [token_ids(TOYS[name], 10) + token_ids(TOYS[name], 3, seed) for seed in (1, 2, 3)]
    runner = ready(new(), name, 4)
    runner.logits(plan_for(prompts, {0: (0, 12)}, [as_int32([2])]))
    tables = [as_int32([block]) for block in (2, 0, 3)]
    plan = plan_for(prompts, dict.fromkeys(range(3), (10, 13)), tables, copies=[(2, 0), (2, 3)])
    logits = runner.logits(plan)
    for row, ids in enumerate(prompts):
        assert (logits[3 * row : 3 * row + 3] == alone(new(), name, ids)[10:]).all()


def test_what_a_block_held_before_is_never_seen(new: New) -> None:
    name = NAMES[3]
    first, second = token_ids(TOYS[name], IDS, 1), token_ids(TOYS[name], 41, 2)
    tables, num_blocks = shuffled_tables([IDS], BLOCK)
    runner = ready(new(), name, num_blocks)
    scheduled_logits(runner, [first], tables, [{0: IDS}])
    reused = scheduled_logits(runner, [second], [tables[0][::-1].copy()], [{0: 5}, {0: 36}])
    assert (reused[0] == alone(new(), name, second)).all()


@pytest.mark.parametrize("name", NAMES)
def test_bf16_keys_and_values_stay_close(name: str, new_runner: Callable[..., Runner]) -> None:
    """Keys and values err by at most 2**-9 of themselves, and the logits by a few times that."""
    ids, checkpoint = token_ids(TOYS[name], IDS), random_checkpoint(TOYS[name])
    exact = teacher_forced_logits(new_runner(), checkpoint, ids)
    rounded = teacher_forced_logits(new_runner(kv_dtype="bf16"), checkpoint, ids)
    assert 0 < max_difference(rounded, exact) <= 0.05 * float(np.std(exact))
