"""Latency without a server: one request after another through the engine, every token timed where it is drawn.

A sample is one request that has the engine to itself, so nothing waits and nothing shares its steps: TTFT is the
prompt, TPOT the step. Its first token differs from sample to sample, so that none finds its prompt in the prefix cache.
This file knows nothing of HTTP or of other requests.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvik.bench.decode import decode_limits, mean_bytes_per_token
from kvik.bench.evidence import Result
from kvik.bench.measure import Progress, Repeat, interleaved
from kvik.bench.serve.figures import spread
from kvik.bench.throughput import fresh_prompts
from kvik.bench.workbench import engine_bench
from kvik.bench.workload import draw_requests
from kvik.config import EngineConfig
from kvik.engine.build import build_engine
from kvik.engine.engine import Engine
from kvik.errors import ConfigError, ContextLengthError, KvikError
from kvik.request import SamplingParams

METHOD = (
    "Greedy requests of `input_len` random tokens, end tokens ignored, one after another through the engine, a step at "
    "a time. TTFT is from the moment before the request is added to the end of the step that drew its first token; "
    "E2E to the end of the step that drew its last; ITL is the time between two such ends; TPOT = (E2E - TTFT) / "
    "(tokens - 1). The metric is the rate of the tokens after the first, and its limit that of decoding alone."
)


@dataclass(frozen=True)
class LatencyWorkload:
    """Tokens in and out of every request."""

    input_len: int
    output_len: int

    def __post_init__(self) -> None:
        if self.output_len < 2:
            raise ConfigError(
                f"output_len is {self.output_len}; expected at least 2, for there to be a token after one"
            )


def measure_latency(config: EngineConfig, workload: LatencyWorkload, repeat: Repeat, progress: Progress) -> Result:
    """Latency of this workload. Raises KvikError for a request that does not fit."""
    engine = build_engine(config)
    try:
        longest, limit = workload.input_len + workload.output_len, engine.memory.max_model_len
        if longest > limit:
            raise ContextLengthError(f"a request has {longest} tokens; this engine holds at most {limit}")
        progress(
            f"{engine.memory.model}: one request after another, {workload.input_len} in, {workload.output_len} out"
        )
        samples = interleaved(Taker(engine, workload).take, "tokens_per_s", repeat, progress)
        return latency_result(engine, workload, samples, repeat)
    finally:
        engine.close()


class Taker:
    """Takes samples, each a request with a prompt of its own."""

    def __init__(
        self, engine: Engine, workload: LatencyWorkload, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._engine, self._workload, self._clock = engine, workload, clock
        vocab_size, length = engine.spec.vocab_size, workload.input_len
        self._prompts = draw_requests(1, (length, length), (1, 1), engine.config.runner.seed, vocab_size - 1).prompts
        self._taken = 0

    def take(self) -> dict[str, Any]:
        """One request to its end. Raises what made it fail."""
        engine, workload = self._engine, self._workload
        prompt = fresh_prompts(self._prompts, self._taken, engine.spec.vocab_size)[0]
        self._taken += 1
        params = SamplingParams(temperature=0.0, max_tokens=workload.output_len, ignore_eos=True)
        ends: list[float] = []
        steps, start = engine.metrics.steps, self._clock()
        answer = engine.add(prompt, params, request_id=f"latency-{self._taken}")
        choice = answer.choices[0]
        while not answer.is_finished:
            engine.step()
            now = self._clock()
            ends += [now] * (choice.num_tokens - len(ends))
        if answer.error is not None:
            raise KvikError(f"request {answer.request_id} failed: {answer.error}") from answer.error
        cached = answer.first.num_cached_tokens
        return sample_of(len(prompt), cached, [end - start for end in ends], engine.metrics.steps - steps)


def sample_of(prompt_tokens: int, cached: int, ends: Sequence[float], steps: int) -> dict[str, Any]:
    """One request, from the moments at which its tokens were there, in seconds after its start."""
    ttft, e2e, count = ends[0], ends[-1], len(ends)
    gaps = [[later - earlier, 1] for earlier, later in itertools.pairwise(ends)]
    columns = {
        "prompt_tokens": [prompt_tokens],
        "cached_tokens": [cached],
        "computed_tokens": [prompt_tokens - cached],
        "output_tokens": [count],
        "ttft_s": [ttft],
        "tpot_s": [(e2e - ttft) / (count - 1)],
        "e2e_s": [e2e],
    }
    run = {"tokens": count, "seconds": e2e, "tokens_per_s": count / e2e, "steps": steps}
    after = {"tokens": count - 1, "seconds": e2e - ttft, "tokens_per_s": (count - 1) / (e2e - ttft)}
    return {**after, "run": {**run, "requests": columns, "itl_s": gaps}}


def latency_result(engine: Engine, workload: LatencyWorkload, samples: list[dict[str, Any]], repeat: Repeat) -> Result:
    """The evidence of a run, with the percentiles over its requests."""
    bench = engine_bench(engine)
    per_token = mean_bytes_per_token(bench.cost, 1, workload.input_len, workload.output_len - 1)
    lengths = {"input_len": workload.input_len, "output_len": workload.output_len}
    result = bench.result(
        "latency",
        {**lengths, "tokens_per_sample": workload.output_len - 1},
        samples,
        repeat,
        limits=decode_limits(bench.cost, per_token, 1),
        method=METHOD,
    )
    result["latency"] = percentiles(samples)
    return result


def percentiles(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """TTFT, TPOT, ITL and E2E over all requests, in milliseconds."""
    columns = [sample["run"]["requests"] for sample in samples]
    times = {name: [column[f"{name}_s"][0] for column in columns] for name in ("ttft", "tpot", "e2e")}
    times["itl"] = [seconds for sample in samples for seconds, _ in sample["run"]["itl_s"]]
    return {f"{name}_ms": spread([1e6 * seconds for seconds in values]) for name, values in times.items()}
