"""AsyncLLM: the face of a supervised engine for programs that run on asyncio, the HTTP server among them.

The engine works in a thread of this process or in a child process; either way the event loop never waits for it. This
file turns prompts into token ids and updates into outputs; it knows nothing of how an engine is kept alive, of
scheduling or of HTTP.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any

from kvik.config import EngineConfig
from kvik.engine.build import build_engine, open_model, open_tokenizer
from kvik.engine.prompts import Prompt, encode_prompt
from kvik.engine.remote.channel import SubmitGate
from kvik.engine.remote.frames import ModelInfo, Submit
from kvik.engine.remote.host import BEAT_S
from kvik.engine.remote.link import Connect, Link
from kvik.engine.remote.process import ProcessLink
from kvik.engine.remote.stream import Stream
from kvik.engine.remote.supervisor import WATCHDOG_S, Health, Supervisor
from kvik.engine.remote.thread import ThreadLink
from kvik.engine.remote.transcript import Transcript
from kvik.errors import InvalidRequestError
from kvik.request import RequestOutput, SamplingParams
from kvik.text.tokenizer import Tokenizer

SHORT_TEXT = 2000
"""Characters that are made into tokens on the spot; longer texts in a thread."""
BEATS = 4
"""In the time of the watchdog, at least."""


def beat_s(watchdog_s: float) -> float:
    """The longest silence of an engine that is watched so closely."""
    return min(BEAT_S, watchdog_s / BEATS)


class AsyncLLM:
    """A loaded model on the running event loop. To be closed, or used in `async with`.

    Made by `start` or `launch`; `connect` is for programs that reach their engines in ways of their own.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        find_tokenizer: Callable[[], Tokenizer | None] = lambda: None,
        watchdog_s: float = WATCHDOG_S,
    ) -> None:
        self.tokenizer: Tokenizer | None = None
        """None until the model is found, and for a model without text."""
        self._find_tokenizer = find_tokenizer
        self._gate = SubmitGate()
        self._numbers = itertools.count(1)
        self._supervisor = Supervisor(connect, watchdog_s=watchdog_s, prepare=self._prepare)

    @classmethod
    async def start(
        cls, model: str | None = None, *, process: bool = False, watchdog_s: float = WATCHDOG_S, **options: Any
    ) -> AsyncLLM:
        """Load a model and wait until it is ready. Raises what `LLM` would; EngineError if its process dies."""
        llm = cls.launch(model, process=process, watchdog_s=watchdog_s, **options)
        try:
            await llm.ready()
        except BaseException:
            await llm.close()
            raise
        return llm

    @classmethod
    def launch(
        cls, model: str | None = None, *, process: bool = False, watchdog_s: float = WATCHDOG_S, **options: Any
    ) -> AsyncLLM:
        """Begin to load a model; `health` says how far that is. Requests are held until it is ready. With `process`,
        the engine is a child process, started again when it dies or shows no sign of life for `watchdog_s`.

        Raises TypeError for an unknown option, ConfigError for a bad value.
        """
        config = EngineConfig.from_options(model=model, **options)
        made = partial(ProcessLink, config) if process else partial(ThreadLink, partial(build_engine, config))
        connect: Callable[..., Link] = partial(made, beat_s=beat_s(watchdog_s))
        return cls(connect, find_tokenizer=lambda: open_tokenizer(open_model(config)), watchdog_s=watchdog_s)

    @property
    def info(self) -> ModelInfo | None:
        """None until the model is ready for the first time."""
        return self._supervisor.info

    @property
    def health(self) -> Health:
        """A snapshot of how the engine is."""
        return self._supervisor.health

    @property
    def engine_pid(self) -> int | None:
        """Process id of the child, while there is one."""
        return self._supervisor.pid

    async def ready(self) -> ModelInfo:
        """Wait until the model is ready for the first time. Raises why it cannot be."""
        return await self._supervisor.ready()

    def submit(
        self,
        token_ids: list[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        salt: bytes = b"",
    ) -> Stream:
        """Send a request to the engine, or hold it until there is one. What the engine refuses, the stream raises.

        Raises InvalidRequestError for values of the wrong type or a `request_id` that is in use, OverloadedError if the
        engine is far behind, EngineError if it has failed for good.
        """
        command = Submit(request_id or self._new_id(), token_ids, params, priority, salt)
        self._gate.check(command)
        flight = self._supervisor.desk.submit(command)
        return Stream(flight, self._supervisor.desk.abort, asyncio.get_running_loop())

    async def generate(
        self, prompt: Any, params: SamplingParams | None = None, *, request_id: str | None = None
    ) -> AsyncIterator[RequestOutput]:
        """Complete one prompt: an output with all there is whenever something is new. Leaving the loop aborts.

        Raises InvalidRequestError at once, and whatever makes the request fail where it does.
        """
        await self.ready()
        encoded = await self._encode(prompt)
        async with aclosing(self._outputs(encoded, params or SamplingParams(), request_id)) as outputs:
            async for output in outputs:
                yield output

    async def chat(
        self, messages: Any, params: SamplingParams | None = None, **template_variables: Any
    ) -> AsyncIterator[RequestOutput]:
        """Answer one conversation (a list of messages) through the model's chat template, like `generate`."""
        await self.ready()
        tokenizer = self.tokenizer
        if tokenizer is None or not tokenizer.has_chat_template:
            raise InvalidRequestError("messages are given; this model has no chat template", param="messages")
        token_ids = await asyncio.to_thread(tokenizer.encode_chat, messages, **template_variables)
        async with aclosing(self._outputs(Prompt(token_ids), params or SamplingParams(), None)) as outputs:
            async for output in outputs:
                yield output

    async def stats(self) -> dict[str, Any]:
        """One snapshot as plain data (`EngineStats`). Raises EngineError if the engine is not ready, or dies."""
        return await self._supervisor.desk.stats()

    async def watch(self) -> AsyncIterator[dict[str, Any]]:
        """What the engine's steps do, while this is iterated (kvik/engine/events.py says how it reads); after a restart
        with a new snapshot. Whoever is slow misses the oldest. Ends when there is no engine any more.
        """
        watchers = self._supervisor.desk.watchers
        queue = watchers.join()
        try:
            while (values := await queue.get()) is not None:
                yield values
        finally:
            watchers.leave(queue)

    async def close(self) -> None:
        """End the engine; what is unfinished fails with EngineError. Idempotent."""
        await self._supervisor.close()

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _prepare(self) -> None:
        """Find the model before an engine is started for it: what is wrong with it is known at once."""
        self.tokenizer = await asyncio.to_thread(self._find_tokenizer)

    async def _encode(self, prompt: Any) -> Prompt:
        text = prompt.get("prompt") if isinstance(prompt, dict) else prompt
        if isinstance(text, str) and len(text) > SHORT_TEXT:
            encoded = await asyncio.to_thread(encode_prompt, prompt, self.tokenizer)
        else:
            encoded = encode_prompt(prompt, self.tokenizer)
        ids = encoded.token_ids
        return replace(encoded, token_ids=ids.tolist() if hasattr(ids, "tolist") else list(ids))

    async def _outputs(
        self, prompt: Prompt, params: SamplingParams, request_id: str | None
    ) -> AsyncGenerator[RequestOutput, None]:
        async with self.submit(prompt.token_ids, params, request_id=request_id) as stream:
            transcript = Transcript(stream.request_id, prompt, params)
            async for update in stream:
                transcript.add(update)
                yield transcript.output()

    def _new_id(self) -> str:
        return f"request-{next(self._numbers)}"
