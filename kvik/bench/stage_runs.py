"""The stages of a request's way, each as one function from prompts to tokens: bare steps, and one layer more at a time.

    runner > + plans > + engine > + LLM > + AsyncLLM > + process > + HTTP > + streaming

Every stage answers the same prompts greedily with the same number of seats. This file knows nothing of clocks or of
what the stages are compared for.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import numpy as np

from kvik.bench.serve.asks import Form
from kvik.bench.serve.connection import Pool
from kvik.bench.serve.replies import Reply
from kvik.bench.serve.target import Target
from kvik.engine.admission import Admission
from kvik.engine.async_llm import AsyncLLM
from kvik.engine.engine import Engine
from kvik.engine.llm import LLM
from kvik.errors import KvikError
from kvik.request import SamplingParams
from kvik.scheduler import Scheduler
from kvik.step import StepPlan

T = TypeVar("T")
Prompts = Sequence[list[int]]
TIMEOUT_S = 600.0


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a stage answered: token ids, or text where no token ids cross; None: neither."""

    num_tokens: int
    token_ids: list[list[int]] | None = None
    texts: list[str] | None = None


def params_of(output_len: int) -> SamplingParams:
    """Greedy, of full length."""
    return SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True)


class Loop:
    """An event loop in a thread of its own, for the stages that need one. Use as a context."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stages")

    def __enter__(self) -> Loop:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to the end, from another thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


class Recorded:
    """The first two stages: a scheduler and a runner of their own, and the plans that came of them."""

    def __init__(self, engine: Engine, output_len: int) -> None:
        self._engine, self._params = engine, params_of(output_len)
        self._plans: list[StepPlan] = []
        self._keys: list[int] = []

    def record(self, prompts: Prompts) -> None:
        """Run once and keep the plans, for `replay` of the same prompts."""
        self._plans = []
        self.planned(prompts, lambda plan: self._plans.append(copy_plan(plan)))

    def replay(self, prompts: Prompts) -> Answers:
        """The recorded plans, one after another: nothing but the model's steps."""
        drawn = [self._engine.runner.run(plan).token_ids for plan in self._plans]
        rows: dict[int, list[int]] = {key: [] for key in range(len(prompts))}
        for plan, tokens in zip(self._plans, drawn, strict=True):
            for key, token in zip(plan.sample.keys.tolist(), tokens.tolist(), strict=True):
                rows[key].append(token)
        return answers_of([rows[key] for key in range(len(prompts))])

    def planned(self, prompts: Prompts, keep: Callable[[StepPlan], None] | None = None) -> Answers:
        """Plans from a scheduler, each run and booked."""
        engine, config, memory = self._engine, self._engine.config, self._engine.memory
        admission = Admission(engine.spec.vocab_size, memory.max_model_len, (), config.runner.seed)
        scheduler = Scheduler(
            config.scheduler,
            num_blocks=memory.num_blocks,
            block_size=memory.block_size,
            max_model_len=memory.max_model_len,
            prefix_caching=False,
        )
        requests = [admission.request(key, key, prompt, self._params) for key, prompt in enumerate(prompts)]
        for request in requests:
            scheduler.add(request)
        while scheduler.has_unfinished():
            plan = scheduler.plan()
            if keep is not None:
                keep(plan)
            scheduler.commit(plan, engine.runner.run(plan))
        return answers_of([request.output_token_ids for request in requests])

    @property
    def num_steps(self) -> int:
        """Of the recorded run."""
        return len(self._plans)


def copy_plan(record: Any) -> Any:
    """A plan that shares no memory with the books it was made from."""
    copies: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, np.ndarray):
            copies[field.name] = value.copy()
        elif dataclasses.is_dataclass(value):
            copies[field.name] = copy_plan(value)
    return dataclasses.replace(record, **copies)


def answers_of(token_ids: list[list[int]]) -> Answers:
    """Answers that are known by their tokens."""
    return Answers(sum(map(len, token_ids)), token_ids)


def run_engine(engine: Engine, prompts: Prompts, output_len: int) -> Answers:
    """The engine, a step at a time."""
    params = params_of(output_len)
    answers = [engine.add(prompt, params, request_id=f"stage-{n}") for n, prompt in enumerate(prompts)]
    while engine.has_unfinished():
        engine.step()
    return answers_of([list(answer.first.output_token_ids) for answer in answers])


def run_llm(llm: LLM, prompts: Prompts, output_len: int) -> Answers:
    """The offline face, text included where the model has any."""
    outputs = [each.outputs[0] for each in llm.generate(list(prompts), params_of(output_len), use_tqdm=False)]
    texts = [output.text for output in outputs] if llm.tokenizer is not None else None
    token_ids = [list(output.token_ids) for output in outputs]
    return Answers(sum(map(len, token_ids)), token_ids, texts)


def llm_logprobs(llm: LLM, prompts: Prompts, output_len: int) -> list[list[float]]:
    """Log-probabilities of the tokens drawn: what token ids can be recognized by where they do not cross."""
    params = dataclasses.replace(params_of(output_len), logprobs=0)
    outputs = [each.outputs[0] for each in llm.generate(list(prompts), params, use_tqdm=False)]
    return [[round(entry.logprob, 4) for entry in output.logprobs or ()] for output in outputs]


async def run_async(llm: AsyncLLM, prompts: Prompts, output_len: int) -> Answers:
    """The asynchronous face: every update of every request is taken as it comes."""
    params = params_of(output_len)

    async def one(prompt: list[int]) -> tuple[list[int], str]:
        tokens: list[int] = []
        pieces: list[str] = []
        async with llm.submit(prompt, params) as stream:
            async for update in stream:
                tokens += update.token_ids
                pieces.append(update.text)
        return tokens, "".join(pieces)

    pairs = await asyncio.gather(*(one(prompt) for prompt in prompts))
    token_ids = [tokens for tokens, _ in pairs]
    texts = [text for _, text in pairs] if llm.tokenizer is not None else None
    return Answers(sum(map(len, token_ids)), token_ids, texts)


class Http:
    """A server at the other end of HTTP. `has_text`: the model has a tokenizer."""

    def __init__(self, target: Target, model: str, has_text: bool, output_len: int) -> None:
        self._pool = Pool(target, time.perf_counter, TIMEOUT_S)
        self._has_text, self._output_len = has_text, output_len
        self._form = Form(model, ignore_eos=True)

    async def run(self, prompts: Prompts, *, stream: bool) -> Answers:
        """All requests at once, each on a connection of its own."""
        replies = await self._ask(prompts, dataclasses.replace(self._form, stream=stream))
        tokens = sum(reply.output_tokens or 0 for reply in replies)
        return Answers(tokens, None, [reply.text for reply in replies] if self._has_text else None)

    async def logprobs(self, prompts: Prompts, *, stream: bool) -> list[list[float]]:
        """Log-probabilities of the tokens drawn."""
        replies = await self._ask(prompts, dataclasses.replace(self._form, stream=stream, logprobs=True))
        return [[round(value, 4) for value in reply.logprobs if value is not None] for reply in replies]

    async def _ask(self, prompts: Prompts, form: Form) -> list[Reply]:
        target = self._pool.target
        bodies = [target.post(form.path, form.body(prompt, self._output_len)) for prompt in prompts]
        return list(await asyncio.gather(*map(self._pool.ask, bodies)))

    async def close(self) -> None:
        """Close the connections."""
        self._pool.close()


def require_equal(stages: dict[str, list[list[float]]]) -> None:
    """Raises KvikError naming the first stage whose log-probabilities differ from the first one's."""
    (first, expected), *others = stages.items()
    for name, found in others:
        for number, (ours, theirs) in enumerate(zip(expected, found, strict=True)):
            if ours != theirs:
                raise KvikError(f"request {number}: stage {name} draws {theirs}, but {first} draws {ours}")
