"""The stage ladder: the same requests through one layer more at a time, each as a share of the bare step.

The workload is the one of the report that this project started from: 40 requests, 8 at a time, 32 tokens in, 50 out;
or a single one. Stages take turns within a round, and rounds go there and back, so that a drift of the machine falls on
all of them. Tokens must be equal in all stages. This file knows nothing of how a stage works.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from kvik.bench.evidence import Result
from kvik.bench.machine import roofline
from kvik.bench.measure import Progress, Repeat, interleaved
from kvik.bench.run_cost import run_limits
from kvik.bench.serve.own_server import own_server
from kvik.bench.stage_checks import compare_stages
from kvik.bench.stage_runs import (
    Answers,
    Http,
    Loop,
    Prompts,
    Recorded,
    llm_logprobs,
    require_equal,
    run_async,
    run_engine,
    run_llm,
)
from kvik.bench.throughput import check_fit, fresh_prompts
from kvik.bench.workbench import engine_bench
from kvik.bench.workload import Requests, draw_requests
from kvik.config import EngineConfig
from kvik.engine.async_llm import AsyncLLM
from kvik.engine.build import build_engine, open_model
from kvik.engine.llm import LLM
from kvik.engine.memory import ModelFigures, blocks_for
from kvik.runners.choose import create_runner

Run = Callable[[Prompts], Answers]
PATIENCE_S = "36000"
"""The server need not refuse what waits long for a seat."""
WATCHDOG_S = 3600.0
"""A machine that is held up is no reason to start an engine again."""
SPARE = 1.25
"""Of the KV cache beyond what the seats need."""
METHOD = (
    "Every round puts the same prompts, new ones in every round, through every stage; all requests are handed over at "
    "once to as many seats as `concurrency`, greedy, end tokens ignored, prefix cache off; wall time around the stage. "
    "Every second round runs the stages in reverse. runner: the recorded step plans of the round, one after another. "
    "plans: scheduler and runner. engine: Engine.add and step. llm: LLM.generate, text included. async: AsyncLLM in a "
    "thread. process: AsyncLLM with the engine in a child process. http, stream: `kvik serve` as a process of its own, "
    "one reply or an event stream for each request. The shares are medians of the ratios within the rounds."
)


@dataclass(frozen=True)
class StageWorkload:
    """Requests and how many of them have a seat."""

    requests: Requests
    concurrency: int

    @classmethod
    def seed_002(cls, concurrency: int, count: int, input_len: int, output_len: int, vocab_size: int) -> StageWorkload:
        """Equal requests of random tokens."""
        lengths = (input_len, input_len), (output_len, output_len)
        return cls(draw_requests(count, *lengths, 0, vocab_size - 1), concurrency)

    @property
    def output_len(self) -> int:
        """Of every request."""
        return self.requests.output_lens[0]

    @property
    def longest(self) -> int:
        """Tokens of a whole request."""
        return len(self.requests.prompts[0]) + self.output_len


def stage_config(config: EngineConfig, workload: StageWorkload) -> EngineConfig:
    """The options that all stages share: seats, no prefix cache, a KV cache that holds the seats and little more."""
    scheduler = dataclasses.replace(config.scheduler, max_num_seqs=workload.concurrency)
    longest = config.model.max_model_len or workload.longest
    model = dataclasses.replace(config.model, max_model_len=max(longest, workload.longest))
    cache = dataclasses.replace(config.cache, prefix_caching=False)
    config = dataclasses.replace(config, model=model, scheduler=scheduler, cache=cache)
    if cache.kv_cache_memory is not None:
        return config
    checkpoint, runner = open_model(config), create_runner(config)
    figures = ModelFigures.of_checkpoint(checkpoint, config, runner.name)
    runner.close()
    block = cache.block_size
    tokens = workload.concurrency * blocks_for(workload.longest, block) * block
    room = int(SPARE * max(tokens, blocks_for(longest, block) * block) * figures.kv_bytes_per_token)
    return dataclasses.replace(config, cache=dataclasses.replace(cache, kv_cache_memory=room))


class Stages:
    """All stages of one model, loaded and ready."""

    def __init__(self, config: EngineConfig, workload: StageWorkload, stack: ExitStack) -> None:
        self.workload, length = workload, workload.output_len
        loop = stack.enter_context(Loop())
        llm = stack.enter_context(LLM.from_engine(build_engine(config)))
        check_fit(llm, workload.requests)
        options = {name: value for part in dataclasses.asdict(config).values() for name, value in part.items()}
        near = loop.run(AsyncLLM.start(watchdog_s=WATCHDOG_S, **options))
        stack.callback(lambda: loop.run(near.close()))
        far = loop.run(AsyncLLM.start(process=True, watchdog_s=WATCHDOG_S, **options))
        stack.callback(lambda: loop.run(far.close()))
        target = stack.enter_context(own_server(config, "--served-model-name", "stages", "--target-ttft", PATIENCE_S))
        http = Http(target, "stages", llm.tokenizer is not None, length)
        stack.callback(lambda: loop.run(http.close()))
        recorded = Recorded(llm.engine, length)
        self.llm, self._loop, self._http, self._recorded, self._rounds = llm, loop, http, recorded, 0
        self.runs: dict[str, Run] = {
            "runner": recorded.replay,
            "plans": recorded.planned,
            "engine": lambda prompts: run_engine(llm.engine, prompts, length),
            "llm": lambda prompts: run_llm(llm, prompts, length),
            "async": lambda prompts: loop.run(run_async(near, prompts, length)),
            "process": lambda prompts: loop.run(run_async(far, prompts, length)),
            "http": lambda prompts: loop.run(http.run(prompts, stream=False)),
            "stream": lambda prompts: loop.run(http.run(prompts, stream=True)),
        }

    def check_tokens(self) -> None:
        """Over HTTP no token ids cross: their log-probabilities must be the offline engine's. Raises KvikError."""
        prompts, length, http = self.workload.requests.prompts, self.workload.output_len, self._http
        found = {"llm": llm_logprobs(self.llm, prompts, length)}
        found["http"] = self._loop.run(http.logprobs(prompts, stream=False))
        found["stream"] = self._loop.run(http.logprobs(prompts, stream=True))
        require_equal(found)

    def take(self) -> dict[str, Any]:
        """One round: every stage once."""
        vocab_size = self.llm.engine.spec.vocab_size
        prompts = fresh_prompts(self.workload.requests.prompts, self._rounds, vocab_size)
        self._rounds += 1
        self._recorded.record(prompts)
        names = list(self.runs) if self._rounds % 2 else list(self.runs)[::-1]
        found = {name: take_stage(self.runs[name], prompts) for name in names}
        bare = found["runner"]
        times = {name: bare[name] for name in ("seconds", "tokens", "tokens_per_s")}
        return {**times, "steps": self._recorded.num_steps, "stages": {name: found[name] for name in self.runs}}


def take_stage(run: Run, prompts: Prompts) -> dict[str, Any]:
    """One stage of one round."""
    start = time.perf_counter()
    answers = run(prompts)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "tokens": answers.num_tokens,
        "tokens_per_s": answers.num_tokens / seconds,
        "tokens_digest": digest(answers.token_ids),
        "text_digest": digest(answers.texts),
    }


def digest(answers: Sequence[Any] | None) -> str | None:
    """What answers are compared by; None where there are none."""
    return None if answers is None else hashlib.sha256(json.dumps(answers).encode()).hexdigest()[:16]


@contextmanager
def open_stages(config: EngineConfig, workload: StageWorkload) -> Iterator[Stages]:
    """Load the model four times: here, in a thread, in a child process, and behind a server. Raises KvikError."""
    with ExitStack() as stack:
        yield Stages(stage_config(config, workload), workload, stack)


def measure_stages(
    config: EngineConfig, workload: StageWorkload, repeat: Repeat, progress: Progress, *, quick: bool = False
) -> Result:
    """The ladder. With `quick`, the machine's limits are measured once only. Raises KvikError, EvidenceError."""
    with open_stages(config, workload) as stages:
        name = stages.llm.engine.memory.model
        progress(f"{name}: {len(workload.requests.prompts)} requests, {workload.concurrency} at a time, in 8 stages")
        stages.check_tokens()
        known = roofline() if quick else None
        samples = interleaved(stages.take, "tokens_per_s", repeat, progress, (lambda: known) if known else roofline)
        return stages_result(stages, samples, repeat)


def stages_result(stages: Stages, samples: list[dict[str, Any]], repeat: Repeat) -> Result:
    """The evidence, with each stage beside the bare step. Raises EvidenceError if the stages do not agree."""
    bench, workload = engine_bench(stages.llm.engine), stages.workload
    limits = run_limits(bench.cost, workload.requests, min(sample["steps"] for sample in samples))
    described = {
        "stages": list(stages.runs),
        "num_prompts": len(workload.requests.prompts),
        "concurrency": workload.concurrency,
        "input_len": len(workload.requests.prompts[0]),
        "output_len": workload.output_len,
        "tokens_per_sample": workload.requests.output_tokens,
    }
    result = bench.result("stages", described, samples, repeat, limits=limits, method=METHOD)
    result["stages"] = compare_stages(samples)
    return result
