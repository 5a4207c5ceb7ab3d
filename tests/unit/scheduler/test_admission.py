"""What is refused on arrival, with the numbers, and that what just fits is not."""

from __future__ import annotations

import pytest
from scheduler_toys import new_request, new_scheduler, step

from kvik.errors import ContextLengthError, InvalidRequestError, KvikError


def test_a_prompt_as_long_as_the_model_is_refused() -> None:
    scheduler = new_scheduler(max_model_len=10)
    with pytest.raises(
        ContextLengthError, match=r"prompt has 10 tokens; expected at most 9.*max_model_len.* 10"
    ) as info:
        scheduler.add(new_request(0, 10))
    assert info.value.param == "prompt"
    assert not scheduler.has_unfinished()
    scheduler.add(new_request(0, 9))


def test_a_prompt_that_fills_the_pool_is_refused() -> None:
    scheduler = new_scheduler(num_blocks=2, block_size=4)
    with pytest.raises(ContextLengthError, match=r"prompt has 8 tokens; expected at most 7.*2 blocks of 4 tokens"):
        scheduler.add(new_request(0, 8))
    scheduler.add(new_request(0, 7))
    assert step(scheduler)[1][0].finish_reason == "length"


def test_the_answer_is_cut_to_what_model_and_pool_hold() -> None:
    for num_blocks, max_model_len, expected in ((2, 64, 8), (16, 6, 6), (16, 64, 12)):
        scheduler = new_scheduler(num_blocks=num_blocks, block_size=4, max_model_len=max_model_len)
        request = new_request(0, 3, total=12)
        scheduler.add(request)
        while scheduler.has_unfinished():
            step(scheduler)
        assert len(request.tokens) == request.max_total_tokens == expected


def test_more_choices_than_rows_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="n is 4; expected at most max_num_seqs, which is 3") as info:
        new_scheduler(max_num_seqs=3).add(new_request(0, 2, n=4))
    assert info.value.param == "n"


def test_an_empty_prompt_and_no_room_for_an_answer_are_refused() -> None:
    scheduler = new_scheduler()
    with pytest.raises(InvalidRequestError, match="prompt has 0 tokens"):
        scheduler.add(new_request(0, 0))
    with pytest.raises(InvalidRequestError, match="max_total_tokens is 5; expected more than the 5"):
        scheduler.add(new_request(0, 5, total=5))


def test_a_key_in_use_is_refused_and_a_reserved_one_too() -> None:
    scheduler = new_scheduler()
    scheduler.add(new_request(4, 2, n=3))
    for key, n in ((4, 1), (6, 1), (3, 2)):
        with pytest.raises(ValueError, match="key is") as info:
            scheduler.add(new_request(key, 2, n=n))
        assert isinstance(info.value, KvikError)
    scheduler.add(new_request(7, 2))
    assert scheduler.num_waiting == 2
