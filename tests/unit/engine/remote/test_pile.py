"""What has piled up for a reader that is late: small, in order, and given out in pieces that are small as well."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from fakes import fake_engine

from kvik.engine.remote.flight import Flight
from kvik.engine.remote.frames import Submit, Update
from kvik.engine.remote.pile import PIECE_TOKENS, PackedLogprobs, Pile
from kvik.engine.remote.updates import Updates
from kvik.request import Logprob, SamplingParams, TokenLogprobs


def entry(token: int, top: int = 20) -> TokenLogprobs:
    return TokenLogprobs(token, -token / 7, tuple(Logprob(token + n, -n / 3) for n in range(top)))


def piece(token: int, end: str | None = None, top: int = 20) -> Update:
    return Update("a", 0, f"<{token}>", [token], [entry(token, top)], finish_reason=end)


def pile_of(count: int) -> Pile:
    pile = Pile(piece(0), piece(1))
    for token in range(2, count):
        pile.add(piece(token, "stop" if token == count - 1 else None))
    return pile


@pytest.mark.parametrize("seed", range(5))
def test_packed_logprobs_are_the_same_when_unpacked(seed: int) -> None:
    rng = random.Random(seed)
    entries = [entry(rng.randrange(2**31), rng.randrange(21)) for _ in range(50)]
    packed = PackedLogprobs()
    for at in range(0, 50, 10):
        packed.add(entries[at : at + 10])
    assert packed.unpacked() == entries
    assert len(packed) == 50


def test_a_pile_takes_as_much_memory_as_it_says_and_a_tenth_of_the_updates() -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        updates = [piece(1000 + token) for token in range(1000)]
        loose = tracemalloc.get_traced_memory()[0] - before
        pile = Pile(updates[0], updates[1])
        for update in updates[2:]:
            pile.add(update)
        del updates, update
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert taken < loose / 4
    assert taken / 2 < pile.num_bytes < 2 * taken


def test_pieces_are_small_and_together_the_whole() -> None:
    pile, taken = pile_of(100), list[Update]()
    while pile:
        taken.append(pile.take())
    assert max(len(each.token_ids) for each in taken) == PIECE_TOKENS
    assert [token for each in taken for token in each.token_ids] == list(range(100))
    assert "".join(each.text for each in taken) == "".join(f"<{token}>" for token in range(100))
    assert [line for each in taken for line in each.logprobs or ()] == [entry(token) for token in range(100)]
    assert [each.finish_reason for each in taken] == [None] * (len(taken) - 1) + ["stop"]


def test_the_whole_can_be_had_as_one() -> None:
    whole = pile_of(50).take(whole=True)
    assert whole.token_ids == list(range(50))
    assert whole.logprobs == [entry(token) for token in range(50)]
    assert (whole.text.count("<"), whole.finish_reason) == (50, "stop")


def test_text_alone_is_one_piece_however_long() -> None:
    pile = Pile(Update("a", 0, "a", [1]), Update("a", 0, "b", [2]))
    for _ in range(1000):
        pile.add(Update("a", 0, "c", [3]))
    assert len(pile.take().token_ids) == 1002
    assert not pile


def test_whoever_set_a_bound_is_told_of_every_update_beyond_it_and_no_other() -> None:
    flight, told = Flight(Submit("a", [1], SamplingParams()), now=0.0), list[int]()
    flight.bound(20_000, lambda: told.append(flight.kept_bytes))
    for token in range(200):
        flight.put(piece(token))
    assert told == sorted(told)
    assert told[0] > 20_000
    assert told[0] - 20_000 < 3000
    many = len(told)
    while flight.has_updates:
        flight.take()
    flight.put(piece(300))
    flight.put(piece(301))
    assert (flight.kept_bytes > 0, len(told)) == (True, many)


def test_an_engine_keeps_no_logprobs_that_were_told() -> None:
    engine, updates = fake_engine(), Updates()
    params = SamplingParams(temperature=0, max_tokens=6, logprobs=3, ignore_eos=True)
    engine.add([5, 6, 7], params, request_id="a", stream=True)
    told = 0
    while engine.has_unfinished():
        for answer in engine.step():
            told += sum(len(update.logprobs or ()) for update in updates.take(answer))
            assert answer.first.logprobs == []
    assert told == 6
