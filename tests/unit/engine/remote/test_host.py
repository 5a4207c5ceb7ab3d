"""The host, over a channel that a test plays: what is asked is answered, once, in order, and idling costs nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import NAN, POISON, FakeClock, FakeRunner, byte_tokenizer, expected_answer, fake_engine

from kvik import LLM, SamplingParams
from kvik.engine.engine import Engine
from kvik.engine.remote.channel import ChannelClosedError, FrameTooLargeError, FrameWriter
from kvik.engine.remote.frames import (
    Abort,
    AskStats,
    Beat,
    Close,
    Command,
    Event,
    Failed,
    LoadFailed,
    ModelInfo,
    Moved,
    Stats,
    Step,
    Submit,
    Update,
    Watch,
    rebuilt,
)
from kvik.engine.remote.host import Host, prepare_grammars, serve
from kvik.errors import CheckpointError, ContextLengthError, EngineError, InvalidRequestError, NumericalError
from kvik.text.grammar import regex
from kvik.text.tokenizer import Tokenizer

GREEDY = SamplingParams(temperature=0, max_tokens=6)
Say = Callable[[], list[Command]]


class Script:
    """A channel that hands over one batch of commands each time it is asked, and then, once nothing is to be done, the
    end. Waiting passes the time of its clock.
    """

    def __init__(self, *batches: list[Command], clock: FakeClock | None = None, limit: int = 10**9) -> None:
        self.batches: list[list[Command] | Say] = list(batches)
        self.clock = clock or FakeClock()
        self.limit = limit
        self.sent: list[tuple[Event, ...]] = []
        self.waits: list[float | None] = []

    def receive(self, timeout_s: float | None = None) -> list[Command]:
        self.waits.append(timeout_s)
        if self.batches:
            batch = self.batches.pop(0)
            return batch() if callable(batch) else batch
        if timeout_s == 0.0:
            return []
        return [Close()]

    def send(self, *events: Event) -> None:
        if len(FrameWriter().pack(*events)) > self.limit:
            raise FrameTooLargeError("too large")
        self.sent.append(events)

    @property
    def events(self) -> list[Event]:
        return [event for events in self.sent for event in events]

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def updates(self) -> list[Update]:
        return [update for moved in self.of(Moved) for update in moved.updates]


def submit(name: str, tokens: list[int], params: SamplingParams = GREEDY, **rest: Any) -> Submit:
    return Submit(name, tokens, params, **rest)


def host(script: Script, engine: Engine) -> Host:
    made = Host(engine, script, clock=script.clock)
    made.run()
    return made


def tokens_of(updates: list[Update], name: str, index: int = 0) -> list[int]:
    return [token for u in updates if (u.request_id, u.index) == (name, index) for token in u.token_ids]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return byte_tokenizer(tmp_path_factory.mktemp("bytes"))


# The beginning ------------------------------------------------------------------------------------------------------


def test_grammars_are_made_ready_beside_the_loop_which_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = fake_engine()
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def prepare() -> None:
        begun.set()
        assert go_on.wait(30)
        ended.set()

    monkeypatch.setattr(engine.grammars, "prepare", prepare)

    def close() -> list[Command]:
        assert begun.wait(30)
        assert not ended.is_set()
        go_on.set()
        return [Close()]

    script = Script([submit("a", [1])], *[[]] * 8)
    script.batches.append(close)
    host(script, engine)
    assert isinstance(script.events[0], ModelInfo)
    assert tokens_of(script.updates, "a") == expected_answer([1], GREEDY)
    assert ended.is_set()


def test_the_first_request_with_a_grammar_finds_the_vocabulary_ready(tokenizer: Tokenizer) -> None:
    engine = fake_engine(tokenizer=tokenizer)
    prepare_grammars(engine.grammars)
    known = engine.grammars._known
    assert known is not None
    assert known._tokens is not None
    engine.grammars.compile(regex("a+"))
    assert engine.grammars._known is known


def test_a_model_without_text_has_no_grammars_to_prepare_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    prepare_grammars(fake_engine().grammars)
    assert caplog.records == []


def test_grammars_that_cannot_be_prepared_end_nothing_but_are_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = fake_engine()
    monkeypatch.setattr(engine.grammars, "prepare", lambda: 1 / 0)
    script = Script([submit("a", [1])])
    host(script, engine)
    assert tokens_of(script.updates, "a") == expected_answer([1], GREEDY)
    assert [record.message for record in caplog.records] == ["grammars cannot be prepared"]


# Requests -----------------------------------------------------------------------------------------------------------


def test_each_step_is_one_frame_with_all_that_moved() -> None:
    names = [str(i) for i in range(5)]
    script = Script([submit(name, [int(name)] * 3) for name in names])
    host(script, fake_engine())
    assert isinstance(script.events[0], ModelInfo)
    moved = script.of(Moved)
    assert [len(each.updates) for each in moved] == [5] * 6
    assert all(len(events) == 1 for events in script.sent)
    for name in names:
        assert tokens_of(script.updates, name) == expected_answer([int(name)] * 3, GREEDY)
    assert [u.finish_reason for u in script.updates] == [None] * 25 + ["length"] * 5


def test_updates_add_up_to_what_llm_gives(tokenizer: Tokenizer) -> None:
    prompts = [tokenizer.encode(text) for text in ("abc", "hello there", "x" * 70)]
    params = [
        SamplingParams(n=2, seed=3, max_tokens=20, logprobs=2, prompt_logprobs=1),
        SamplingParams(seed=4, max_tokens=50, stop=("a", "é")),
        SamplingParams(temperature=0, max_tokens=30, stop_token_ids=[97, 98, 99, 100], logprobs=0),
    ]
    outputs = LLM.from_engine(fake_engine(tokenizer=tokenizer)).generate([list(each) for each in prompts], params)
    script = Script([submit(str(i), prompts[i], params[i]) for i in range(3)])
    host(script, fake_engine(tokenizer=tokenizer, max_num_batched_tokens=64))
    for i, output in enumerate(outputs):
        for choice in output.outputs:
            mine = [u for u in script.updates if (u.request_id, u.index) == (str(i), choice.index)]
            assert "".join(u.text for u in mine) == choice.text
            assert tokens_of(mine, str(i), choice.index) == choice.token_ids
            assert [u.finish_reason for u in mine[:-1]] == [None] * (len(mine) - 1)
            assert (mine[-1].finish_reason, mine[-1].stop_reason) == (choice.finish_reason, choice.stop_reason)
            logprobs = [each for u in mine for each in u.logprobs or []]
            assert logprobs == (choice.logprobs or [])
            assert all(u.prompt_logprobs is None for u in mine[1:])
            first = output.prompt_logprobs if choice.index == 0 else None
            assert mine[0].prompt_logprobs == first


def test_tokens_found_in_the_cache_are_counted() -> None:
    script = Script([submit("a", [7] * 100)], *[[]] * 10, [submit("b", [7] * 100)])
    host(script, fake_engine())
    cached = {u.request_id: u.num_cached_tokens for u in script.updates}
    assert cached == {"a": 0, "b": 96}


@pytest.mark.parametrize(
    ("bad", "kind", "param"),
    [
        (submit("a", []), InvalidRequestError, "prompt"),
        (submit("a", [256]), InvalidRequestError, "prompt"),
        (submit("a", [1] * 512), ContextLengthError, "prompt"),
        (submit("a", [1], SamplingParams(stop="x")), InvalidRequestError, "stop"),
        (submit("good", [1]), InvalidRequestError, "request_id"),
    ],
)
def test_what_the_engine_refuses_comes_back_as_failed(bad: Submit, kind: type[Exception], param: str) -> None:
    script = Script([submit("good", [1]), bad])
    host(script, fake_engine())
    (failed,) = script.of(Failed)
    error = rebuilt(failed.kind, failed.message, failed.param)
    assert type(error) is kind
    assert error.param == param  # type: ignore[attr-defined]
    assert failed.request_id == bad.request_id
    assert tokens_of(script.updates, "good") == expected_answer([1], GREEDY)


@pytest.mark.parametrize(("mark", "kind", "text"), [(POISON, EngineError, "poison"), (NAN, NumericalError, "NaN")])
def test_a_request_that_breaks_the_model_fails_alone(mark: int, kind: type[Exception], text: str) -> None:
    script = Script([submit("a", [1]), submit("bad", [mark], SamplingParams(n=3)), submit("b", [2])])
    engine = fake_engine()
    host(script, engine)
    (failed,) = script.of(Failed)
    assert failed.request_id == "bad"
    assert type(rebuilt(failed.kind, failed.message)) is kind
    assert text in failed.message
    assert {u.request_id for u in script.updates} == {"a", "b"}
    assert tokens_of(script.updates, "a") == expected_answer([1], GREEDY)
    assert tokens_of(script.updates, "b") == expected_answer([2], GREEDY)
    assert engine.stats().blocks_used == 0


def test_an_error_that_the_engine_did_not_foresee_fails_the_request_it_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = fake_engine()
    add = engine.add

    def broken(tokens: Any, *args: Any, **options: Any) -> Any:
        return add(tokens, *args, **options) if tokens != [1] else 1 // 0

    monkeypatch.setattr(engine, "add", broken)
    script = Script([submit("a", [1]), submit("b", [2])])
    host(script, engine)
    assert [(f.request_id, f.kind, f.message.split(":")[0]) for f in script.of(Failed)] == [
        ("a", "EngineError", "ZeroDivisionError")
    ]
    assert tokens_of(script.updates, "b") == expected_answer([2], GREEDY)


@pytest.mark.parametrize("turns", range(8))
def test_an_abort_at_any_turn_is_answered_in_that_turn(turns: int) -> None:
    params = SamplingParams(temperature=0, n=2, max_tokens=5)
    script = Script([submit("a", [1], params), submit("b", [2])], *[[]] * turns, [Abort("a"), Abort("nobody")])
    engine = fake_engine()
    host(script, engine)
    ended = [u for u in script.updates if u.request_id == "a" and u.finish_reason]
    assert sorted(u.index for u in ended) == [0, 1]
    assert {u.finish_reason for u in ended} == {"length" if turns >= 4 else "abort"}
    assert tokens_of(script.updates, "a") == expected_answer([1], params)[: min(turns + 1, 5)]
    assert tokens_of(script.updates, "b") == expected_answer([2], GREEDY)
    assert script.of(Failed) == []
    assert engine.stats().blocks_used == 0


def test_a_name_can_be_used_again_after_an_abort_in_the_same_batch() -> None:
    script = Script([submit("a", [1])], [Abort("a"), submit("a", [2])])
    host(script, fake_engine())
    ends = [i for i, u in enumerate(script.updates) if u.finish_reason]
    assert [script.updates[i].finish_reason for i in ends] == ["abort", "length"]
    assert tokens_of(script.updates[ends[0] + 1 :], "a") == expected_answer([2], GREEDY)


def test_a_deadline_ends_a_request_with_what_it_has() -> None:
    clock = FakeClock()

    def hour() -> list[Command]:
        clock.now += 3600
        return []

    script = Script([submit("a", [1], SamplingParams(max_tokens=100, deadline_s=60))], [], clock=clock)
    script.batches.append(hour)
    host(script, fake_engine(clock=clock))
    assert script.updates[-1].finish_reason == "deadline"
    assert len(tokens_of(script.updates, "a")) == 2


def test_an_update_too_large_for_a_frame_fails_its_request_only() -> None:
    params = SamplingParams(temperature=0, max_tokens=6, prompt_logprobs=20)
    script = Script([submit("a", [1]), submit("big", [2] * 50, params), submit("b", [2])], limit=2000)
    engine = fake_engine()
    host(script, engine)
    assert [(f.request_id, f.kind) for f in script.of(Failed)] == [("big", "InvalidRequestError")]
    assert tokens_of(script.updates, "a") == expected_answer([1], GREEDY)
    assert tokens_of(script.updates, "b") == expected_answer([2], GREEDY)
    assert engine.stats().requests_ended["abort"] == 1


# The loop -----------------------------------------------------------------------------------------------------------


def test_an_idle_host_waits_and_beats_once_a_second() -> None:
    clock = FakeClock()

    def idle(self: Script, timeout_s: float | None = None) -> list[Command]:
        self.waits.append(timeout_s)
        assert timeout_s is not None
        clock.now += timeout_s
        return [Close()] if clock.now > 1100.0 else []

    class Idle(Script):
        receive = idle

    script = Idle(clock=clock)
    made = host(script, fake_engine(clock=clock))
    assert made.turns <= 1002
    assert script.of(Beat) == [Beat(0, False, 0)] * 1000
    assert all(wait == pytest.approx(1.0) for wait in script.waits)


def test_a_busy_host_never_waits() -> None:
    script = Script([submit("a", [1])])
    host(script, fake_engine())
    assert [wait == 0.0 for wait in script.waits] == [False, *[True] * 5, False]


def test_a_step_that_moves_nothing_beats() -> None:
    script = Script([submit("a", [1] * 500)])
    host(script, fake_engine(max_num_batched_tokens=100))
    assert [type(event) for event in script.events[1:6]] == [Beat] * 4 + [Moved]
    assert script.of(Beat)[-1] == Beat(4, True, 1)


def test_the_idle_beat_says_how_many_commands_were_taken() -> None:
    clock = FakeClock()

    def wait() -> list[Command]:
        clock.now += 1.0
        return []

    script = Script([submit("a", [1]), Abort("a"), AskStats(1)], clock=clock)
    script.batches.append(wait)
    host(script, fake_engine(clock=clock))
    assert script.of(Beat) == [Beat(0, False, 3)]


def test_stats_are_answered_by_number() -> None:
    script = Script([submit("a", [1]), AskStats(5), AskStats(6)], [])
    engine = fake_engine()
    host(script, engine)
    first, second = script.of(Stats)
    assert (first.number, second.number) == (5, 6)
    assert first.values["requests_accepted"] == 1
    assert first.values.keys() == engine.stats().as_dict().keys()


def test_steps_are_told_while_somebody_watches() -> None:
    script = Script([submit("a", [1], SamplingParams(max_tokens=40))], [Watch(True)], [Watch(True)], [], [Watch(False)])
    engine = fake_engine()
    host(script, engine)
    kinds = [step.values["kind"] for step in script.of(Step)]
    assert kinds[:1] == ["snapshot"]
    assert kinds.count("snapshot") == 2
    assert engine.observer is None
    ended = Script([submit("a", [1])])
    host(ended, fake_engine())
    assert ended.of(Step) == []


def test_what_an_abort_changed_is_told_though_no_step_follows() -> None:
    script = Script([Watch(True), submit("a", [1], SamplingParams(max_tokens=40))], [], [Abort("a")], [])
    host(script, fake_engine(clock=time.monotonic))
    ended = [pair for step in script.of(Step)[1:] for pair in step.values["ended"]]
    assert [reason for _, reason in ended] == ["abort"]


@pytest.mark.parametrize("error", [RuntimeError("broken"), MemoryError()])
def test_what_a_step_raises_ends_the_host_and_frees_the_engine(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = FakeRunner()
    engine = fake_engine(runner)

    def fail() -> list[Any]:
        raise error

    monkeypatch.setattr(engine, "step", fail)
    with pytest.raises(type(error)):
        serve(lambda: engine, Script([submit("a", [1])]))
    assert runner.closed == 1


def test_a_front_end_that_has_gone_ends_the_host_and_frees_the_engine() -> None:
    def gone() -> list[Command]:
        raise ChannelClosedError("gone")

    runner = FakeRunner()
    script = Script([submit("a", [1], SamplingParams(max_tokens=100))])
    script.batches.append(gone)
    with pytest.raises(ChannelClosedError):
        serve(lambda: fake_engine(runner), script)
    assert runner.closed == 1


def test_close_aborts_what_is_unfinished() -> None:
    runner = FakeRunner()
    serve(lambda: fake_engine(runner), Script([submit("a", [1])], [submit("b", [1]), Close(), submit("c", [1])]))
    assert runner.closed == 1
    assert len(runner.plans) == 1


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (CheckpointError("no such directory"), CheckpointError, "no such directory"),
        (ZeroDivisionError("by zero"), EngineError, "ZeroDivisionError: by zero"),
    ],
)
def test_an_engine_that_cannot_be_made_is_told(error: Exception, kind: type[Exception], message: str) -> None:
    def build() -> Engine:
        raise error

    script = Script()
    serve(build, script)
    (event,) = script.events
    assert isinstance(event, LoadFailed)
    assert type(rebuilt(event.kind, event.message)) is kind
    assert event.message == message


def test_model_info_is_the_engines(tmp_path: Path) -> None:
    script = Script()
    host(script, fake_engine(num_blocks=16, max_num_seqs=3, max_num_batched_tokens=50))
    assert script.events[0] == ModelInfo("fake", 512, 256, 16, 32, 3, 50, "fake")
