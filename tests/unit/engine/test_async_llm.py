"""AsyncLLM with its engine in a thread, on M0: the same answers and errors as LLM, and no loose ends."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import NAN, POISON, FakeRunner, byte_tokenizer, expected_answer, fake_engine

import kvik
from kvik import LLM, AsyncLLM, SamplingParams
from kvik.engine import async_llm as module
from kvik.engine.engine import Engine
from kvik.engine.remote.frames import Beat
from kvik.engine.remote.thread import MOST_UNDELIVERED, MemoryChannel, ThreadLink
from kvik.errors import ContextLengthError, EngineError, InvalidRequestError, KvikError, NumericalError
from kvik.step import StepPlan
from kvik.text.tokenizer import Tokenizer

GREEDY = SamplingParams(temperature=0, max_tokens=6)
LONG = SamplingParams(temperature=0, max_tokens=400)
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
Scenario = Callable[[AsyncLLM], Coroutine[Any, Any, None]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return byte_tokenizer(tmp_path_factory.mktemp("bytes")).with_chat_template(TEMPLATE)


def engine_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "kvik-engine"]


def run(scenario: Scenario, tokenizer: Tokenizer | None = None, **options: Any) -> None:
    """Run a scenario on an engine of M0; `build` and `watchdog_s` may be among the options."""
    watchdog_s = options.pop("watchdog_s", 10.0)
    build = options.pop("build", None) or partial(fake_engine, tokenizer=tokenizer, **options)

    async def main() -> None:
        llm = AsyncLLM(
            partial(ThreadLink, build, beat_s=module.beat_s(watchdog_s)),
            find_tokenizer=lambda: tokenizer,
            watchdog_s=watchdog_s,
        )
        async with llm:
            await scenario(llm)
        await llm.close()
        assert not engine_threads()

    asyncio.run(main())


async def settled(llm: AsyncLLM, key: str, value: int) -> dict[str, Any]:
    """The engine's numbers once one of them is what was expected."""
    while True:
        stats = await llm.stats()
        if stats[key] == value:
            return stats


# Answers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["abc", [64, 65], (64, 65), {"prompt": "abc"}, {"prompt_token_ids": [64, 65]}])
def test_generate_gives_what_llm_gives(prompt: Any, tokenizer: Tokenizer) -> None:
    params = SamplingParams(n=2, seed=5, max_tokens=20, logprobs=1, prompt_logprobs=0)
    (expected,) = LLM.from_engine(fake_engine(tokenizer=tokenizer)).generate(prompt, params)

    async def scenario(llm: AsyncLLM) -> None:
        outputs = [output async for output in llm.generate(prompt, params)]
        last = outputs[-1]
        assert last.outputs == expected.outputs
        assert (last.prompt, last.prompt_token_ids) == (expected.prompt, list(expected.prompt_token_ids))
        assert (last.prompt_logprobs, last.num_cached_tokens) == (expected.prompt_logprobs, 0)
        assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
        for before, after in itertools.pairwise(outputs):
            for old, new in zip(before.outputs, after.outputs, strict=True):
                assert new.text.startswith(old.text)
                assert new.token_ids[: len(old.token_ids)] == old.token_ids

    run(scenario, tokenizer)


def test_arrays_are_prompts(tokenizer: Tokenizer) -> None:
    async def scenario(llm: AsyncLLM) -> None:
        outputs = [output async for output in llm.generate(np.array([64, 65]), GREEDY)]
        assert outputs[-1].outputs[0].token_ids == expected_answer([64, 65], GREEDY)

    run(scenario, tokenizer)


def test_chat_goes_through_the_template(tokenizer: Tokenizer) -> None:
    hello = [{"role": "user", "content": "Hi"}]

    async def scenario(llm: AsyncLLM) -> None:
        outputs = [output async for output in llm.chat(hello, GREEDY)]
        assert outputs[-1].prompt_token_ids == tokenizer.encode("[user]Hi>")
        outputs = [output async for output in llm.chat(hello, GREEDY, add_generation_prompt=False)]
        assert outputs[-1].outputs[0].token_ids == expected_answer(tokenizer.encode("[user]Hi"), GREEDY)
        assert llm.tokenizer is tokenizer

    run(scenario, tokenizer)


def test_two_hundred_streams_at_once_are_all_right() -> None:
    async def scenario(llm: AsyncLLM) -> None:
        async def read(number: int) -> None:
            prompt = [number % 250, 7, number // 250]
            tokens: list[int] = []
            async with llm.submit(prompt, GREEDY, request_id=f"r{number}", salt=b"x", priority=number % 3) as stream:
                assert stream.request_id == f"r{number}"
                async for update in stream:
                    assert update.request_id == f"r{number}"
                    tokens += update.token_ids
            assert stream.finished
            assert tokens == expected_answer(prompt, GREEDY)

        await asyncio.gather(*(read(number) for number in range(200)))
        assert (await llm.stats())["requests_ended"]["length"] == 200

    run(scenario)


def test_long_texts_are_made_into_tokens_in_a_thread(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    encode = module.encode_prompt
    monkeypatch.setattr(module, "encode_prompt", lambda *a: threads.append(threading.current_thread()) or encode(*a))

    async def scenario(llm: AsyncLLM) -> None:
        await anext(llm.generate({"prompt": "short"}, GREEDY))
        with pytest.raises(ContextLengthError):
            await anext(llm.generate({"prompt": "x" * (module.SHORT_TEXT + 1)}, GREEDY))
        assert [thread is threading.current_thread() for thread in threads] == [True, False]

    run(scenario, tokenizer)


# Errors -------------------------------------------------------------------------------------------------------------

BAD: list[tuple[Any, SamplingParams]] = [
    ("", GREEDY),
    ([], GREEDY),
    ([1] * 512, GREEDY),
    ([256], GREEDY),
    ([-1], GREEDY),
    ([POISON], GREEDY),
    ([NAN], GREEDY),
    (7, GREEDY),
    (None, GREEDY),
    ("half \ud800", GREEDY),
    ({"text": "a"}, GREEDY),
    ([1], SamplingParams(stop_token_ids=[999])),
    ([1] * 500, SamplingParams(max_tokens=100, min_tokens=90)),
]


@pytest.mark.parametrize(("prompt", "params"), BAD)
def test_generate_raises_what_llm_raises(prompt: Any, params: SamplingParams, tokenizer: Tokenizer) -> None:
    with pytest.raises((KvikError, RuntimeError)) as expected:
        LLM.from_engine(fake_engine(tokenizer=tokenizer)).generate(prompt if prompt != [] else [[]], params)

    async def scenario(llm: AsyncLLM) -> None:
        with pytest.raises(KvikError) as caught:
            async for _ in llm.generate(prompt, params):
                pass
        if isinstance(expected.value, KvikError):
            assert type(caught.value) is type(expected.value)
            assert getattr(caught.value, "param", None) == getattr(expected.value, "param", None)
        else:
            assert type(caught.value) is EngineError
        if not isinstance(expected.value, NumericalError):  # which names the request
            assert str(expected.value) in str(caught.value)
        outputs = [output async for output in llm.generate([3], GREEDY)]
        assert outputs[-1].outputs[0].token_ids == expected_answer([3], GREEDY)

    run(scenario, tokenizer)


@pytest.mark.parametrize("ids", [[1.5], [True], ["a"], [2**70]])
def test_ids_that_are_none_are_refused_where_they_are_submitted(ids: list[Any]) -> None:
    async def scenario(llm: AsyncLLM) -> None:
        with pytest.raises(InvalidRequestError):
            llm.submit(ids, GREEDY)

    run(scenario)


def test_a_name_is_in_use_until_its_request_is_over() -> None:
    async def scenario(llm: AsyncLLM) -> None:
        stream = llm.submit([1], GREEDY, request_id="mine")
        with pytest.raises(InvalidRequestError, match="'mine'"):
            llm.submit([1], GREEDY, request_id="mine")
        await stream.whole()
        assert len((await llm.submit([1], GREEDY, request_id="mine").whole())[0].token_ids) == 6

    run(scenario)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("/no/such/directory", {}),
        ("dummy:nothing", {}),
        ("fake:nothing=1", {}),
        ("dummy:tiny-qwen3", {"max_model_len": 10**9}),
        ("dummy:tiny-qwen3", {"block_size": 33}),
        ("dummy:tiny-qwen3", {"kv_cache_memory": "1000TiB"}),
        ("dummy:tiny-qwen3", {"watchdog": 5}),
    ],
)
def test_start_raises_what_llm_raises(model: str, options: dict[str, Any]) -> None:
    with pytest.raises((KvikError, TypeError)) as expected:
        LLM(model, backend="reference", **options)

    async def main() -> None:
        with pytest.raises(type(expected.value)) as caught:
            await AsyncLLM.start(model, backend="reference", **options)
        assert str(caught.value).split(";")[0] == str(expected.value).split(";")[0]  # then, what is free now
        assert not engine_threads()

    asyncio.run(main())


def test_a_model_without_text_takes_ids() -> None:
    async def scenario(llm: AsyncLLM) -> None:
        for call in (llm.generate("text", GREEDY), llm.chat([{"role": "user", "content": "Hi"}], GREEDY)):
            with pytest.raises(InvalidRequestError):
                await anext(call)
        assert llm.tokenizer is None

    run(scenario)


# Leaving ------------------------------------------------------------------------------------------------------------


async def _break(llm: AsyncLLM) -> None:
    async for _ in llm.generate([1], LONG):
        break


async def _close(llm: AsyncLLM) -> None:
    outputs = llm.generate([1], LONG)
    await anext(outputs)
    await outputs.aclose()  # type: ignore[attr-defined]


async def _leave_context(llm: AsyncLLM) -> None:
    async with llm.submit([1], LONG) as stream:
        await anext(stream)


async def _abort(llm: AsyncLLM) -> None:
    stream = llm.submit([1], LONG)
    await anext(stream)
    stream.abort()
    stream.abort()


async def _forget(llm: AsyncLLM) -> None:
    await anext(llm.submit([1], LONG))
    gc.collect()


async def _cancel(llm: AsyncLLM) -> None:
    got = asyncio.Event()

    async def read() -> None:
        async for _ in llm.generate([1], LONG):
            got.set()

    task = asyncio.create_task(read())
    await got.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("leave", [_break, _close, _leave_context, _abort, _forget, _cancel])
def test_leaving_a_request_ends_it_in_the_engine(leave: Scenario) -> None:
    gate = threading.Semaphore(20)

    async def scenario(llm: AsyncLLM) -> None:
        await llm.ready()
        await leave(llm)
        for _ in range(400):
            gate.release()
        stats = await settled(llm, "requests_running", 0)
        assert stats["requests_ended"] == {"stop": 0, "length": 0, "abort": 1, "deadline": 0, "error": 0}
        assert stats["blocks_used"] == 0

    def few_steps(plan: StepPlan) -> None:
        gate.acquire()

    run(scenario, build=lambda: fake_engine(FakeRunner(hook=few_steps)))


def test_a_request_is_gone_from_the_engine_one_step_after_its_reader_was_cancelled() -> None:
    steps: list[list[int]] = []
    turn, done = threading.Semaphore(0), threading.Semaphore(0)

    def hook(plan: StepPlan) -> None:
        steps.append(plan.keys.tolist())
        done.release()
        turn.acquire()

    async def scenario(llm: AsyncLLM) -> None:
        keep, leave = llm.submit([1], LONG), llm.submit([2], LONG)
        reader = asyncio.ensure_future(leave.whole())
        for _ in range(3):
            await asyncio.to_thread(done.acquire)
            turn.release()
        await asyncio.to_thread(done.acquire)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        turn.release()
        await asyncio.to_thread(done.acquire)
        assert [len(keys) for keys in steps[-2:]] == [2, 1]
        keep.abort()
        turn.release(1000)

    run(scenario, build=lambda: fake_engine(FakeRunner(hook=hook)))


def test_who_aborts_and_reads_on_gets_the_end() -> None:
    aborted = threading.Event()

    async def scenario(llm: AsyncLLM) -> None:
        stream = llm.submit([1], LONG)
        tokens = (await anext(stream)).token_ids
        stream.abort()
        aborted.set()
        rest = [update async for update in stream]
        tokens = tokens + [token for update in rest for token in update.token_ids]
        assert rest[-1].finish_reason == "abort"
        assert tokens == expected_answer([1], LONG)[: len(tokens)]

    def hook(plan: StepPlan) -> None:
        if plan.step == 20:
            aborted.wait()

    run(scenario, build=lambda: fake_engine(FakeRunner(hook=hook)))


def test_a_slow_reader_gets_all_of_it_in_few_pieces() -> None:
    async def scenario(llm: AsyncLLM) -> None:
        stream = llm.submit([1], LONG)
        await llm.ready()
        await settled(llm, "requests_accepted", 1)
        await settled(llm, "requests_running", 0)
        updates = [update async for update in stream]
        assert [token for update in updates for token in update.token_ids] == expected_answer([1], LONG)
        assert len(updates) == 1

    run(scenario)


# Watching, health, the end ------------------------------------------------------------------------------------------


def test_watch_shows_the_steps_while_it_is_iterated() -> None:
    engines: list[Engine] = []

    def build() -> Engine:
        engines.append(fake_engine())
        return engines[-1]

    async def scenario(llm: AsyncLLM) -> None:
        await llm.ready()
        assert engines[0].observer is None
        watching = llm.watch()
        first = asyncio.ensure_future(anext(watching))
        assert (await first)["kind"] == "snapshot"
        await llm.submit([1], GREEDY).whole()
        assert (await anext(watching))["kind"] == "frame"
        await watching.aclose()  # type: ignore[attr-defined]
        await llm.stats()
        assert engines[0].observer is None

    run(scenario, build=build)


def test_launch_returns_while_the_model_is_loading_and_holds_requests() -> None:
    loaded = threading.Event()

    def build() -> Engine:
        loaded.wait()
        return fake_engine()

    async def scenario(llm: AsyncLLM) -> None:
        stream = llm.submit([1], GREEDY)
        await asyncio.sleep(0)
        assert (llm.health.state, llm.info, llm.engine_pid) == ("loading", None, None)
        with pytest.raises(EngineError, match="not ready"):
            await llm.stats()
        loaded.set()
        assert (await llm.ready()).name == "fake"
        assert llm.info is not None
        assert (await stream.whole())[0].token_ids == expected_answer([1], GREEDY)
        assert llm.health.state == "ready"

    run(scenario, build=build)


def test_an_engine_that_raises_is_replaced_and_what_nobody_read_is_computed_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    turn = threading.Semaphore(2)
    builds: list[Engine] = []

    def build() -> Engine:
        builds.append(fake_engine())
        if len(builds) == 1:
            step = builds[0].step

            def two_steps() -> Any:
                turn.acquire()
                return step() if builds[0].metrics.steps < 2 else 1 // 0

            builds[0].step = two_steps  # type: ignore[method-assign]
        return builds[-1]

    async def scenario(llm: AsyncLLM) -> None:
        whole = asyncio.ensure_future(llm.submit([1], GREEDY).whole())
        read = llm.submit([2], GREEDY)
        await anext(read)
        turn.release()
        with pytest.raises(EngineError, match="lost with this request"):
            async for _ in read:
                pass
        assert (await whole)[0].token_ids == expected_answer([1], GREEDY)
        assert (llm.health.state, llm.health.restarts, len(builds)) == ("ready", 1, 2)

    with caplog.at_level(logging.CRITICAL, "kvik.engine"):
        run(scenario, build=build)


def test_an_engine_in_a_thread_that_hangs_is_reported_until_it_goes_on() -> None:
    gate = threading.Event()

    def hang(plan: StepPlan) -> None:
        if plan.step == 3:
            gate.wait()

    async def scenario(llm: AsyncLLM) -> None:
        stream = llm.submit([1], GREEDY)
        await llm.ready()
        while llm.health.state == "ready":
            await asyncio.sleep(0.01)
        assert llm.health.state == "failed"
        assert llm.health.progress_age_s >= 0.2
        gate.set()
        assert (await stream.whole())[0].token_ids == expected_answer([1], GREEDY)
        assert (llm.health.state, llm.health.restarts) == ("ready", 0)

    run(scenario, build=lambda: fake_engine(FakeRunner(hook=hang)), watchdog_s=0.2)


def test_close_fails_what_is_unfinished_and_frees_the_model() -> None:
    runner = FakeRunner()

    async def scenario(llm: AsyncLLM) -> None:
        stream = llm.submit([1], LONG)
        await anext(stream)
        watching = asyncio.ensure_future(_exhaust(llm))
        await llm.close()
        with pytest.raises(EngineError, match="closed"):
            async for _ in stream:
                pass
        with pytest.raises(EngineError, match="closed"):
            llm.submit([1], GREEDY)
        await watching
        assert runner.closed == 1
        assert llm.health.state == "failed"

    run(scenario, build=lambda: fake_engine(runner))


async def _exhaust(llm: AsyncLLM) -> None:
    async for _ in llm.watch():
        pass


def test_an_engine_is_only_so_far_ahead_of_an_event_loop_that_stands_still() -> None:
    class Loop:
        def __init__(self) -> None:
            self.calls: list[Callable[[], None]] = []
            self.is_closed = lambda: False

        def call_soon_threadsafe(self, callback: Callable[..., None], *args: Any) -> None:
            self.calls.append(partial(callback, *args))

    loop, arrived = Loop(), []
    channel = MemoryChannel(loop, arrived.append)  # type: ignore[arg-type]
    events = [Beat(number, True, 0) for number in range(3 * MOST_UNDELIVERED)]
    thread = threading.Thread(target=lambda: [channel.send(event) for event in events])
    thread.start()
    most = 0
    while len(arrived) < len(events):
        most = max(most, len(loop.calls))
        if len(loop.calls) == MOST_UNDELIVERED or not thread.is_alive():
            while loop.calls:
                loop.calls.pop(0)()
    thread.join()
    assert arrived == events
    assert most == MOST_UNDELIVERED


def test_an_engine_whose_event_loop_has_gone_ends_by_itself() -> None:
    ended = threading.Event()

    class Noticed(FakeRunner):
        def close(self) -> None:
            super().close()
            ended.set()

    async def main() -> AsyncLLM:
        llm = AsyncLLM(partial(ThreadLink, lambda: fake_engine(Noticed()), beat_s=0.05))
        await llm.ready()
        return llm

    llm = asyncio.run(main())
    assert ended.wait(10)
    del llm


def test_the_door_has_it() -> None:
    assert kvik.AsyncLLM is AsyncLLM
    assert "AsyncLLM" in kvik.__all__


def test_start_on_the_fake_model(tmp_path: Path) -> None:
    async def main() -> None:
        async with await AsyncLLM.start("fake:length=30") as llm:
            outputs = [output async for output in llm.generate("hello", LONG)]
            assert llm.info is not None
            assert (llm.info.backend, llm.health.state) == ("fake", "ready")
            assert llm.tokenizer is not None
            choice = outputs[-1].outputs[0]
            assert choice.text == llm.tokenizer.decode(choice.token_ids)
        assert not engine_threads()

    asyncio.run(main())
