"""The engine in a child process, broken in every way we could think of: what is promised of it holds."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cli_process import environment

from kvik import LLM, AsyncLLM, SamplingParams
from kvik.checkpoint.fake import FakeOptions
from kvik.config import EngineConfig
from kvik.engine.remote import supervisor
from kvik.engine.remote.channel import HEADER
from kvik.engine.remote.process import ProcessLink
from kvik.engine.remote.stream import Stream
from kvik.errors import ContextLengthError, EngineError, InvalidRequestError, KvikError, NumericalError
from kvik.runners.fake import fake_answer, fake_tokenizer

MODEL = "fake:length=200"
SLOW = "fake:length=200,step_ms=5"
GREEDY = SamplingParams(temperature=0, max_tokens=20)
SOME = SamplingParams(temperature=0, max_tokens=60)
Scenario = Callable[[AsyncLLM], Coroutine[Any, Any, None]]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.CRITICAL, "kvik.engine"):
        yield


def run(scenario: Scenario, model: str = MODEL, **options: Any) -> None:
    async def main() -> None:
        async with await AsyncLLM.start(model, process=True, **options) as llm:
            await scenario(llm)

    asyncio.run(main())


def ids(text: str) -> list[int]:
    return fake_tokenizer().encode(text)


def expected(prompt: list[int], count: int) -> list[int]:
    """What a greedy answer must be."""
    return fake_answer(prompt, count, options=FakeOptions(length=(200, 200)))


async def rest(stream: Stream) -> list[int]:
    """The tokens that come until the end."""
    return [token async for update in stream for token in update.token_ids]


async def whole(llm: AsyncLLM, prompt: list[int], params: SamplingParams = GREEDY) -> list[int]:
    (update,) = await llm.submit(prompt, params).whole()
    return update.token_ids


async def until(claim: Callable[[], bool]) -> None:
    while not claim():
        await asyncio.sleep(0.01)


async def is_exact(llm: AsyncLLM) -> None:
    """A new request gets what it must."""
    await until(lambda: llm.health.state == "ready")
    assert await whole(llm, ids("control")) == expected(ids("control"), 20)


def has_ended(pid: int, timeout_s: float = 30.0) -> bool:
    """Whether a process that may be somebody else's child is gone within so long."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], timeout_s)[0])
    finally:
        os.close(process)


# Across the wall ----------------------------------------------------------------------------------------------------


def test_answers_are_those_of_llm_and_errors_cross_unchanged() -> None:
    params = SamplingParams(n=2, seed=7, max_tokens=30, logprobs=2, prompt_logprobs=1, stop=("ba",))
    local = LLM(MODEL)
    (wanted,) = local.generate(["hello"], params)

    async def scenario(llm: AsyncLLM) -> None:
        *_, output = [output async for output in llm.generate("hello", params)]
        assert output.outputs == wanted.outputs
        assert output.prompt_logprobs == wanted.prompt_logprobs
        assert llm.info is not None
        assert (llm.info.backend, llm.info.vocab_size) == ("fake", local.engine.spec.vocab_size)
        refused: list[tuple[str, SamplingParams, type[KvikError]]] = [
            ("", GREEDY, InvalidRequestError),
            ("x" * 5000, GREEDY, ContextLengthError),
            ("[[nan]]", GREEDY, NumericalError),
            ("[[raise]]", GREEDY, EngineError),
            ("x", SamplingParams(stop_token_ids=[10**6]), InvalidRequestError),
        ]
        for prompt, its_params, kind in refused:
            with pytest.raises(KvikError) as caught:
                [output async for output in llm.generate(prompt, its_params)]
            assert type(caught.value) is kind
            with pytest.raises((KvikError, RuntimeError)) as here:
                local.generate([prompt], its_params)
            assert getattr(here.value, "param", None) == getattr(caught.value, "param", None)
        await is_exact(llm)
        assert (await llm.stats())["requests_ended"]["error"] == 2
        watching = llm.watch()
        assert (await anext(watching))["kind"] == "snapshot"
        await watching.aclose()  # type: ignore[attr-defined]
        assert llm.health.restarts == 0

    run(scenario)


def test_many_streams_at_once_are_all_exact() -> None:
    async def scenario(llm: AsyncLLM) -> None:
        async def one(number: int) -> None:
            prompt, rng = ids(f"prompt {number}"), random.Random(number)
            stream = llm.submit(prompt, SOME)
            if rng.random() < 0.3:
                taken: list[int] = []
                while len(taken) < rng.randint(0, 30):
                    taken += (await anext(stream)).token_ids
                stream.abort()
                taken += await rest(stream)
                assert taken == expected(prompt, 60)[: len(taken)]
            else:
                assert await rest(stream) == expected(prompt, 60)

        await asyncio.gather(*(one(number) for number in range(150)))
        stats = await llm.stats()
        assert (stats["requests_running"], stats["requests_waiting"], stats["blocks_used"]) == (0, 0, 0)
        assert sum(stats["requests_ended"].values()) == 150

    run(scenario)


@pytest.mark.parametrize("options", [{"model": "/no/such/directory"}, {"model": MODEL, "kv_cache_memory": "1000TiB"}])
def test_a_model_that_cannot_be_loaded_raises_what_llm_raises(options: dict[str, Any]) -> None:
    with pytest.raises(KvikError) as wanted:
        LLM(**options)

    async def main() -> None:
        with pytest.raises(type(wanted.value)) as caught:
            await AsyncLLM.start(process=True, **options)
        assert str(caught.value).split(";")[0] == str(wanted.value).split(";")[0]  # then, what is free now

    asyncio.run(main())


def test_the_child_takes_nothing_from_the_folder_it_is_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("kvik.py", "msgspec.py", "numpy.py", "tokenizers.py"):
        (tmp_path / name).write_text("raise SystemExit('taken from the current folder')")
    monkeypatch.chdir(tmp_path)
    run(is_exact)


# Death --------------------------------------------------------------------------------------------------------------


def test_kill_under_load_fails_what_was_read_and_repeats_the_rest_exactly() -> None:
    async def scenario(llm: AsyncLLM) -> None:
        outcomes: dict[str, int] = {"exact": 0, "EngineError": 0}

        async def one(number: int) -> None:
            prompt = ids(f"prompt {number}")
            stream = llm.submit(prompt, SOME)
            try:
                if number % 2:
                    (update,) = await stream.whole()
                    got = update.token_ids
                else:
                    got = await rest(stream)
            except EngineError:
                assert number % 2 == 0, "nothing had been taken of this one"
                outcomes["EngineError"] += 1
                return
            assert got == expected(prompt, 60)
            outcomes["exact"] += 1

        tasks = [asyncio.create_task(one(number)) for number in range(60)]
        while (await llm.stats())["generated_tokens"] < 1000:
            pass
        pid = llm.engine_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: llm.health.state == "restarting")
        await asyncio.gather(*tasks)
        assert outcomes["EngineError"] > 0
        assert outcomes["exact"] >= 30
        await is_exact(llm)
        assert llm.health.restarts == 1
        assert llm.engine_pid != pid

    run(scenario, SLOW)


def test_a_request_that_kills_engines_is_given_up_after_two() -> None:
    async def scenario(llm: AsyncLLM) -> None:
        with pytest.raises(EngineError):
            await whole(llm, ids("[[exit@3]]"))
        await is_exact(llm)
        assert llm.health.restarts == 2

    run(scenario)


def test_an_engine_that_dies_while_it_loads_is_tried_again_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "ATTEMPTS", 2)

    async def main() -> None:
        program = ("sh", "-c", "kill -9 $$")
        async with AsyncLLM(partial(ProcessLink, EngineConfig(), beat_s=1.0, program=program)) as llm:
            with pytest.raises(EngineError, match="SIGKILL"):
                await llm.ready()
            assert (llm.health.state, llm.health.restarts) == ("failed", 1)
        absent = partial(ProcessLink, EngineConfig(), beat_s=1.0, program=("/no/such/program",))
        async with AsyncLLM(absent) as llm:
            with pytest.raises(EngineError, match="No such file"):
                await llm.ready()

    asyncio.run(main())


PARENT = """
import asyncio
from kvik import AsyncLLM, SamplingParams

async def main():
    llm = await AsyncLLM.start("fake:", process=True)
    stream = llm.submit(llm.tokenizer.encode("[[hang@2]]"), SamplingParams())
    await anext(stream)
    print(llm.engine_pid, flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


def test_the_engine_dies_with_its_parent_even_while_it_hangs() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, env=environment())
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    assert has_ended(pid)


def test_signals_of_the_terminal_are_for_the_parent() -> None:
    async def scenario(llm: AsyncLLM) -> None:
        pid = llm.engine_pid
        assert pid is not None
        assert os.getsid(pid) != os.getsid(0)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
        await is_exact(llm)
        assert (llm.engine_pid, llm.health.restarts) == (pid, 0)

    run(scenario)


# Standing still -----------------------------------------------------------------------------------------------------


def test_a_hang_is_noticed_dumped_and_ended(capfd: pytest.CaptureFixture[str]) -> None:
    async def scenario(llm: AsyncLLM) -> None:
        others = [asyncio.ensure_future(whole(llm, ids(f"other {number}"))) for number in range(5)]
        stream = llm.submit(ids("[[hang@10]]"), SOME)
        await anext(stream)
        await until(lambda: llm.health.progress_age_s > 0.5)
        with pytest.raises(EngineError, match=r"no sign of life for 2 s"):
            await rest(stream)
        assert llm.health.state == "restarting"
        for number, other in enumerate(others):
            assert await other == expected(ids(f"other {number}"), 20)
        await is_exact(llm)
        assert llm.health.restarts == 1

    run(scenario, watchdog_s=2.0)
    said = capfd.readouterr().err
    assert "most recent call first" in said
    assert "runners/fake/runner.py" in said


def test_an_engine_that_was_stopped_for_a_while_goes_on() -> None:
    async def scenario(llm: AsyncLLM) -> None:
        stream = llm.submit(ids("x"), SOME)
        first = await anext(stream)
        pid = llm.engine_pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            await until(lambda: llm.health.progress_age_s > 0.3)
            assert llm.health.state == "ready"
        finally:
            os.kill(pid, signal.SIGCONT)
        assert first.token_ids + await rest(stream) == expected(ids("x"), 60)
        assert llm.health.restarts == 0

    run(scenario, SLOW, watchdog_s=30.0)


# Damage -------------------------------------------------------------------------------------------------------------


def test_what_is_no_command_ends_the_engine_and_a_new_one_serves() -> None:
    async def scenario(llm: AsyncLLM) -> None:
        link = llm._supervisor._link
        assert isinstance(link, ProcessLink)
        assert 0.05 < link.cpu_seconds() < 60, "what it took to load"
        transport = link._channel._transport
        assert transport is not None
        transport.write(HEADER.pack(3, 1, 0) + b"abc")
        await until(lambda: llm.health.restarts == 1)
        await is_exact(llm)

    run(scenario)


ENGINE = """
import socket, sys
from kvik.engine.remote.channel import EngineChannel, FrameWriter
from kvik.engine.remote.frames import ModelInfo, Moved, Update

sock = socket.socket(fileno=int(sys.argv[-2]))
channel, writer = EngineChannel(sock), FrameWriter()
channel.receive()
sock.sendall(writer.pack(ModelInfo("m", 9, 9, 9, 9, 9, 9, "fake")))
(submit,) = channel.receive()
good = writer.pack(Moved([Update(submit.request_id, 0, "", [5])]))
sock.sendall(good)
channel.receive()
end = writer.pack(Moved([Update(submit.request_id, 0, "", [6], None, "stop")]))
alien = b"\\x80\\x04K\\x01." * 9
sock.sendall({"cut": end[:-1], "repeated": good, "damaged": end[:-1] + b"?", "alien": alien}[sys.argv[1]])
"""


@pytest.mark.parametrize("damage", ["cut", "repeated", "damaged", "alien"])
def test_what_is_no_event_ends_the_engine_and_fails_what_it_had(damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "ATTEMPTS", 1)

    async def main() -> None:
        program = (sys.executable, "-c", ENGINE, damage)
        async with AsyncLLM(partial(ProcessLink, EngineConfig(), beat_s=1.0, program=program)) as llm:
            await llm.ready()
            stream = llm.submit([1], GREEDY)
            assert (await anext(stream)).token_ids == [5]
            llm.submit([2], GREEDY)
            with pytest.raises(EngineError, match="lost with this request"):
                await rest(stream)
            assert llm.health.state != "ready"

    asyncio.run(main())


# The end ------------------------------------------------------------------------------------------------------------


def test_close_leaves_no_process_no_descriptor_and_no_thread() -> None:
    def descriptors() -> list[str]:
        return sorted(os.listdir("/proc/self/fd"))

    async def main() -> None:
        await asyncio.to_thread(int)  # the loop's own threads
        before, threads = descriptors(), threading.active_count()
        for moment in ("loading", "ready", "working", "dead"):
            llm = AsyncLLM.launch(SLOW, process=True)
            await until(lambda: llm.engine_pid is not None)  # noqa: B023
            pid = llm.engine_pid
            assert pid is not None
            if moment != "loading":
                await llm.ready()
            if moment == "working":
                await anext(llm.submit(ids("x"), SOME))
            if moment == "dead":
                os.kill(pid, signal.SIGKILL)
            await llm.close()
            assert llm.engine_pid is None
            assert has_ended(pid, 0.0)
            assert descriptors() == before
            assert threading.active_count() == threads

    asyncio.run(main())
