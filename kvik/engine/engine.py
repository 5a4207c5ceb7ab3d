"""The engine: accepts requests and advances all of them, one step at a time.

    plan = self.scheduler.plan()                  which request computes which tokens
    result = self._run(plan)                      the model
    moved = self.scheduler.commit(plan, result)   who has a new token, who has ended

Around these three lines it checks what comes in and keeps what users see (`Answer`). One caller at a time. It knows
nothing of prompts as text, of progress bars, of processes or of HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvik.checkpoint.checkpoint import Checkpoint
from kvik.config import EngineConfig
from kvik.engine.admission import Admission
from kvik.engine.continuation import Continuation
from kvik.engine.grammars import Grammars
from kvik.engine.isolation import run_isolating
from kvik.engine.ledger import Ledger
from kvik.engine.loaded import plan_loaded
from kvik.engine.memory import MemoryPlan
from kvik.engine.metrics import EngineMetrics, RequestTimes
from kvik.engine.outputs import Answer, TextStream
from kvik.engine.stats import EngineStats, snapshot
from kvik.errors import InvalidRequestError
from kvik.request import FinishReason, Request, SamplingParams
from kvik.runners.runner import Runner
from kvik.scheduler import Scheduler
from kvik.step import StepPlan, StepResult
from kvik.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from kvik.text.matcher import Matcher


class Engine:
    """One loaded model and the requests it is working on.

    `runner` has loaded `checkpoint`; its KV cache is allocated here, as `memory` says or as what is free allows.
    `clock` is monotonic, in seconds. Raises ConfigError, NotEnoughMemoryError.
    """

    def __init__(
        self,
        config: EngineConfig,
        checkpoint: Checkpoint,
        runner: Runner,
        tokenizer: Tokenizer | None,
        *,
        memory: MemoryPlan | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        spec = checkpoint.spec
        if memory is None:
            memory = plan_loaded(checkpoint, config, runner)
        runner.allocate(memory.num_blocks, memory.block_size)
        self.config, self.spec, self.runner, self.tokenizer, self.memory = config, spec, runner, tokenizer, memory
        self.scheduler = Scheduler(
            config.scheduler,
            num_blocks=memory.num_blocks,
            block_size=memory.block_size,
            max_model_len=memory.max_model_len,
            prefix_caching=config.cache.prefix_caching,
        )
        eos_ids = (*spec.eos_ids, *(tokenizer.eos_ids if tokenizer else ()))
        self._admission = Admission(spec.vocab_size, memory.max_model_len, eos_ids, config.runner.seed)
        self.metrics = EngineMetrics()
        self._ledger = Ledger(self.metrics, self.scheduler.abort)
        self.grammars = Grammars(tokenizer, spec)
        self.observer: Callable[[StepPlan, list[Request], float], None] | None = None
        """Called after every step with its plan, the requests that moved and the seconds it took; None: nobody is."""
        self._clock = clock
        self._next_key = 0
        self._arrivals = 0

    def add(
        self,
        prompt_token_ids: Any,
        params: SamplingParams,
        *,
        request_id: str,
        prompt_text: str | None = None,
        priority: int = 0,
        salt: bytes = b"",
        stream: bool = False,
        matcher: Matcher | None = None,
    ) -> Answer:
        """Accept a request. Its choices have the keys `answer.keys`; with `stream`, text is made at every step.

        The grammar of `params` is compiled here, which may take milliseconds, unless `matcher` is what
        `grammars.compile` made of it elsewhere. Raises InvalidRequestError (ContextLengthError if too long); whatever
        is raised, nothing of the request is kept.
        """
        try:
            self._check(request_id, params)
            request = self._admission.request(
                self._next_key, self._arrivals, prompt_token_ids, params, priority=priority, salt=salt
            )
            answer = Answer(
                request,
                request_id=request_id,
                prompt_text=prompt_text,
                times=RequestTimes(self._clock()),
                stream=stream,
                detokenizers=[self._new_detokenizer(request) for _ in range(params.n)],
            )
            self._enter(request, matcher)
        except InvalidRequestError:
            self.metrics.refused += 1
            raise
        self._next_key += params.n
        self._arrivals += 1
        self._ledger.open(answer)
        return answer

    def step(self) -> list[Answer]:
        """Advance the requests the scheduler picks. Returns the answers that moved or ended.

        Raises RunnerGoneError: no request has failed by itself, but none will be answered here any more.
        """
        started = self._clock()
        self._ledger.end_overdue(started)

        plan, result = self._run(self.scheduler.plan())
        moved = self.scheduler.commit(plan, result) if result else []
        faults = self._follow(plan, result, moved) if result and len(self.grammars) else {}

        now = self._clock()
        self._ledger.update(moved, now)
        self._fail(faults)
        self.metrics.count_step(plan.num_rows, plan.num_tokens, now - started)
        if self.observer is not None:
            self.observer(plan, moved, now - started)
        touched = self._ledger.take_touched(now)
        self._close_grammars(touched)
        return touched

    def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT) -> Answer | None:
        """End a request with what it has. None if no unfinished request has this name."""
        answer = self._ledger.get(request_id)
        if answer is not None:
            self._ledger.end(answer, reason, self._clock())
            self._close_grammars([answer])
        return answer

    def answer_of(self, key: int) -> Answer | None:
        """The answer that a scheduler's key belongs to, if it is unfinished or has ended in the step just done."""
        return self._ledger.answer_of(key)

    def has_unfinished(self) -> bool:
        """Whether any accepted request has not ended."""
        return len(self._ledger) > 0

    def stats(self) -> EngineStats:
        """A snapshot of everything that is counted."""
        return snapshot(self.metrics, self.scheduler.stats(), self.runner.memory(), self.memory)

    def close(self) -> None:
        """Abort what is unfinished and free the model. Idempotent."""
        for request_id in self._ledger.request_ids():
            self.abort(request_id)
        self.runner.close()

    def _enter(self, request: Request, matcher: Matcher | None) -> None:
        """Into the schedule, as the last of all that may fail."""
        if request.params.grammar is not None and matcher is None:
            matcher = self.grammars.compile(request.params.grammar)
        try:
            if matcher is not None:
                self.grammars.open(request, matcher)
            self.scheduler.add(request)
        except BaseException:
            self.grammars.close((request.key,))
            raise

    def _check(self, request_id: str, params: SamplingParams) -> None:
        if request_id in self._ledger:
            raise InvalidRequestError(f"request_id {request_id!r} belongs to an unfinished request", param="request_id")
        if params.stop and self.tokenizer is None:
            raise InvalidRequestError("stop is set; this model has no tokenizer to find strings with", param="stop")

    def _new_detokenizer(self, request: Request) -> TextStream | None:
        return Continuation(self.tokenizer, request.tokens, request.params.stop) if self.tokenizer else None

    def _follow(self, plan: StepPlan, result: StepResult, moved: list[Request]) -> dict[int, Exception]:
        """Say why draws with a mask failed, and end texts that nothing can be added to. Returns which choices fail for
        what reason, once the ledger knows them all.
        """
        self._fail(self.grammars.explain(plan, result))
        faults, complete = self.grammars.advance(moved)
        for key in complete:
            self.scheduler.finish(key, FinishReason.STOP)
        return faults

    def _fail(self, faults: dict[int, Exception]) -> None:
        """End the choices of these keys with an error, unless they have ended already."""
        for key, error in faults.items():
            answer = self._ledger.answer_of(key)
            if answer is not None and answer.choices[key - answer.keys[0]].finish_reason is None:
                self._ledger.fail(key, error, self._clock())

    def _close_grammars(self, answers: list[Answer]) -> None:
        for answer in answers if len(self.grammars) else []:
            if answer.is_finished:
                self.grammars.close(answer.keys)

    def _run(self, plan: StepPlan) -> tuple[StepPlan, StepResult | None]:
        """The plan with the masks of texts that follow a grammar, and the model's answer to it. If rows raise, their
        requests fail and the plan is taken back: the others are computed again, to the same bytes. Ctrl-C takes it
        back too.
        """
        try:
            plan, faults = self.grammars.masked(plan)
            self._fail(faults)
            outcome = run_isolating(self.runner, plan)
        except BaseException:
            self.scheduler.cancel(plan)
            raise
        self.metrics.steps_isolated += outcome.isolated
        if not outcome.faults:
            return plan, outcome.result
        self.scheduler.cancel(plan)
        self._fail(outcome.faults)
        return plan, None
