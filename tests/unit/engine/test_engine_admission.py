"""What a model cannot serve is refused on arrival, by name, value and limit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from kvik.engine.admission import Admission, splitmix64
from kvik.errors import ContextLengthError, InvalidRequestError
from kvik.request import SamplingParams

ADMISSION = Admission(vocab_size=100, max_model_len=20, eos_ids=(2, 3, 100), seed=7)
PLAIN = SamplingParams()


@pytest.mark.parametrize(
    ("prompt", "params", "error", "param", "parts"),
    [
        ([], PLAIN, InvalidRequestError, "prompt", ["empty", "at least 1"]),
        ((), PLAIN, InvalidRequestError, "prompt", ["empty"]),
        (
            [1] * 20,
            PLAIN,
            ContextLengthError,
            "prompt",
            ["This model's maximum context length is 20 tokens", "has 20 tokens", "at most 19", "max_model_len"],
        ),
        ([1] * 10**6, PLAIN, ContextLengthError, "prompt", ["1000000 tokens", "at most 19"]),
        ([5, 100], PLAIN, InvalidRequestError, "prompt", ["100", "0 to 99", "vocabulary"]),
        ([5, -1], PLAIN, InvalidRequestError, "prompt", ["-1", "0 to 99"]),
        ([2**63], PLAIN, InvalidRequestError, "prompt", [str(2**63)]),
        ([1.5], PLAIN, InvalidRequestError, "prompt", ["1.5"]),
        ([True, 1], PLAIN, InvalidRequestError, "prompt", ["True"]),
        ([1, "a"], PLAIN, InvalidRequestError, "prompt", ["'a'"]),
        ([1, None], PLAIN, InvalidRequestError, "prompt", ["None"]),
        ([1, [2]], PLAIN, InvalidRequestError, "prompt", ["[2]"]),
        ("text", PLAIN, InvalidRequestError, "prompt", ["'text'", "list of token ids"]),
        (None, PLAIN, InvalidRequestError, "prompt", ["None", "list of token ids"]),
        ([1], SamplingParams(stop_token_ids=(100,)), InvalidRequestError, "stop_token_ids", ["100", "0 to 99"]),
        ([1], SamplingParams(logit_bias={100: 1.0}), InvalidRequestError, "logit_bias", ["100", "0 to 99"]),
        (
            [1] * 10,
            SamplingParams(max_tokens=None, min_tokens=11),
            ContextLengthError,
            "min_tokens",
            ["11", "10 tokens", "at most 10", "20"],
        ),
    ],
)
def test_refused(prompt: Any, params: SamplingParams, error: type[Exception], param: str, parts: list[str]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        ADMISSION.request(0, 0, prompt, params)
    assert type(caught.value) is error
    assert caught.value.param == param
    for part in parts:
        assert part in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("prompt", [[0, 99], (0, 99), np.array([0, 99], np.int32)])
def test_lists_tuples_and_arrays_are_prompts_and_are_copied(prompt: Any) -> None:
    request = ADMISSION.request(4, 9, prompt, PLAIN, priority=1, salt=b"s")
    assert request.tokens == [0, 99]
    assert request.tokens is not prompt
    assert (request.key, request.arrival, request.priority, request.salt) == (4, 9, 1, b"s")


@pytest.mark.parametrize(("max_tokens", "total"), [(5, 8), (17, 20), (1000, 20), (None, 20)])
def test_the_answer_is_cut_to_what_the_model_holds(max_tokens: int | None, total: int) -> None:
    assert ADMISSION.request(0, 0, [1, 2, 3], SamplingParams(max_tokens=max_tokens)).max_total_tokens == total


def test_stop_ids_are_the_models_and_the_requests() -> None:
    params = SamplingParams(stop_token_ids=(5,))
    assert ADMISSION.request(0, 0, [1], params).stop_ids == {2, 3, 5}
    assert ADMISSION.request(0, 0, [1], SamplingParams(stop_token_ids=(5,), ignore_eos=True)).stop_ids == {5}


def test_seeds_are_64_bit_and_scattered() -> None:
    assert ADMISSION.request(0, 0, [1], SamplingParams(seed=-1)).seed == 2**64 - 1
    seeds = [ADMISSION.request(0, arrival, [1], PLAIN).seed for arrival in range(100)]
    assert len(set(seeds)) == 100
    assert min(bin(a ^ b).count("1") for a, b in itertools.pairwise(seeds)) > 8


def test_splitmix64_is_the_published_generator() -> None:
    """The first outputs for seed 1234567, as published with the generator."""
    state, outputs = 1234567, []
    for _ in range(3):
        outputs.append(splitmix64(state))
        state = (state + 0x9E3779B97F4A7C15) % 2**64
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]
