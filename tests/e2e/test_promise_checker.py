"""The oracle of the promises finds what is planted: a checker that lets anything pass would hold any promise."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvik.runners.fake import fake_tokenizer
from tools.soak.asks import Ask, chat_ids, cut, make_ask, spell
from tools.soak.crowd import FINISHED, Ledger
from tools.soak.replies import StreamCheck, WrongError, check_error, check_whole

STREAM = make_ask("hello", chat=True, n=2, temperature=1.0, seed=5, stream=True, stream_options={"include_usage": True})
WHOLE = make_ask("hello", n=2, temperature=1.0, seed=5)


def usage(ask: Ask) -> dict[str, Any]:
    tokens = sum(choice.num_tokens for choice in ask.expected)
    prompt = ask.num_prompt_tokens
    details = {"cached_tokens": 0}
    counts = {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
    return counts | {"prompt_tokens_details": details}


def event(index: int, delta: dict[str, str], end: str | None = None) -> dict[str, Any]:
    return {"id": "a", "choices": [{"index": index, "delta": delta, "finish_reason": end}]}


def sound_stream() -> list[Any]:
    """A stream as it must be: two choices in two pieces each."""
    events: list[Any] = []
    for index, right in enumerate(STREAM.expected):
        events.append(event(index, {"role": "assistant", "content": ""}))
        events += [event(index, {"content": right.text[:9]}), event(index, {"content": right.text[9:]})]
        events.append(event(index, {}, right.finish_reason))
    return [*events, {"id": "a", "choices": [], "usage": usage(STREAM)}, "[DONE]"]


def check(events: list[Any]) -> None:
    stream = StreamCheck(STREAM)
    for each in events:
        stream.push(each if isinstance(each, str) else json.dumps(each))
    stream.check_end()


def test_a_sound_stream_passes() -> None:
    check(sound_stream())


@pytest.mark.parametrize("place", range(10))
def test_an_event_lost_is_found(place: int) -> None:
    events = sound_stream()
    del events[place]
    with pytest.raises(WrongError):
        check(events)


@pytest.mark.parametrize("place", range(10))
def test_an_event_repeated_is_found(place: int) -> None:
    events = sound_stream()
    events.insert(place, events[place])
    with pytest.raises(WrongError):
        check(events)


@pytest.mark.parametrize("place", [1, 2, 5, 6])
def test_an_event_of_the_other_choice_is_found(place: int) -> None:
    events = sound_stream()
    events[place]["choices"][0]["index"] ^= 1
    with pytest.raises(WrongError):
        check(events)


def test_the_beginning_of_another_answer_is_found() -> None:
    stream = StreamCheck(STREAM)
    stream.push(json.dumps(event(0, {"content": STREAM.expected[1].text[:9]})))
    with pytest.raises(WrongError, match="does not begin"):
        stream.check_beginning()


@pytest.mark.parametrize("key", ["text", "finish_reason", "prompt_tokens", "completion_tokens", "total_tokens"])
def test_a_whole_reply_with_one_thing_wrong_is_found(key: str) -> None:
    choices: list[dict[str, Any]] = [
        {"index": index, "text": right.text, "finish_reason": right.finish_reason}
        for index, right in enumerate(WHOLE.expected)
    ]
    body = {"choices": choices, "usage": usage(WHOLE)}
    check_whole(WHOLE, body)
    if key in choices[1]:
        choices[1][key] += "x"
    else:
        body["usage"][key] += 1  # type: ignore[call-overload]
    with pytest.raises(WrongError):
        check_whole(WHOLE, body)


def test_an_error_of_another_form_is_found() -> None:
    error = {"message": "", "type": "server_error", "param": None, "code": "overloaded"}
    headers = {"x-request-id": "1", "retry-after": "1"}
    assert check_error(503, headers, {"error": error}) == "overloaded"
    for status, given, body in (
        (503, {"x-request-id": "1"}, {"error": error}),
        (400, {}, {"error": error}),
        (400, headers, {"error": error, "object": "error"}),
        (400, headers, {"error": {"message": ""}}),
    ):
        with pytest.raises(WrongError):
            check_error(status, given, body)


def test_a_ledger_with_one_end_too_few_does_not_balance() -> None:
    ledger = Ledger(sent=2)
    ledger.write(WHOLE, FINISHED)
    assert ledger.problems() == ["2 requests and 1 ends"]
    ledger.write(WHOLE, FINISHED)
    assert ledger.problems() == []


def test_texts_and_conversations_are_spelled_as_the_tokenizer_does() -> None:
    tokenizer = fake_tokenizer()
    token_ids = [*range(256, 256 + 180), 5, 65]
    assert spell(token_ids) == tokenizer.decode(token_ids)
    turn = [{"role": "user", "content": "né 日"}]
    assert chat_ids("né 日") == list(tokenizer.encode_chat(turn, add_generation_prompt=True))


def test_the_earliest_stop_string_wins_and_its_tokens_count() -> None:
    ba, du, zo = (next(i for i in range(256, 500) if spell([i]) == piece) for piece in ("ba", " du", "zo"))
    found = cut([ba, du, zo, ba], frozenset(), ["duz", "a d"])
    assert (found.text, found.finish_reason, found.num_tokens) == ("b", "stop", 2)
    ended = cut([ba, du, zo], frozenset([zo]), ["o"])
    assert (ended.text, ended.finish_reason, ended.num_tokens) == ("ba du", "stop", 3)
