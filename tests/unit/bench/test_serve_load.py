"""Loads: when requests are due, what is measured from when, and what the figures are made of."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from kvik.bench.serve.arrivals import closed, draw_lengths, poisson, read_trace
from kvik.bench.serve.asks import Ask, Form, Spelling, make_ask, make_prompt
from kvik.bench.serve.figures import Slo, percentile, run_figures, spread
from kvik.bench.serve.load import Load, failure_of, record_of
from kvik.bench.serve.replies import LoadError, Reply
from kvik.bench.serve.target import Target
from kvik.errors import ConfigError

TRACE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.6805900,396,109
2023-11-16 18:15:50.7805900,8790,550
"""


def ask_of(index: int, offset_s: float | None = None) -> Ask:
    return Ask(index, offset_s, 8, 4, b"")


def reply_of(*times: float, finish: float, tokens: int | None = None) -> Reply:
    reply = Reply()
    reply.text_times, reply.finish_time, reply.finish_reason = list(times), finish, "stop"
    reply.input_tokens, reply.output_tokens = 8, tokens
    return reply


class Answering:
    """Stands in for a pool: every request waits for its turn, then is answered at once on a clock that tests move."""

    def __init__(self) -> None:
        self.now = 100.0
        self.inside = self.most_inside = self.asked = 0
        self.may_answer = asyncio.Semaphore(0)

    def clock(self) -> float:
        return self.now

    async def ask(self, data: bytes) -> Reply:
        self.asked += 1
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        await self.may_answer.acquire()
        self.inside -= 1
        if data == b"bad":
            raise LoadError("http 503", "busy")
        return reply_of(self.now, finish=self.now, tokens=1)


def test_a_closed_loop_has_as_many_requests_at_once_as_clients() -> None:
    async def run() -> Any:
        pool = Answering()
        playing = asyncio.ensure_future(Load(pool).closed([ask_of(index) for index in range(10)], 3))
        for answered in range(10):
            while pool.asked < min(10, answered + 3):
                await asyncio.sleep(0)
            pool.may_answer.release()
        return pool, await playing

    pool, played = asyncio.run(run())
    assert (pool.asked, pool.most_inside) == (10, 3)
    assert [record["id"] for record in played.records] == list(range(10))


def test_time_counts_from_when_a_request_was_due() -> None:
    """The client is held up for 5 s before it can send what is due: whoever asked has waited for 5 s."""

    async def run() -> Any:
        pool = Answering()
        load = Load(pool)
        playing = asyncio.ensure_future(load.open([ask_of(0, 0.0), ask_of(1, 0.0)]))
        await asyncio.sleep(0)
        pool.now += 5.05
        while pool.asked < 2:
            await asyncio.sleep(0)
        pool.may_answer.release()
        pool.may_answer.release()
        return await playing

    played = asyncio.run(run())
    for record in played.records:
        assert record["ttft_us"] == record["e2e_us"] == record["late_us"] == 5_000_000, (
            "5.05 s, of which 0.05 were planned"
        )


def test_an_open_loop_does_not_wait_for_answers() -> None:
    async def run() -> Any:
        pool = Answering()
        playing = asyncio.ensure_future(Load(pool).open([ask_of(index, 0.0) for index in range(50)]))
        await asyncio.sleep(0)
        pool.now += 1
        while pool.asked < 50:
            await asyncio.sleep(0)
        assert pool.inside == 50, "all are sent before any is answered"
        for _ in range(50):
            pool.may_answer.release()
        return await playing

    assert len(asyncio.run(run()).records) == 50


def test_failures_have_a_record_too() -> None:
    async def run() -> Any:
        pool, seen = Answering(), []
        for _ in range(2):
            pool.may_answer.release()
        asks = [ask_of(0), Ask(1, None, 8, 4, b"bad")]
        return await Load(pool, seen.append).closed(asks, 1), seen

    played, seen = asyncio.run(run())
    assert [record.get("error") for record in played.records] == [None, "http 503"]
    assert len(seen) == 2
    figures = run_figures(played.records, 1.0, Slo(1.0, None))
    assert (figures["sent"], figures["succeeded"], figures["errors"]) == (2, 1, {"http 503": 1})
    assert figures["goodput"]["share"] == 0.5, "what failed is not good"


def test_a_record_is_made_of_moments() -> None:
    record = record_of(ask_of(3), 10.0, 10.001, reply_of(10.1, 10.15, 10.3, finish=10.4, tokens=4), 9.0)
    assert (record["due_us"], record["late_us"], record["ttft_us"], record["e2e_us"]) == (10**6, 1000, 10**5, 4 * 10**5)
    assert record["events_us"] == [100_000, 150_000, 300_000]
    assert record["tpot_us"] == pytest.approx(100_000), "three tokens after the first, in 0.3 s"
    alone = record_of(ask_of(0), 0.0, 0.0, reply_of(0.5, finish=0.5, tokens=1), 0.0)
    assert alone["tpot_us"] is None
    silent = record_of(ask_of(0), 0.0, 0.0, reply_of(finish=0.7, tokens=3), 0.0)
    assert silent["ttft_us"] == 700_000, "no text before the end"
    unsaid = record_of(ask_of(0), 0.0, 0.0, reply_of(0.5, 0.6, finish=0.7), 0.0)
    assert (unsaid["output_tokens"], unsaid["counted"]) == (2, False), "the server stated no usage"


def test_percentiles_lie_between_values() -> None:
    assert [percentile([1.0, 2.0, 3.0, 4.0], each) for each in (0, 50, 100)] == [1.0, 2.5, 4.0]
    found = spread([1000.0 * value for value in range(1, 102)])
    assert found is not None
    assert (found["p50"], found["p90"], found["p99"], found["max"]) == (51.0, 91.0, 100.0, 101.0)
    assert spread([]) is None


def test_figures_of_a_run() -> None:
    """Two requests, one of them slow: it is what the SLO leaves out."""
    quick = record_of(ask_of(0), 0.0, 0.0, reply_of(0.1, 0.2, finish=0.2, tokens=2), 0.0)
    slow = record_of(ask_of(1), 0.0, 0.0, reply_of(0.9, 1.9, finish=2.0, tokens=2), 0.0)
    figures = run_figures([quick, slow], 2.0, Slo(ttft_ms=500, tpot_ms=None))
    assert (figures["tokens"], figures["tokens_per_s"], figures["requests_per_s"]) == (4, 2.0, 1.0)
    assert figures["goodput"] == {"share": 0.5, "requests_per_s": 0.5, "tokens_per_s": 1.0}
    assert figures["itl_ms"]["count"] == 2
    assert figures["mean_in_flight"] == pytest.approx(1.1), "0.2 s and 2 s of requests in 2 s"
    assert run_figures([quick], 1.0, Slo())["goodput"] is None
    assert run_figures([quick, slow], 2.0, Slo(tpot_ms=500))["goodput"]["share"] == 0.5


def test_failed_requests_have_times_and_no_tokens() -> None:
    failed = failure_of(ask_of(0), 1.0, 1.2, 1.5, 0.5, LoadError("cut", "gone"))
    assert (failed["due_us"], failed["late_us"], failed["e2e_us"]) == (500_000, 200_000, 500_000)
    assert (failed["error"], failed["said"]) == ("cut", "cut: gone")


def test_poisson_arrivals_come_at_their_rate_and_are_the_same_for_a_seed() -> None:
    lengths = draw_lengths(4000, (1, 9), (2, 3), 7)
    arrivals = poisson(lengths, 50.0, 7)
    last = arrivals[-1].offset_s
    assert last is not None
    assert arrivals[0].offset_s == 0.0
    assert 0.9 < last * 50 / 4000 < 1.1
    assert arrivals == poisson(lengths, 50.0, 7) != poisson(lengths, 50.0, 8)
    assert {each.input_len for each in arrivals} == set(range(1, 10))
    assert {each.offset_s for each in closed(lengths)} == {None}


def test_a_trace_is_replayed_faster_and_cut(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    trace = read_trace(path, count=10, speed_up=2.0, max_input=1000, max_output=100)
    assert [each.offset_s for each in trace.arrivals] == [0.0, 2.0, 2.05]
    assert [(each.input_len, each.output_len) for each in trace.arrivals] == [(374, 44), (396, 100), (1000, 100)]
    assert trace.clipped == 2
    assert len(read_trace(path, count=2, speed_up=1.0).arrivals) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "is no trace"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "holds no request"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nnow,1,2\n", "line 2"),
        (TRACE + "2023-11-16 18:15:51.0000000,0,2\n", "line 5: 0 tokens in"),
        (TRACE + "2022-11-16 18:15:51.0000000,1,2\n", "line 5: it comes before"),
    ],
)
def test_what_is_no_trace_is_refused_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_trace(path, count=10, speed_up=1.0)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(tmp_path / "none.csv", count=1, speed_up=1.0)


def test_words_are_spelled_in_as_many_tokens_as_the_server_counts() -> None:
    spelling = Spelling.of_probes(90, 330)
    assert (spelling.per_word, spelling.fixed) == (2.0, 10.0)
    assert spelling.words(210) == 100
    assert spelling.words(3) == 1
    assert Spelling.of_probes(None, None) == Spelling() == Spelling.of_probes(5, 5)


def test_prompts_are_drawn_by_seed_and_share_only_what_is_asked_for() -> None:
    form, spelling = Form("m", shared_words=3), Spelling(1.0, 0.0)
    first, second = (str(make_prompt(form, spelling, index, 20)).split() for index in range(2))
    assert len(first) == len(second) == 20
    assert first[:3] == second[:3]
    assert first[3:] != second[3:]
    assert make_prompt(Form("m"), spelling, 0, 20) != make_prompt(Form("m", seed=1), spelling, 0, 20)
    ids = make_prompt(Form("m", top_token=5), spelling, 0, 300)
    assert len(ids) == 300
    assert set(ids) == set(range(6))


def test_a_request_asks_for_what_is_measured() -> None:
    target = Target("h", 1)
    ask = make_ask(target, Form("m", ignore_eos=True), Spelling(), 4, 1.5, (10, 20))
    assert (ask.index, ask.offset_s, ask.input_len, ask.output_len) == (4, 1.5, 10, 20)
    head, _, body = ask.data.partition(b"\r\n\r\n")
    assert b"POST /v1/completions" in head
    assert f"Content-Length: {len(body)}".encode() in head
    for said in (b'"include_usage":true', b'"max_tokens":20', b'"ignore_eos":true', b'"temperature":0.0'):
        assert said in body
    chat = Form("m", chat=True, stream=False)
    assert chat.path == "/chat/completions"
    assert "stream" not in chat.body("hi", 1)
    assert chat.body("hi", 1)["messages"] == [{"role": "user", "content": "hi"}]
