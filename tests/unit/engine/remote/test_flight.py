"""One request as its reader meets it: nothing lost, doubled or mixed up, however slowly it is read."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Awaitable, Callable

import pytest

from kvik.engine.remote.flight import Flight
from kvik.engine.remote.frames import Submit, Update
from kvik.engine.remote.stream import Stream
from kvik.errors import EngineError, NumericalError
from kvik.request import FinishReason, SamplingParams, TokenLogprobs


def piece(token: int, index: int = 0, end: str | None = None, **rest: object) -> Update:
    return Update("a", index, f"<{token}>", [token], finish_reason=end, **rest)  # type: ignore[arg-type]


class Reader:
    """A request, its stream, and the aborts that were asked for."""

    def __init__(self, n: int = 1, deadline_s: float | None = None) -> None:
        self.flight = Flight(Submit("a", [1], SamplingParams(n=n, deadline_s=deadline_s)), now=100.0)
        self.aborted: list[Flight] = []
        self.stream = Stream(self.flight, self.aborted.append, asyncio.get_running_loop())


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await scenario()

    asyncio.run(whole())


def test_updates_come_one_by_one_to_a_reader_that_keeps_up() -> None:
    async def scenario() -> None:
        reader = Reader()
        got: list[Update] = []

        async def read() -> None:
            async for update in reader.stream:
                got.append(update)

        task = asyncio.create_task(read())
        sent = [piece(token) for token in range(5)] + [piece(5, end="stop")]
        for update in sent:
            await asyncio.sleep(0)
            reader.flight.put(update)
            assert not reader.stream.finished
        await task
        assert got == sent
        assert reader.stream.finished

    run(scenario)


@pytest.mark.parametrize("seed", range(20))
def test_updates_that_pile_up_are_merged_per_choice(seed: int) -> None:
    async def scenario() -> None:
        rng, reader = random.Random(seed), Reader(n=3)
        texts, tokens, ends = ["", "", ""], [[], [], []], [None, None, None]
        order = [index for index in range(3) for _ in range(20)]
        rng.shuffle(order)
        left, takes = [20, 20, 20], 0

        def take() -> None:
            update = reader.flight.take()
            texts[update.index] += update.text
            tokens[update.index] += update.token_ids
            ends[update.index] = update.finish_reason

        for token, index in enumerate(order):
            left[index] -= 1
            reader.flight.put(piece(token, index, None if left[index] else "length"))
            if rng.random() < 0.1:
                take()
                takes += 1
        while reader.flight.has_updates:
            take()
            takes += 1
        expected = [[token for token, index in enumerate(order) if index == which] for which in range(3)]
        assert tokens == expected
        assert texts == ["".join(f"<{token}>" for token in each) for each in expected]
        assert ends == ["length"] * 3
        assert takes < 30

    run(scenario)


def test_merging_keeps_every_field() -> None:
    async def scenario() -> None:
        reader = Reader()
        scores: list[TokenLogprobs | None] = [None, TokenLogprobs(1, -1.0)]
        lines = [TokenLogprobs(token, -float(token)) for token in range(3)]
        reader.flight.put(piece(0, logprobs=[lines[0]], num_cached_tokens=7, prompt_logprobs=scores))
        reader.flight.put(piece(1, logprobs=[lines[1]], num_cached_tokens=7))
        reader.flight.put(piece(2, "stop", logprobs=[lines[2]], num_cached_tokens=7))  # type: ignore[arg-type]
        assert reader.flight.take() == Update(
            "a", 0, "<0><1>", [0, 1], logprobs=lines[:2], num_cached_tokens=7, prompt_logprobs=scores
        )

    run(scenario)


def test_merging_leaves_the_updates_alone() -> None:
    async def scenario() -> None:
        reader = Reader()
        first = piece(0)
        for update in (first, piece(1), piece(2)):
            reader.flight.put(update)
        assert reader.flight.take().token_ids == [0, 1, 2]
        assert first.token_ids == [0]

    run(scenario)


def test_an_error_comes_after_what_was_there_and_stays() -> None:
    async def scenario() -> None:
        reader = Reader()
        reader.flight.put(piece(0))
        reader.flight.fail(NumericalError("NaN"))
        assert (await anext(reader.stream)).token_ids == [0]
        for _ in range(2):
            with pytest.raises(NumericalError):
                await anext(reader.stream)
        assert not reader.stream.finished

    run(scenario)


def test_the_whole_comes_at_once_and_nothing_is_given_out_before() -> None:
    async def scenario() -> None:
        reader = Reader(n=2)
        task = asyncio.create_task(reader.stream.whole())
        for update in (piece(0, 1), piece(1, 0), piece(2, 1, "stop"), piece(3, 0)):
            await asyncio.sleep(0)
            reader.flight.put(update)
            assert not reader.flight.has_given
        reader.flight.put(piece(4, 0, "length"))
        assert [(u.index, u.token_ids, u.finish_reason) for u in await task] == [
            (0, [1, 3, 4], "length"),
            (1, [0, 2], "stop"),
        ]
        assert reader.stream.finished

    run(scenario)


def test_the_whole_of_a_request_that_fails_is_its_error() -> None:
    async def scenario() -> None:
        reader = Reader()
        task = asyncio.create_task(reader.stream.whole())
        await asyncio.sleep(0)
        reader.flight.put(piece(0))
        reader.flight.fail(EngineError("gone"))
        with pytest.raises(EngineError):
            await task

    run(scenario)


def test_a_cancelled_reader_aborts_the_request() -> None:
    async def scenario() -> None:
        for read in (lambda stream: anext(stream), lambda stream: stream.whole()):
            reader = Reader()
            task = asyncio.ensure_future(read(reader.stream))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert reader.aborted == [reader.flight]

    run(scenario)


def test_waiting_with_a_time_limit_aborts_nothing_and_takes_nothing() -> None:
    async def scenario() -> None:
        reader = Reader()
        assert await reader.stream.wait(0.001) is False
        assert reader.aborted == []
        reader.flight.put(piece(0))
        assert await reader.stream.wait(0.001) is True
        assert not reader.flight.has_given
        assert (await anext(reader.stream)).token_ids == [0]
        reader.flight.put(piece(1, end="stop"))
        await anext(reader.stream)
        assert await reader.stream.wait(0.001) is True
        with pytest.raises(StopAsyncIteration):
            await anext(reader.stream)

    run(scenario)


def test_leaving_the_context_aborts_and_drops_what_comes_after() -> None:
    async def scenario() -> None:
        reader = Reader()
        async with reader.stream as stream:
            reader.flight.put(piece(0))
            await anext(stream)
        assert reader.aborted == [reader.flight]
        reader.flight.put(piece(1, end="abort"))
        assert not reader.flight.has_updates
        assert reader.flight.is_over

    run(scenario)


def test_a_stream_that_nobody_holds_is_aborted() -> None:
    async def scenario() -> None:
        reader = Reader()
        del reader.stream
        gc.collect()
        assert reader.aborted == []  # from whichever thread collects, the loop does it
        await asyncio.sleep(0)
        assert reader.aborted == [reader.flight]

        finished = Reader()
        finished.flight.put(piece(0, end="stop"))
        del finished.stream
        await asyncio.sleep(0)
        assert finished.aborted == []

    run(scenario)


def test_a_stream_outlives_its_loop_quietly() -> None:
    async def scenario() -> Reader:
        return Reader()

    reader = asyncio.run(scenario())
    del reader.stream
    assert reader.aborted == []


def test_one_reader_at_a_time() -> None:
    async def scenario() -> None:
        reader = Reader()
        task = asyncio.ensure_future(anext(reader.stream))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="two tasks"):
            await anext(reader.stream)
        reader.flight.put(piece(0))
        assert (await task).token_ids == [0]

    run(scenario)


def test_a_request_that_no_engine_has_ends_by_itself() -> None:
    async def scenario() -> None:
        reader = Reader(n=2)
        reader.flight.end(FinishReason.ABORT)
        assert [(u.index, u.finish_reason, u.token_ids) for u in await reader.stream.whole()] == [
            (0, "abort", []),
            (1, "abort", []),
        ]

    run(scenario)


def test_time_in_hand_counts_for_the_deadline() -> None:
    async def scenario() -> None:
        flight = Reader(deadline_s=5.0).flight
        assert flight.due_submit(100.0) is flight.submit
        assert flight.due_submit(103.0).params.deadline_s == pytest.approx(2.0)
        assert flight.due_submit(103.0).token_ids == flight.submit.token_ids
        assert flight.due_submit(200.0).params.deadline_s == pytest.approx(0.001)
        assert (flight.is_overdue(104.9), flight.is_overdue(105.0)) == (False, True)
        forever = Reader().flight
        assert forever.due_submit(1e9) is forever.submit
        assert not forever.is_overdue(1e9)

    run(scenario)


def test_a_rewound_request_forgets_what_came() -> None:
    async def scenario() -> None:
        reader = Reader(n=2)
        reader.flight.number = 3
        reader.flight.put(piece(0, 0, "stop"))
        reader.flight.rewind()
        assert reader.flight.number is None
        assert not reader.flight.has_updates
        reader.flight.put(piece(9, 1, "stop"))
        assert not reader.flight.is_over
        reader.flight.put(piece(9, 0, "stop"))
        assert reader.flight.is_over

    run(scenario)
