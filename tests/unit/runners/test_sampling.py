"""Every rule of SamplingParams on distributions small enough to know by heart, and the drawn frequencies themselves.

Each test runs against every sampler there is: numpy's definition, and the native one in each instruction set that this
machine can run. Native and reference are compared with each other in parity/test_parity_sampling.py.
"""

from __future__ import annotations

import math
from functools import partial
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from kvik.runners.reference import sampling
from kvik.step import SamplePlan, ScorePlan, as_int32

INF = math.inf


def native_samplers() -> dict[str, Any]:
    """The native sampler for each instruction set that can run; empty where it is not built."""
    try:
        from kvik.runners.native import available, draw
    except ImportError:
        return {}
    return {f"native-{isa}": partial(draw, isa) for isa, why_not in available().items() if why_not is None}


SAMPLERS = {"reference": sampling.draw, **native_samplers()}


NOT_BUILT = pytest.param("native", marks=pytest.mark.skip(reason="the native library is not built here"))
NAMES = [*SAMPLERS] if len(SAMPLERS) > 1 else [*SAMPLERS, NOT_BUILT]


@pytest.fixture(params=NAMES)
def draw(request: pytest.FixtureRequest) -> Any:
    return SAMPLERS[request.param]


def plan_of(
    count: int = 1,
    *,
    bias: dict[int, float] | None = None,
    prompt: tuple[int, ...] = (),
    answer=(),
    seed=7,
    **fields: Any,
) -> SamplePlan:
    """`count` draws from row 0 at positions 0, 1, .., all with the same rules."""
    rules = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
    rules |= {"presence_penalty": 0.0, "frequency_penalty": 0.0} | fields
    top_k, num_logprobs = int(rules.pop("top_k", 0)), int(rules.pop("num_logprobs", -1))
    bias, history = bias or {}, [*prompt, *answer]
    return SamplePlan(
        rows=np.zeros(count, np.int32),
        keys=np.arange(count),
        **{name: np.full(count, value, np.float32) for name, value in rules.items()},
        top_k=np.full(count, top_k, np.int32),
        seeds=np.full(count, seed, np.uint64),
        positions=np.arange(count),
        num_logprobs=np.full(count, num_logprobs, np.int32),
        bias_start=as_int32(np.arange(count + 1) * len(bias)),
        bias_tokens=as_int32(list(bias) * count),
        bias_values=np.array(list(bias.values()) * count, np.float32),
        history_start=as_int32(np.arange(count + 1) * len(history)),
        history_tokens=as_int32(history * count),
        history_prompt=np.full(count, len(prompt), np.int32),
    )


def row(*logits: float) -> np.ndarray:
    return np.array([logits], np.float32)


def tokens_of(draw: Any, logits: np.ndarray, count: int = 400, **fields: Any) -> set[int]:
    """Every token that `count` draws produce."""
    return set(draw(plan_of(count, **fields), logits)[0].tolist())


def greedy(draw: Any, logits: np.ndarray, **fields: Any) -> int:
    return int(draw(plan_of(temperature=0.0, **fields), logits)[0][0])


# Random numbers


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: Any) -> None:
    position = sum(word << 32 * i for i, word in enumerate(counter))
    assert sampling.philox(key[0] | key[1] << 32, position) == expected


def test_uniform_numbers_have_24_bits_and_stay_below_one() -> None:
    numbers = [sampling.uniform(3, position) for position in range(2000)]
    assert all(0 <= u < 1 and (u * 2**24).is_integer() and np.float32(u) == u for u in numbers)
    assert abs(np.mean(numbers) - 0.5) < 0.03
    assert sampling.uniform(0, 0) == (0x6627E8D5 >> 8) / 2**24


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**64 - 1])
@pytest.mark.parametrize("position", [0, 5, 2**31 + 3, 2**40 + 1])
def test_equal_logits_reveal_the_uniform_number(draw: Any, seed: int, position: int) -> None:
    plan = plan_of(seed=seed)
    plan.positions[0] = position
    token = int(draw(plan, np.zeros((1, 4096), np.float32))[0][0])
    assert token == int(sampling.uniform(seed, position) * 4096)


# Greedy, and where tokens lie


def test_greedy_takes_the_largest_and_the_lowest_id_among_equals(draw: Any) -> None:
    assert greedy(draw, row(1, 3, 2, 3)) == 1
    assert greedy(draw, row(-INF, -5, -INF)) == 1
    assert greedy(draw, row(0.0, -0.0), top_k=1, top_p=0.1, seed=9) == 0


@pytest.mark.parametrize("vocab", [1, 15, 16, 17, 1023, 1024, 1025, 5000])
def test_the_only_likely_token_is_found_wherever_it_lies(draw: Any, vocab: int) -> None:
    for place in {0, vocab // 2, vocab - 1, min(1023, vocab - 1)}:
        logits = np.zeros((2, vocab), np.float32)
        logits[0, place] = 60
        logits[1] = 99  # what lies behind the row is never looked at
        assert greedy(draw, logits) == place
        assert tokens_of(draw, logits, 4) == tokens_of(draw, logits, 4, top_p=0.9) == {place}


# Bias and penalties


def test_bias_is_added_and_minus_infinity_bans(draw: Any) -> None:
    assert greedy(draw, row(1, 2, 3), bias={0: 2.5}) == 0
    assert greedy(draw, row(1, 2, 3), bias={2: -INF}) == 1
    assert tokens_of(draw, row(1, 2, 3), bias={2: -INF, 0: -INF}) == {1}


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits(draw: Any) -> None:
    assert greedy(draw, row(3, 2), prompt=(0, 0), repetition_penalty=1.4) == 0
    assert greedy(draw, row(3, 2), prompt=(0, 0), repetition_penalty=1.6) == 1
    assert greedy(draw, row(-2, -3), answer=(0, 0), repetition_penalty=1.4) == 0
    assert greedy(draw, row(-2, -3), answer=(0, 0), repetition_penalty=1.6) == 1


def test_presence_penalty_counts_once_and_only_the_answer(draw: Any) -> None:
    assert greedy(draw, row(2, 1.5), answer=(0, 0, 0), presence_penalty=0.4) == 0
    assert greedy(draw, row(2, 1.5), answer=(0,), presence_penalty=0.6) == 1
    assert greedy(draw, row(2, 1.5), prompt=(0, 0, 0), presence_penalty=2.0) == 0


def test_frequency_penalty_counts_every_occurrence_in_the_answer(draw: Any) -> None:
    assert greedy(draw, row(2, 1), prompt=(0, 0, 0), answer=(0, 0), frequency_penalty=0.4) == 0
    assert greedy(draw, row(2, 1), answer=(0, 1, 0, 0), frequency_penalty=0.6) == 1
    assert greedy(draw, row(2, 1.9), answer=(1, 1, 1), frequency_penalty=-0.1) == 1


def test_bias_comes_before_the_repetition_penalty_and_that_before_presence(draw: Any) -> None:
    # (-1 + 4) / 1.5 = 2, where the other order would give -1 * 1.5 + 4 = 2.5; and 4 / 2 - 1 = 1, not (4 - 1) / 2.
    assert greedy(draw, row(-1, 1.9), bias={0: 4.0}, answer=(0,), repetition_penalty=1.5) == 0
    assert greedy(draw, row(-1, 2.1), bias={0: 4.0}, answer=(0,), repetition_penalty=1.5) == 1
    assert greedy(draw, row(4, 0.9), answer=(0,), repetition_penalty=2.0, presence_penalty=1.0) == 0
    assert greedy(draw, row(4, 1.1), answer=(0,), repetition_penalty=2.0, presence_penalty=1.0) == 1


# Filters


def test_min_p_is_relative_to_the_likeliest(draw: Any) -> None:
    logits = np.log(row(0.5, 0.26, 0.14, 0.1))
    assert tokens_of(draw, logits, min_p=0.5) == {0, 1}
    assert tokens_of(draw, logits, min_p=0.25) == {0, 1, 2}
    assert tokens_of(draw, row(1, 2, 2), min_p=1.0) == {1, 2}


def test_top_k_keeps_exactly_k_and_the_lowest_ids_among_equals(draw: Any) -> None:
    assert tokens_of(draw, row(1, 2, 2, 2, 0), top_k=2) == {1, 2}
    assert tokens_of(draw, row(2, 2, 3, 2), top_k=3) == {0, 1, 2}
    assert tokens_of(draw, row(1, 1, 1), top_k=1) == {0}
    assert tokens_of(draw, row(1, 1, 1), top_k=3) == tokens_of(draw, row(1, 1, 1), top_k=99) == {0, 1, 2}


def test_top_p_keeps_the_smallest_set_that_reaches_it(draw: Any) -> None:
    logits = np.log(row(0.2, 0.5, 0.3))
    assert tokens_of(draw, logits, top_p=0.49) == {1}
    assert tokens_of(draw, logits, top_p=0.51) == tokens_of(draw, logits, top_p=0.79) == {1, 2}
    assert tokens_of(draw, logits, top_p=0.81) == {0, 1, 2}
    assert tokens_of(draw, logits, top_p=1e-9) == {1}
    assert tokens_of(draw, row(1, 1, 1, 1), top_p=0.4) == {0, 1}


def test_top_p_renormalises_over_what_min_p_and_top_k_left(draw: Any) -> None:
    logits = np.log(row(0.4, 0.3, 0.2, 0.1))
    assert tokens_of(draw, logits, top_p=0.65) == {0, 1}
    assert tokens_of(draw, logits, top_p=0.55, top_k=2) == {0}  # 0.4 of 0.7 is 0.57
    assert tokens_of(draw, logits, top_p=0.43, min_p=0.4) == {0}  # 0.4 of 0.9 is 0.44
    assert tokens_of(draw, logits, top_p=0.65, temperature=0.1) == {0}


def test_filters_work_on_thousands_of_equal_tokens(draw: Any) -> None:
    logits = np.zeros((1, 9000), np.float32)
    assert tokens_of(draw, logits, top_k=7) == set(range(7))
    assert max(tokens_of(draw, logits, 200, top_k=5000)) in range(4900, 5000)
    assert max(tokens_of(draw, logits, 200, top_p=0.5)) in range(4400, 4500)
    assert max(tokens_of(draw, logits, 200, min_p=1.0)) in range(8800, 9000)


# What goes wrong


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("logits", [row(1, math.nan, 2), row(1, INF, 2), row(-INF, -INF, -INF)])
def test_unusable_logits_fail_their_draw_alone(draw: Any, logits: np.ndarray, temperature: float) -> None:
    plan = plan_of(3, temperature=temperature, num_logprobs=1)
    plan.rows[1] = 1
    tokens, failed, top = draw(plan, np.concatenate([row(1, 5, 2), logits]))
    assert failed.tolist() == [False, True, False]
    assert tokens[1] == -1
    assert {tokens[0], tokens[2]} <= {0, 1, 2}
    assert top.logprobs[1] == 0
    assert top.top_ids[1].tolist() == [-1]


def test_a_draw_whose_every_token_is_banned_fails(draw: Any) -> None:
    for temperature in (0.0, 1.0):
        tokens, failed, _ = draw(plan_of(temperature=temperature, bias={0: -INF, 1: -INF}), row(1, 2))
        assert (tokens[0], bool(failed[0])) == (-1, True)


def test_huge_and_tiny_numbers_never_leave_the_vocabulary(draw: Any) -> None:
    for scale in (1e-38, 1e-3, 1e3, 1e38):
        logits = np.array([[-3, 1, -INF, 2, 0]], np.float32) * np.float32(scale)
        for temperature in (1e-38, 1e-3, 1.0, 100.0):
            assert tokens_of(draw, logits, 20, temperature=temperature, top_p=0.9, min_p=1e-9, top_k=4) <= {0, 1, 3, 4}


# Log-probabilities


def test_logprobs_are_those_of_the_model_before_any_rule(draw: Any) -> None:
    plan = plan_of(num_logprobs=3, bias={0: -INF, 1: 9.0}, top_k=1, temperature=0.3)
    _, _, top = draw(plan, np.log(row(0.5, 0.125, 0.125, 0.25)))
    assert top.logprobs[0] == pytest.approx(math.log(0.125), abs=1e-6)
    assert top.top_ids.tolist() == [[0, 3, 1]]
    assert top.top_logprobs[0] == pytest.approx(np.log([0.5, 0.25, 0.125]), abs=1e-6)


def test_logprobs_are_filled_only_as_far_as_asked_for(draw: Any) -> None:
    plan = plan_of(3, num_logprobs=2)
    plan.num_logprobs[:] = [-1, 0, 2]
    _, _, top = draw(plan, row(1, 2, 0))
    assert top.logprobs[0] == 0
    assert (top.logprobs[1:] < 0).all()
    assert top.top_ids.tolist() == [[-1, -1], [-1, -1], [1, 0]]
    assert draw(plan_of(num_logprobs=5), row(1, 2))[2].top_ids.tolist() == [[1, 0, -1, -1, -1]]


def test_scores_belong_to_their_target_and_are_nan_where_the_model_failed() -> None:
    plan = ScorePlan(as_int32([4, 9]), as_int32([1, 0]), as_int32([2, 1]))
    out = sampling.score(plan, np.concatenate([np.log(row(0.25, 0.5, 0.25)), row(math.nan, 1, 2)]))
    assert out.logprobs[0] == pytest.approx(math.log(0.5), abs=1e-6)
    assert math.isnan(out.logprobs[1])
    assert out.top_ids.tolist() == [[1, 0], [-1, -1]]


# Frequencies

LOGITS = row(2.0, 1.0, 0.5, 0.0, -0.5, 1.5, -2.0, 0.5, 1.0, -1.0)
RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "cold": {"temperature": 0.6},
    "hot": {"temperature": 1.7},
    "top_k": {"top_k": 4},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.2},
    "penalties": {"prompt": (0, 2), "answer": (5, 5, 0, 9), "repetition_penalty": 1.3, "presence_penalty": 0.5}
    | {"frequency_penalty": 0.3},
    "bias": {"bias": {0: -1.5, 6: 3.0, 5: -INF}},
    "all": {"temperature": 1.2, "top_k": 7, "top_p": 0.95, "min_p": 0.1, "bias": {3: 1.0}, "answer": (0, 0)}
    | {"frequency_penalty": 0.4},
}


def probabilities(fields: dict[str, Any]) -> list[float]:
    """The exact distribution, from the rules' words and in float64."""
    x = {i: float(value) + fields.get("bias", {}).get(i, 0.0) for i, value in enumerate(LOGITS[0])}
    answer = list(fields.get("answer", ()))
    for i in {*fields.get("prompt", ()), *answer}:
        x[i] = x[i] / fields.get("repetition_penalty", 1) if x[i] > 0 else x[i] * fields.get("repetition_penalty", 1)
    for i in set(answer):
        x[i] -= fields.get("presence_penalty", 0) + fields.get("frequency_penalty", 0) * answer.count(i)
    weight = {i: math.exp(value / fields.get("temperature", 1)) for i, value in x.items()}
    order = sorted(weight, key=lambda i: (-weight[i], i))
    order = [i for i in order if weight[i] >= fields.get("min_p", 0) * weight[order[0]]][: fields.get("top_k", 99)]
    total, reached, kept = sum(weight[i] for i in order), 0.0, []
    for i in order:
        if reached < fields.get("top_p", 1) * total:
            kept.append(i)
        reached += weight[i]
    total = sum(weight[i] for i in kept)
    return [weight[i] / total if i in kept else 0.0 for i in range(len(weight))]


def chi_square_p_value(counts: np.ndarray, expected: list[float]) -> float:
    """How likely counts at least this far from the expected ones are (Wilson and Hilferty's approximation)."""
    p = np.array(expected)
    assert not counts[p == 0].any(), "a token of probability 0 was drawn"
    n, freedom = counts.sum(), int((p > 0).sum()) - 1
    statistic = float((((counts - n * p) ** 2)[p > 0] / (n * p[p > 0])).sum())
    spread = 2 / (9 * freedom)
    return 1 - NormalDist().cdf(((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread))


def check_frequencies(draw: Any, fields: dict[str, Any], count: int, seed: int) -> None:
    tokens = draw(plan_of(count, seed=seed, **fields), LOGITS)[0]
    p_value = chi_square_p_value(np.bincount(tokens, minlength=LOGITS.shape[1]), probabilities(fields))
    least = 0.001 / (len(RULES) * len(SAMPLERS))  # Bonferroni
    assert least < p_value < 1 - least


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("name", NAMES)
def test_frequencies_follow_the_exact_distribution(name: str, rule: str) -> None:
    check_frequencies(SAMPLERS[name], RULES[rule], 20_000 if name == "reference" else 100_000, seed=2026)


@pytest.mark.slow
@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("name", NAMES)
def test_frequencies_of_a_million_draws_follow_the_exact_distribution(name: str, rule: str) -> None:
    check_frequencies(SAMPLERS[name], RULES[rule], 1_000_000, seed=11)


def test_the_frequency_test_notices_a_temperature_off_by_a_tenth() -> None:
    tokens = sampling.draw(plan_of(10_000, temperature=1.1), LOGITS)[0]
    assert chi_square_p_value(np.bincount(tokens, minlength=LOGITS.shape[1]), probabilities({})) < 1e-6


def test_frequencies_do_not_depend_on_whether_the_position_or_the_seed_moves(draw: Any) -> None:
    plan = plan_of(10_000)
    plan.positions[:] = 12
    plan.seeds[:] = np.arange(10_000)
    tokens = draw(plan, LOGITS)[0]
    assert chi_square_p_value(np.bincount(tokens, minlength=LOGITS.shape[1]), probabilities({})) > 1e-5
