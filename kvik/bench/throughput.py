"""Offline throughput: many requests at once through LLM.generate, and the fraction of what memory allows.

What the run must read is counted from its requests and from the steps it took: every weight once a step, every key and
value that is attended to once. This file knows nothing of how requests are scheduled.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from kvik.bench.evidence import Result
from kvik.bench.measure import Progress, Repeat, interleaved
from kvik.bench.run_cost import run_limits
from kvik.bench.workbench import (
    engine_bench,
)
from kvik.bench.workload import Requests
from kvik.config import EngineConfig
from kvik.engine.build import build_engine
from kvik.engine.llm import LLM
from kvik.errors import ConfigError, ContextLengthError, KvikError
from kvik.request import SamplingParams

METHOD = (
    "All requests are handed to LLM.generate at once, end tokens ignored; a sample is the whole run, wall time around "
    "it, over the tokens of the answers. The first token of every prompt differs from sample to sample, so that no "
    "sample finds the prompts of another one in the prefix cache. Cost per output token: all streamed weights times "
    "the steps taken, and the keys and values that decodes attend to, over the output tokens; the arithmetic of the "
    "prompts is not in it, so the fraction is a lower bound of how well the time was used."
)
WARMUP_PROMPT = [1, 2, 3, 4]


def measure_throughput(
    config: EngineConfig,
    requests: Requests,
    temperature: float,
    repeat: Repeat,
    progress: Progress,
    show_bar: bool = True,
) -> Result:
    """Throughput of these requests. Raises KvikError for requests that do not fit, before any of them runs."""
    with LLM.from_engine(build_engine(config)) as llm:
        check_fit(llm, requests)
        progress(
            f"{llm.engine.memory.model}: {len(requests.prompts)} requests, {requests.input_tokens} tokens in, "
            f"{requests.output_tokens} out"
        )
        llm.generate([WARMUP_PROMPT], SamplingParams(max_tokens=2, ignore_eos=True), use_tqdm=False)
        taker = Taker(llm, requests, temperature, show_bar)
        samples = interleaved(taker.take, "tokens_per_s", repeat, progress)
        return throughput_result(llm, requests, temperature, samples, repeat)


def check_fit(llm: LLM, requests: Requests) -> None:
    """Raises ContextLengthError for a request the engine cannot hold, ConfigError for tokens it does not have."""
    pairs = zip(requests.prompts, requests.output_lens, strict=True)
    longest = max(len(prompt) + asked for prompt, asked in pairs)
    limit, vocab_size = llm.engine.memory.max_model_len, llm.engine.spec.vocab_size
    if longest > limit:
        raise ContextLengthError(f"the longest request has {longest} tokens; this engine holds at most {limit}")
    highest = max(max(prompt) for prompt in requests.prompts)
    if highest >= vocab_size:
        raise ConfigError(f"prompts hold the token id {highest}; the model's are below {vocab_size}")


class Taker:
    """Takes samples, each with prompts that none before it had."""

    def __init__(self, llm: LLM, requests: Requests, temperature: float, show_bar: bool) -> None:
        self._llm, self._requests, self._show_bar = llm, requests, show_bar
        self._taken = 0
        self._params = [
            SamplingParams(temperature=temperature, max_tokens=asked, ignore_eos=True, seed=index)
            for index, asked in enumerate(requests.output_lens)
        ]

    def take(self) -> dict[str, Any]:
        """One run. Raises what made a request fail."""
        vocab_size = self._llm.engine.spec.vocab_size
        prompts = fresh_prompts(self._requests.prompts, self._taken, vocab_size)
        self._taken += 1
        before = self._llm.engine.stats()
        start = time.perf_counter()
        outputs = self._llm.generate(prompts, self._params, use_tqdm=self._show_bar)
        seconds = time.perf_counter() - start
        after = self._llm.engine.stats()
        for output in outputs:
            if output.error is not None:
                raise KvikError(f"request {output.request_id} failed: {output.error}") from output.error
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        return {
            "seconds": seconds,
            "tokens": tokens,
            "tokens_per_s": tokens / seconds,
            "total_tokens_per_s": (tokens + self._requests.input_tokens) / seconds,
            "steps": after.steps - before.steps,
            "preemptions": after.preemptions - before.preemptions,
            "cached_prompt_tokens": after.prompt_tokens_cached - before.prompt_tokens_cached,
        }


def fresh_prompts(prompts: Sequence[Sequence[int]], repetition: int, vocab_size: int) -> list[list[int]]:
    """The prompts with another first token in every repetition: no block of them is one that was cached before."""
    return [[(prompt[0] + repetition) % vocab_size, *prompt[1:]] for prompt in prompts]


def throughput_result(
    llm: LLM, requests: Requests, temperature: float, samples: list[dict[str, Any]], repeat: Repeat
) -> Result:
    """The evidence of a run. The fewest steps any sample took bound what had to be read."""
    bench = engine_bench(llm.engine)
    limits = run_limits(bench.cost, requests, min(sample["steps"] for sample in samples))
    workload = {
        "requests": len(requests.prompts),
        "input_tokens": requests.input_tokens,
        "output_tokens": requests.output_tokens,
        "shortest_input": min(map(len, requests.prompts)),
        "longest_input": max(map(len, requests.prompts)),
        "shortest_output": min(requests.output_lens),
        "longest_output": max(requests.output_lens),
        "temperature": temperature,
        "tokens_per_sample": requests.output_tokens,
    }
    return bench.result("throughput", workload, samples, repeat, limits=limits, method=METHOD)
