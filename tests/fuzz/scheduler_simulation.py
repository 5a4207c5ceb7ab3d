"""A model and a KV cache made of histories, to find out whether a scheduler ever loses, mixes or repeats a token.

Every slot of the simulated cache holds the salt and all tokens up to that position, so whatever a row attends to can
be compared with what it should be. The next token is a hash of the whole history and the seed: one wrong slot, copy or
seed changes everything after it, and `expected_tokens` knows what should have come. It does not know how the scheduler
decides; it reads only plans, and requests that have ended.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np

from kvik.config import SchedulerOptions
from kvik.request import FinishReason, Request, SamplingParams, choice_seed
from kvik.scheduler import Scheduler, check_invariants
from kvik.step import StepPlan, StepResult, TopLogprobs

VOCAB = 7
History = tuple[int, ...]
Slot = tuple[int, int]


def draw(history: History, seed: int, banned: frozenset[int] = frozenset()) -> int:
    """The token after this history; the next one up when it is banned."""
    token = zlib.crc32(np.array(history, np.int32).tobytes(), seed & 0xFFFFFFFF) % VOCAB
    while token in banned:
        token = (token + 1) % VOCAB
    return token


def score(history: History, target: int) -> float:
    """What stands for the log-probability of a target after this history."""
    return -float(zlib.crc32(np.array((*history, target), np.int32).tobytes()) % 1000)


def expected_tokens(
    prompt: History, seed: int, params: SamplingParams, stop_ids: frozenset[int], limit: int
) -> History:
    """Prompt and answer of a request that is alone in the world."""
    tokens = prompt
    while True:
        banned = stop_ids if len(tokens) - len(prompt) < params.min_tokens else frozenset[int]()
        tokens = (*tokens, draw(tokens, seed, banned))
        if tokens[-1] in stop_ids or len(tokens) >= limit:
            return tokens


@dataclass
class Ask:
    """What a request was when it was accepted."""

    prompt: History
    seed: int
    params: SamplingParams
    stop_ids: frozenset[int]
    limit: int
    salt: bytes


@dataclass
class Simulation:
    """A scheduler, its requests, and a cache that remembers what was written where."""

    scheduler: Scheduler
    asks: dict[int, Ask] = field(default_factory=dict)
    """By key, further choices included."""
    ended: dict[int, Request] = field(default_factory=dict)
    cache: dict[Slot, tuple[bytes, History]] = field(default_factory=dict)
    failing: set[int] = field(default_factory=set)
    """Keys whose next draw finds NaN."""
    next_key: int = 0
    num_steps: int = 0
    cut: set[int] = field(default_factory=set)
    """Keys that were ended from outside."""

    # Requests -------------------------------------------------------------------------------------------------------

    def add(
        self,
        prompt: list[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        salt: bytes = b"",
        stop: int | None = None,
        seed: int | None = None,
    ) -> int:
        """Queue a request. Returns its key."""
        key, self.next_key = self.next_key, self.next_key + params.n
        stop_ids = frozenset(() if stop is None else (stop,))
        request = Request(
            key=key,
            tokens=list(prompt),
            num_prompt_tokens=len(prompt),
            params=params,
            max_total_tokens=len(prompt) + (params.max_tokens or 1),
            stop_ids=stop_ids,
            seed=key * 7919 if seed is None else seed,
            priority=priority,
            arrival=key,
            salt=salt,
        )
        self.scheduler.add(request)
        for choice in range(params.n):
            seed = choice_seed(request.seed, choice)
            self.asks[key + choice] = Ask(tuple(prompt), seed, params, stop_ids, request.max_total_tokens, salt)
        return key

    def live_keys(self) -> list[int]:
        return sorted({sequence.request.key for sequence in self.scheduler.sequences.values()})

    def abort(self, key: int, reason: FinishReason = FinishReason.ABORT) -> None:
        """Abort twice: the second time nothing may happen (I10)."""
        forked = {other for other, sequence in self.scheduler.sequences.items() if sequence.request.key == key}
        request = self.scheduler.abort(key, reason)
        assert self.scheduler.abort(key, reason) is None
        if request is None:
            return
        assert request.finish_reason is reason
        assert not forked & self.ended.keys(), "ended twice"
        self.ended.update(dict.fromkeys(forked, request))
        self.cut |= forked
        self.failing -= forked

    def fail_next(self, key: int) -> None:
        """The logits of this request's next draw are NaN."""
        self.failing.add(key)

    # Steps ----------------------------------------------------------------------------------------------------------

    def step(self, abort_in_flight: tuple[int, ...] = (), cancel: bool = False) -> int:
        """Plan, run, commit and check everything. Returns the number of rows."""
        first = self.scheduler.seats.running[:1]
        plan = self.scheduler.plan()
        assert not first or first[0].slot >= 0, "the first in order was preempted for another"
        assert plan.num_rows or not self.scheduler.has_unfinished(), "deadlock: unfinished requests, and nothing to do"
        self.check_limits(plan)
        result = self.run(plan)
        for key in abort_in_flight:
            self.abort(key)
        if cancel:
            self.scheduler.cancel(plan)
        else:
            self.book(plan, result)
        check_invariants(self.scheduler)
        self.num_steps += 1
        return plan.num_rows

    def book(self, plan: StepPlan, result: StepResult) -> None:
        before = set(self.ended)
        touched = self.scheduler.commit(plan, result)
        keys = [request.key for request in touched]
        assert keys == [key for key in plan.sample.keys.tolist() if key not in before]
        for request in touched:
            if request.is_finished:
                assert request.key not in self.ended, "ended twice"
                self.ended[request.key] = request
                self.failing.discard(request.key)

    def run(self, plan: StepPlan) -> StepResult:
        """Copy, write, compare what every row attends to with its history, and draw."""
        self.copy(plan)
        histories = [self.write(plan, row) for row in range(plan.num_rows)]
        for row, (salt, history) in enumerate(histories):
            for position in range(len(history)):
                held = self.cache.get(self.slot(plan, row, position))
                assert held == (salt, history[: position + 1]), (
                    f"row {row} (key {plan.keys[row]}) attends at {position} to {held}, not to its own {history}"
                )
        return self.answer(plan, [history for _, history in histories])

    def slot(self, plan: StepPlan, row: int, position: int) -> Slot:
        block, offset = divmod(position, self.scheduler.tables.block_size)
        return int(plan.block_tables[row, block]), offset

    def copy(self, plan: StepPlan) -> None:
        sources = {source for source, _ in plan.copies.tolist()}
        targets = [target for _, target in plan.copies.tolist()]
        assert len(set(targets)) == len(targets)
        assert not sources & set(targets), "a target is a source"
        for source, target in plan.copies.tolist():
            for offset in range(self.scheduler.tables.block_size):
                if (source, offset) in self.cache:
                    self.cache[target, offset] = self.cache[source, offset]

    def write(self, plan: StepPlan, row: int) -> tuple[bytes, History]:
        """Write a row's tokens behind what the cache holds before them. Returns the salt and the whole history."""
        begin, end = plan.query_start_loc[row : row + 2].tolist()
        positions = plan.positions[begin:end].tolist()
        salt = self.asks[int(plan.keys[row])].salt
        history: History = ()
        if positions[0]:
            salt, history = self.cache[self.slot(plan, row, positions[0] - 1)]
        assert positions == list(range(len(history), len(history) + end - begin))
        for position, token in zip(positions, plan.token_ids[begin:end].tolist(), strict=True):
            history = (*history, token)
            self.cache[self.slot(plan, row, position)] = (self.asks[int(plan.keys[row])].salt, history)
        assert len(history) == plan.seq_lens[row]
        return salt, history

    def answer(self, plan: StepPlan, histories: list[History]) -> StepResult:
        sample = plan.sample
        tokens, failed = [], []
        for index, row in enumerate(sample.rows.tolist()):
            key, history = int(sample.keys[index]), histories[row]
            assert sample.positions[index] == len(history)
            assert sample.seeds[index] == self.asks[key].seed
            self.check_penalty_history(plan, index, history)
            bias = slice(*sample.bias_start[index : index + 2].tolist())
            banned = frozenset(sample.bias_tokens[bias][np.isneginf(sample.bias_values[bias])].tolist())
            failed.append(key in self.failing)
            tokens.append(-1 if failed[-1] else draw(history, int(sample.seeds[index]), banned))
        scores = [self.score_entry(plan, entry, histories) for entry in range(len(plan.score))]
        return StepResult(
            np.array(tokens, np.int32), np.array(failed, bool), scored=TopLogprobs(np.array(scores, np.float32))
        )

    def check_penalty_history(self, plan: StepPlan, index: int, history: History) -> None:
        sample = plan.sample
        ask = self.asks[int(sample.keys[index])]
        begin, end = sample.history_start[index : index + 2].tolist()
        expected = history if ask.params.has_penalties else ()
        assert tuple(sample.history_tokens[begin:end].tolist()) == expected
        assert sample.history_prompt[index] == (len(ask.prompt) if ask.params.has_penalties else 0)

    def score_entry(self, plan: StepPlan, entry: int, histories: list[History]) -> float:
        flat, target = int(plan.score.indices[entry]), int(plan.score.targets[entry])
        row = int(np.searchsorted(plan.query_start_loc, flat, side="right")) - 1
        return score(histories[row][: plan.positions[flat] + 1], target)

    # What must hold -------------------------------------------------------------------------------------------------

    def check_limits(self, plan: StepPlan) -> None:
        """I7, and what the policies promise of a step."""
        options = self.scheduler.options
        assert len(set(plan.keys.tolist())) == plan.num_rows
        assert len(self.scheduler.seats.running) <= options.max_num_seqs
        counts = np.diff(plan.query_start_loc)
        assert (counts > 0).all()
        alone = plan.num_rows == 1 and not options.chunked_prefill
        assert plan.num_tokens <= options.max_num_batched_tokens or alone
        drawn = set(plan.sample.rows.tolist())
        if not options.chunked_prefill:
            assert drawn == set(range(plan.num_rows)), "a prompt was cut although chunked prefill is off"

    def drain(self) -> None:
        """Run to the end within a bound (I9), then check every answer and that nothing is left behind (I8)."""
        work = sum(ask.limit for ask in self.asks.values())
        bound = self.num_steps + 2 * (work + 1) * (len(self.asks) + 1)
        while self.scheduler.has_unfinished():
            self.step()
            assert self.num_steps <= bound, "starvation"
        pool = self.scheduler.tables.pool
        assert pool.num_held == 0
        assert self.ended.keys() == self.asks.keys(), "accepted requests that never ended"
        for key, request in self.ended.items():
            self.check_answer(key, request)

    def check_answer(self, key: int, request: Request) -> None:
        ask = self.asks[key]
        expected = expected_tokens(ask.prompt, ask.seed, ask.params, ask.stop_ids, ask.limit)
        assert tuple(request.tokens) == expected[: len(request.tokens)] or request.key != key
        if key not in self.cut and request.finish_reason is not FinishReason.ERROR:
            assert tuple(request.tokens) == expected
            stopped = expected[-1] in ask.stop_ids
            assert request.finish_reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)
            assert request.stop_token == (expected[-1] if stopped else None)
            if ask.params.prompt_logprobs is not None:
                scores = [score(ask.prompt[:at], ask.prompt[at]) for at in range(1, len(ask.prompt))]
                assert [entry and entry.logprob for entry in request.prompt_logprobs] == [None, *scores]


def new_simulation(
    *,
    num_blocks: int,
    block_size: int,
    prefix_caching: bool = True,
    max_model_len: int = 64,
    **options: int | str | bool,
) -> Simulation:
    """A simulation of a small scheduler; further options are those of SchedulerOptions."""
    return Simulation(
        Scheduler(
            SchedulerOptions(**options),  # type: ignore[arg-type]
            num_blocks=num_blocks,
            block_size=block_size,
            max_model_len=max_model_len,
            prefix_caching=prefix_caching,
        )
    )
