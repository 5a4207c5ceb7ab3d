"""Promises 5 and 6 over HTTP, for a moment: one text in every form, and stop strings that stand in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from promises import hold

from tools.soak.asks import cut, spell
from tools.soak.crowd import FINISHED
from tools.soak.server import OwnServer
from tools.soak.words import stops, texts


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    with OwnServer() as running:
        yield running


def test_a_stream_a_whole_reply_and_the_bytes_of_tokens_are_one_text(server: OwnServer) -> None:
    assert hold(server, texts, 100).figures["characters"] > 1000


def test_stop_strings_in_the_answer_are_found_and_counted(server: OwnServer) -> None:
    assert hold(server, stops, 200).ledger.ends[FINISHED] == 200


def test_the_oracle_waits_for_a_stop_string_that_began_earlier() -> None:
    ba, du, zo = (next(i for i in range(256, 500) if spell([i]) == piece) for piece in ("ba", " du", "zo"))
    waits = cut([ba, du, zo, ba], frozenset(), ["du", " duzo"])
    assert (waits.text, waits.num_tokens) == ("ba", 3)
    in_vain = cut([ba, du, ba, zo], frozenset(), ["du", " duzo"])
    assert (in_vain.text, in_vain.num_tokens) == ("ba ", 3)
    at_the_end = cut([ba, du], frozenset(), ["du", " duzo"])
    assert (at_the_end.text, at_the_end.finish_reason, at_the_end.num_tokens) == ("ba ", "stop", 2)
