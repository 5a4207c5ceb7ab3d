"""The arrays of a plan: shapes, types, sampling columns, bias, history, and that plans stay as they were."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scheduler_toys import new_request, new_scheduler, result_of, step

from kvik.step import SamplePlan, ScorePlan, StepPlan


def test_rows_lie_one_after_another() -> None:
    scheduler = new_scheduler(block_size=4, max_num_batched_tokens=8)
    scheduler.add(new_request(0, [1, 2, 3]))
    step(scheduler)
    scheduler.add(new_request(1, [4] * 9))
    plan, _ = step(scheduler)
    assert plan.keys.tolist() == [0, 1]
    assert plan.token_ids.tolist() == [7] + [4] * 7
    assert plan.positions.tolist() == [3, 0, 1, 2, 3, 4, 5, 6]
    assert plan.query_start_loc.tolist() == [0, 1, 8]
    assert plan.seq_lens.tolist() == [4, 7]
    assert plan.block_tables.tolist() == [[0, -1], [1, 2]]


TYPES = {"Int32": np.int32, "Int64": np.int64, "UInt32": np.uint32, "UInt64": np.uint64, "Float32": np.float32}
RAGGED = {"bias_tokens", "bias_values", "history_tokens", "mask_index", "masks"}
"""Masks are not the scheduler's: the engine adds them."""


def test_every_array_has_the_type_and_layout_that_step_declares() -> None:
    scheduler = new_scheduler()
    for key, fields in enumerate(({}, {"n": 2, "prompt_logprobs": 1}, {"presence_penalty": 1.0, "min_tokens": 1})):
        scheduler.add(new_request(key * 2, 3, stop_ids=frozenset([3]), **fields))
    for _ in range(2):
        plan, _ = step(scheduler)
        for record in (plan, plan.sample, plan.score):
            for name, value in arrays_of(record).items():
                declared = record.__dataclass_fields__[name].type
                assert value.dtype == TYPES[declared], name
                assert value.flags.c_contiguous, name


def test_every_column_of_the_draws_is_as_long_as_there_are_draws() -> None:
    scheduler = new_scheduler()
    scheduler.add(new_request(0, 3, n=2))
    scheduler.add(new_request(2, 3))
    for penalty in (0.0, 1.0):
        scheduler.add(new_request(10 + int(penalty), 3, presence_penalty=penalty))
        sample = step(scheduler)[0].sample
        for name, value in arrays_of(sample).items():
            if name not in RAGGED:
                assert len(value) == len(sample) + name.endswith("_start"), name


def arrays_of(record: StepPlan | SamplePlan | ScorePlan) -> dict[str, np.ndarray]:
    return {name: value for name, value in vars(record).items() if isinstance(value, np.ndarray)}


def test_sampling_parameters_reach_their_draw() -> None:
    scheduler = new_scheduler()
    scheduler.add(new_request(0, 2, temperature=0.0))
    scheduler.add(
        new_request(
            1,
            2,
            temperature=0.5,
            top_k=-1,
            top_p=0.25,
            min_p=0.125,
            repetition_penalty=2.0,
            presence_penalty=-1.0,
            frequency_penalty=1.5,
            logprobs=3,
            seed=2**64 - 1,
        )
    )
    sample = step(scheduler)[0].sample
    columns = {f.name: getattr(sample, f.name).tolist() for f in dataclasses.fields(sample)}
    assert columns["temperature"] == [0.0, 0.5]
    assert columns["top_k"] == [0, 0]
    assert columns["top_p"] == [1.0, 0.25]
    assert columns["min_p"] == [0.0, 0.125]
    assert columns["repetition_penalty"] == [1.0, 2.0]
    assert columns["presence_penalty"] == [0.0, -1.0]
    assert columns["frequency_penalty"] == [0.0, 1.5]
    assert columns["num_logprobs"] == [-1, 3]
    assert columns["seeds"] == [0, 2**64 - 1]


def test_stop_tokens_are_banned_until_min_tokens() -> None:
    scheduler = new_scheduler()
    scheduler.add(new_request(0, 2, min_tokens=2, logit_bias={5: 1.0, 9: 2.0}, stop_ids=frozenset([9, 8])))
    scheduler.add(new_request(1, 2))
    for _ in range(2):
        sample = step(scheduler)[0].sample
        assert sample.bias_start.tolist() == [0, 3, 3]
        assert dict(zip(sample.bias_tokens.tolist(), sample.bias_values.tolist(), strict=True)) == {
            5: 1.0,
            8: -np.inf,
            9: -np.inf,
        }
    sample = step(scheduler)[0].sample
    assert sample.bias_tokens.tolist() == [5, 9]
    assert sample.bias_values.tolist() == [1.0, 2.0]


def test_history_is_there_for_draws_with_penalties_only() -> None:
    scheduler = new_scheduler()
    scheduler.add(new_request(0, 2))
    scheduler.add(new_request(1, [4, 5, 6], frequency_penalty=1.0))
    step(scheduler, token=8)
    sample = step(scheduler, token=9)[0].sample
    assert sample.history_start.tolist() == [0, 0, 4]
    assert sample.history_tokens.tolist() == [4, 5, 6, 8]
    assert sample.history_prompt.tolist() == [0, 3]


def test_a_plan_does_not_change_when_the_next_is_made() -> None:
    scheduler = new_scheduler(block_size=2)
    for key in range(3):
        scheduler.add(new_request(key, 3, temperature=0.5))
    step(scheduler)
    plan, _ = step(scheduler)
    before = {name: value.copy() for name, value in arrays_of(plan).items()}
    draws = {name: value.copy() for name, value in arrays_of(plan.sample).items()}
    scheduler.abort(1)
    scheduler.add(new_request(7, 4, temperature=0.25))
    for _ in range(3):
        step(scheduler)
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(plan, name), value)
    for name, value in draws.items():
        np.testing.assert_array_equal(getattr(plan.sample, name), value)


def test_columns_that_plans_share_cannot_be_written() -> None:
    scheduler = new_scheduler()
    scheduler.add(new_request(0, 3))
    step(scheduler)
    first, second = step(scheduler)[0].sample, step(scheduler)[0].sample
    assert first.temperature is second.temperature
    with pytest.raises(ValueError, match="read-only"):
        first.temperature[0] = 2.0


def test_a_slot_taken_over_brings_its_new_parameters() -> None:
    scheduler = new_scheduler(max_num_seqs=1)
    for key, temperature in enumerate((0.5, 0.25)):
        scheduler.add(new_request(key, 2, temperature=temperature, max_tokens=1))
        plan = scheduler.plan()
        assert plan.sample.temperature.tolist() == [temperature]
        assert plan.sample.keys.tolist() == [key]
        scheduler.commit(plan, result_of(plan))
