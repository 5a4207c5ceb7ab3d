"""Puts one scene to one engine and writes down everything: when each token came, what was computed, what was held.

The engine is stepped by hand, so that requests come at the same step every time and every token has the time of the
step that gave it. What was computed is counted from the step plans, apart from the engine's own counters. This file
knows nothing of rungs, of other engines or of summaries.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from kvik.bench import load
from kvik.bench.ladder.scenes import Arrival, Scene
from kvik.bench.machine import last_level_cache_bytes
from kvik.bench.run_cost import kv_bytes_read
from kvik.bench.workbench import engine_bench
from kvik.engine.engine import Engine
from kvik.engine.memory import blocks_for
from kvik.engine.outputs import Answer
from kvik.errors import KvikError
from kvik.request import Request, SamplingParams
from kvik.step import StepPlan

Clock = Callable[[], float]


class _Guest:
    """One request of the scene, with the times of its tokens."""

    def __init__(self, answer: Answer, arrived: float) -> None:
        self.answer = answer
        self.arrived = arrived
        self.first = self.last = 0.0
        self.tokens = 0
        self.seen = 0
        """Prompt tokens computed so far, whatever was computed again."""

    def note(self, now: float, gaps: Counter[float]) -> int:
        """Book the tokens that are new; how many there are."""
        count = self.answer.choices[0].num_tokens
        new, self.tokens = count - self.tokens, count
        if new and self.tokens == new:
            self.first = now
        elif new:
            gaps[round(now - self.last, 6)] += new
        self.last = now if new else self.last
        return new


class Player:
    """Plays a scene on an engine that does nothing else.

    `room_bytes` is what weights and KV cache may take together.
    """

    def __init__(self, engine: Engine, scene: Scene, room_bytes: int, clock: Clock = time.perf_counter) -> None:
        self._engine, self._scene, self._room, self._clock = engine, scene, room_bytes, clock
        self._guests: list[_Guest] = []
        self._by_key: dict[int, _Guest] = {}
        self._gaps: Counter[float] = Counter()
        self._computed: Counter[int] = Counter()
        self._generated = 0
        self._held = [0, 0, 0, 0]
        """Over all steps: tokens held, slots held; at most: slots held, requests running."""

    def play(self) -> dict[str, Any]:
        """One run. Raises whatever made a request fail."""
        self._warm()
        before, started = self._engine.stats(), load.now()
        self._engine.observer = self._observe
        start = end = self._clock()
        while self._arrive() or self._engine.has_unfinished():
            touched = self._engine.step()
            end = self._clock()
            self._note(touched, end)
            self._look()
        self._engine.observer = None
        if len(self._guests) < len(self._scene.arrivals):
            raise KvikError(f"scene {self._scene.name} ended with requests that never came")
        did = load.between(started, load.now())
        after = self._engine.stats()
        counts = {
            "steps": after.steps - before.steps,
            "preemptions": after.preemptions - before.preemptions,
            "recomputed_tokens": after.recomputed_tokens - before.recomputed_tokens,
        }
        return self._record(end - start, counts, did)

    def _warm(self) -> None:
        """A short request, and the prompts that the scene wants computed before."""
        for index, prompt in enumerate([[1, 2, 3, 4], *self._scene.warm]):
            params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
            self._engine.add(prompt, params, request_id=f"warm-{index}")
            while self._engine.has_unfinished():
                self._engine.step()

    def _arrive(self) -> bool:
        """Let in those whose time has come; whether any came."""
        count = len(self._guests)
        arrivals = self._scene.arrivals
        while len(self._guests) < len(arrivals) and arrivals[len(self._guests)].after_tokens <= self._generated:
            self._admit(arrivals[len(self._guests)])
        return len(self._guests) > count

    def _admit(self, arrival: Arrival) -> None:
        params = SamplingParams(temperature=0.0, max_tokens=arrival.output_len, ignore_eos=True)
        now = self._clock()
        answer = self._engine.add(arrival.prompt, params, request_id=f"guest-{len(self._guests)}")
        guest = _Guest(answer, now)
        self._guests.append(guest)
        self._by_key[answer.keys[0]] = guest

    def _observe(self, plan: StepPlan, moved: list[Request], seconds: float) -> None:
        """Count what this step computed of each prompt for the first time."""
        starts, lens = plan.query_start_loc.tolist(), plan.seq_lens.tolist()
        for row, key in enumerate(plan.keys.tolist()):
            guest = self._by_key[key]
            begin = lens[row] - (starts[row + 1] - starts[row])
            end = min(lens[row], len(guest.answer.prompt_token_ids))
            self._computed[key] += max(0, end - max(begin, guest.seen))
            guest.seen = max(guest.seen, end)

    def _note(self, touched: list[Answer], now: float) -> None:
        for answer in touched:
            if answer.error is not None:
                raise KvikError(f"request {answer.request_id} failed: {answer.error}") from answer.error
            self._generated += self._by_key[answer.keys[0]].note(now, self._gaps)

    def _look(self) -> None:
        """What is held after a step."""
        stats = self._engine.scheduler.stats()
        if stats.running:
            self._held[0] += stats.kv_tokens
            self._held[1] += stats.kv_slots
        self._held[2] = max(self._held[2], stats.kv_slots)
        self._held[3] = max(self._held[3], stats.running)

    def _record(self, seconds: float, counts: dict[str, int], did: dict[str, Any]) -> dict[str, Any]:
        answers = [guest.answer.first.output_token_ids for guest in self._guests]
        tokens = sum(map(len, answers))
        return {
            "seconds": seconds,
            "tokens": tokens,
            "tokens_per_s": tokens / seconds,
            "input_tokens": self._scene.requests.input_tokens,
            **counts,
            "requests": self._columns(),
            "itl_s": sorted([gap, count] for gap, count in self._gaps.items()),
            "kv_cache": self._kv(),
            "memory_bytes": self._memory(),
            "needs": self._needs(counts["steps"]),
            "outputs_sha256": hashlib.sha256(json.dumps(answers).encode()).hexdigest(),
            "load": did,
        }

    def _columns(self) -> dict[str, list[Any]]:
        guests = self._guests
        return {
            "prompt_tokens": [len(guest.answer.prompt_token_ids) for guest in guests],
            "cached_tokens": [guest.answer.first.num_cached_tokens for guest in guests],
            "computed_tokens": [self._computed[guest.answer.keys[0]] for guest in guests],
            "asked_tokens": [arrival.output_len for arrival in self._scene.arrivals],
            "output_tokens": [guest.tokens for guest in guests],
            "ttft_s": [guest.first - guest.arrived for guest in guests],
            "tpot_s": [
                (guest.last - guest.first) / (guest.tokens - 1) if guest.tokens > 1 else None for guest in guests
            ],
            "e2e_s": [guest.last - guest.arrived for guest in guests],
        }

    def _kv(self) -> dict[str, Any]:
        memory = self._engine.memory
        tokens, slots, peak, running = self._held
        requests = self._scene.requests
        pairs = zip(requests.prompts, requests.output_lens, strict=True)
        wanted = [blocks_for(len(prompt) + asked, memory.block_size) * memory.block_size for prompt, asked in pairs]
        weights = self._engine.runner.memory().weights
        each = memory.kv_bytes_per_token * sum(wanted) / len(wanted)
        return {
            "tokens_held": tokens,
            "slots_held": slots,
            "utilisation": tokens / slots if slots else 1.0,
            "peak_slots": peak,
            "total_slots": memory.num_tokens,
            "peak_running": running,
            "block_size": memory.block_size,
            "bytes_per_token": memory.kv_bytes_per_token,
            "largest_batch": int(max(0, self._room - weights) / each),
        }

    def _memory(self) -> dict[str, int]:
        held = self._engine.stats().memory_bytes
        return {**held, "total": sum(held.values())}

    def _needs(self, steps: int) -> dict[str, Any]:
        """What the run had to read and compute at the least."""
        cost, columns = engine_bench(self._engine).cost, self._columns()
        read = steps * cost.streamed_weight_bytes() + kv_bytes_read(cost, self._scene.requests)
        rows = zip(columns["cached_tokens"], columns["prompt_tokens"], columns["output_tokens"], strict=True)
        operations = sum(cost.prefill_flops(cached, prompt + out - 1, sampled=out) for cached, prompt, out in rows)
        cache = last_level_cache_bytes()
        return {
            "bytes": read,
            "operations": operations,
            "bytes_bind": cache is None or read / steps > 2 * cache,
        }
