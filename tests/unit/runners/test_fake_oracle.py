"""What the fake model answers: readable, as long as it was told, and a function of all that it may depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kvik.checkpoint import fake
from kvik.checkpoint.fake import FakeOptions
from kvik.runners.fake import fake_answer, fake_logprob, fake_tokenizer
from kvik.runners.fake.hashing import key_of, keys_of, mix, mix_all, weight_of, weights_of
from kvik.runners.fake.oracle import END_IDS, Context, masked_token, next_token
from kvik.step import as_int32

PROMPT = list(b"Tell me something.")
TOKENIZER = fake_tokenizer()


def text_of(answer: list[int]) -> str:
    return TOKENIZER.decode(answer)


def test_the_tokenizer_and_the_checkpoint_agree_on_the_vocabulary() -> None:
    assert TOKENIZER.vocab_size == fake.VOCAB_SIZE
    assert TOKENIZER.eos_ids == (fake.IM_END, fake.END_OF_TEXT)
    assert TOKENIZER.token_bytes(fake.IM_START) == b"<|im_start|>"
    assert tuple(TOKENIZER.token_bytes(fake.FIRST_PIECE + i) for i in range(len(fake.PIECES))) == fake.PIECES


def test_numbers_are_the_same_one_by_one_and_in_arrays() -> None:
    states = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)
    assert mix_all(states).tolist() == [mix(state) for state in states.tolist()]
    tokens, positions = as_int32([0, 452, 7]), as_int32([0, 2**20, 5])
    pairs = zip(tokens.tolist(), positions.tolist(), strict=True)
    assert keys_of(tokens, positions).tolist() == [key_of(token, position) for token, position in pairs]
    assert weights_of(np.arange(5)).tolist() == [weight_of(position) for position in range(5)]
    assert mix(0) == 0xE220A8397B1DCDAF, "the first output of SplitMix64 with seed 0"


def test_the_answer_never_changes_between_versions() -> None:
    assert text_of(fake_answer(PROMPT, 8)) == "go日本 fe fe ko velima"


def test_an_answer_begins_alike_however_far_it_is_followed() -> None:
    whole = fake_answer(PROMPT, 1000)
    assert [fake_answer(PROMPT, count) for count in range(len(whole))] == [whole[:n] for n in range(len(whole))]
    assert whole[-1] == fake.IM_END
    assert not END_IDS & set(whole[:-1])


@pytest.mark.parametrize("text", ["ascii", "mixed"])
def test_answers_are_readable(text: str) -> None:
    options = FakeOptions(text=text)
    answers = [text_of(fake_answer(list(b"question %d" % number), 1000, options=options)) for number in range(300)]
    assert not any("\ufffd" in answer for answer in answers)
    assert all(char.isprintable() or char in "\n\u200d" for char in "".join(answers))
    assert "".join(answers).isascii() == (text == "ascii")
    assert text == "ascii" or any(0x1F600 <= ord(char) < 0x1F610 for char in "".join(answers))
    assert len(set(answers)) == 300


@pytest.mark.parametrize(("low", "high"), [(1, 200), (0, 3), (64, 64), (0, 0)])
def test_an_answer_is_as_long_as_it_was_told(low: int, high: int) -> None:
    options = FakeOptions(length=(low, high))
    lengths = {len(fake_answer([number], 1000, options=options)) - 1 for number in range(256)}
    assert low <= min(lengths) <= low + 10
    assert high - 10 <= max(lengths) <= high
    unending = fake_answer(PROMPT, 500, options=options, stop_ids=frozenset())
    assert len(unending) == 500


def test_a_token_depends_on_every_token_before_it_and_on_their_order() -> None:
    prompts = [[*PROMPT[:i], PROMPT[i] ^ 1, *PROMPT[i + 1 :]] for i in range(len(PROMPT))]
    prompts += [PROMPT[:-1], PROMPT[1:], [*PROMPT, 0], [0, *PROMPT], PROMPT[::-1], PROMPT]
    answers = {tuple(fake_answer(prompt, 8, stop_ids=frozenset())) for prompt in prompts}
    assert len(answers) == len(prompts)


def test_a_seed_counts_above_temperature_0_only() -> None:
    answers = {tuple(fake_answer(PROMPT, 1000, seed=seed)) for seed in [*range(20), None]}
    assert len(answers) == 21
    assert len({len(answer) for answer in answers}) > 10, "choices differ in length, too"
    assert fake_answer(PROMPT, 50, seed=-1) == fake_answer(PROMPT, 50, seed=2**64 - 1)


def test_min_tokens_keeps_an_answer_from_ending() -> None:
    options = FakeOptions(length=(3, 3))
    assert len(fake_answer(PROMPT, 50, options=options)) == 4
    longer = fake_answer(PROMPT, 50, options=options, min_tokens=10)
    assert longer[:3] == fake_answer(PROMPT, 3, options=options)
    assert len(longer) == 11
    assert longer[-1] == fake.IM_END


def test_the_next_allowed_token_takes_the_place_of_a_banned_one() -> None:
    options, context, banned = FakeOptions(), Context(digest=5), set[int]()
    while (token := next_token(context, 0, options, banned)) >= 0:
        assert token not in banned
        banned.add(token)
    assert banned == set(range(fake.VOCAB_SIZE))


def test_a_masked_draw_is_one_of_the_allowed_and_sometimes_closes() -> None:
    allowed = sorted([*b'{}"ab', 300, fake.IM_END])
    drawn = [masked_token(Context(digest=mix(i)), 0, allowed) for i in range(400)]
    assert set(drawn) == {*b"{ab", 300, fake.IM_END}
    assert 60 < drawn.count(fake.IM_END) < 140
    assert masked_token(Context(), 0, [*b'"}']) == ord('"')
    assert masked_token(Context(), 0, [7]) == 7
    assert masked_token(Context(), 0, []) == -1
    assert len({masked_token(Context(digest=1), key, list(range(256))) for key in range(50)}) > 20


def test_logprobs_are_a_distribution_with_the_greedy_token_on_top() -> None:
    for prompt in (PROMPT, [1], fake_answer(PROMPT, 30)):
        values = [fake_logprob(prompt, token) for token in range(fake.VOCAB_SIZE)]
        assert sum(map(math.exp, values)) == pytest.approx(1)
        assert values.index(max(values)) == fake_answer(prompt, 1)[0]
        assert math.log(0.5) <= max(values) < math.log(0.9)
    assert fake_logprob(PROMPT, 5) != fake_logprob(PROMPT[1:], 5)
