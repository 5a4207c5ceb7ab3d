"""What a body costs to decode: too much is refused before it is decoded, text is cheap, and no cut hides anything."""

from __future__ import annotations

import json
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvik.server.protocol import effort
from kvik.server.protocol.decode import decode_body
from kvik.server.protocol.effort import MOST, is_too_much
from kvik.server.protocol.errors import ApiError

KINDS = {
    "small numbers": (b"1,", 800_000),
    "token ids": (b"151643,", 500_000),
    "fractions": (b"1.5,", 400_000),
    "powers": (b"1e5,", 400_000),
    "long numbers": (b"1234567890123456789012345,", 200_000),
    "strings": (b'"ab",', 190_000),
    "escaped strings": (b'"a\\"",', 190_000),
    "words": (b"true,", 390_000),
    "lists": (b"[],", 100_000),
    "objects": (b"{},", 100_000),
    "keys": (b'{"a":1},', 40_000),
}


def listed(unit: bytes, count: int) -> bytes:
    return b'{"prompt":[' + unit * count + b"0]}"


@pytest.mark.parametrize("kind", KINDS)
def test_so_many_values_are_taken_and_decoded_in_a_moment_and_twice_as_many_are_not(kind: str) -> None:
    """The time is this thread's own, and the decoder's hundredfold allowance is for slow machines."""
    unit, count = KINDS[kind]
    body = listed(unit, count)
    started = time.thread_time()
    decode_body(body)
    assert time.thread_time() - started < 5.0
    with pytest.raises(ApiError, match="than are taken at a time") as caught:
        decode_body(listed(unit, 2 * count))
    assert caught.value.status == 400


def test_different_keys_of_one_object_are_counted_as_the_costly_things_they_are() -> None:
    body = json.dumps({str(n): 1 for n in range(50_000)}).encode()
    assert len(decode_body(body)) == 50_000
    with pytest.raises(ApiError, match="than are taken"):
        decode_body(json.dumps({str(n): 1 for n in range(120_000)}).encode())


@pytest.mark.parametrize(
    "text", ["a", ",", "[{", '"', "\\", '\\"', "\n", "é", "日", "👩", "1,", ':"', "e.E"], ids=lambda text: repr(text)
)
@pytest.mark.parametrize("ascii", [True, False])
def test_text_is_cheap_whatever_is_in_it(text: str, ascii: bool) -> None:
    long = text * (2**21 // len(json.dumps(text, ensure_ascii=ascii)))
    assert decode_body(json.dumps({"prompt": long}, ensure_ascii=ascii).encode()) == {"prompt": long}


def test_what_hides_behind_quotes_and_backslashes_is_found() -> None:
    hidden = b"1," * MOST
    for before in (b"", b'""', b'"\\\\"', b'"\\""', b'"\\\\\\""', b'"' + b"\\" * (2 * effort.PIECE) + b'"'):
        assert is_too_much(before + hidden), before[:9]
    assert not is_too_much(b'"' + hidden)
    assert not is_too_much(b'"\\"' + hidden)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text('a"\\,:[{\n'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('a"\\'), inner),
)


@settings(deadline=None)
@given(values, st.integers(1, 9))
def test_where_a_body_is_cut_for_counting_makes_no_difference(value: object, size: int) -> None:
    body = json.dumps(value).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(effort, "PIECE", size)
        patch.setattr(effort, "BYTES_PER_UNIT", 1)
        patch.setattr(effort, "ESCAPES_PER_UNIT", 1)
        units, inside, at = 0, False, 0
        while at < len(body):
            end = effort._end_of_piece(body, at)
            cost, inside = effort._effort(body[at:end], inside)
            units, at = units + cost, end
        assert (units, inside) == effort._effort(body, False)
        assert not inside


def test_any_bytes_are_counted_without_a_fault() -> None:
    rng = random.Random(1)
    for _ in range(200):
        is_too_much(bytes(rng.choices(b'"\\[]{},:1e \xff', k=rng.randrange(300))))
