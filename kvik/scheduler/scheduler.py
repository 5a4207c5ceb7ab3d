"""The scheduler: plan() decides which request computes which tokens in the next step, commit() books what came of it.

There is no prefill phase and no decode phase. A request has tokens it knows and tokens it has computed, and each step
gives it some of the difference within a budget of tokens: running requests first, in order of priority and arrival,
then waiting ones. When blocks run out, the last in that order gives up all of its own and waits again (preemption by
recomputation). The first in order is never preempted for another, and alone it always fits: so something always ends.

Static batching, separate schedules and whole prompts are policies of the same loop. The scheduler does not know what
a token means, what computes it, or what time it is.
"""

from __future__ import annotations

from kvik.config import SchedulerOptions
from kvik.errors import InvalidRequestError
from kvik.request import FinishReason, Request, RequestState
from kvik.scheduler.admission import check_request
from kvik.scheduler.block_tables import BlockTables
from kvik.scheduler.outcome import NUMERICAL_ERROR, attach_logprobs, attach_scores, receive_token
from kvik.scheduler.plan_builder import Draft, PlanBuilder
from kvik.scheduler.queue import WaitingQueue
from kvik.scheduler.seats import Seats
from kvik.scheduler.sequence import Sequence
from kvik.scheduler.stats import Counters, SchedulerStats, take_stats
from kvik.step import StepPlan, StepResult


class Scheduler:
    """Requests on one side, StepPlans on the other. Not thread-safe; plan and commit alternate.

    The fields without an underscore are the books; read them, as `check_invariants` does, but do not write them.
    """

    def __init__(
        self, options: SchedulerOptions, *, num_blocks: int, block_size: int, max_model_len: int, prefix_caching: bool
    ) -> None:
        self.options = options
        self.max_model_len = max_model_len
        width = -(-max_model_len // block_size)
        self.tables = BlockTables(num_blocks, block_size, options.max_num_seqs, width, prefix_caching=prefix_caching)
        self._builder = PlanBuilder(options.max_num_seqs)
        self.seats = Seats(options.max_num_seqs, self.tables, self._builder)
        self.waiting = WaitingQueue()
        self.sequences: dict[int, Sequence] = {}
        """By key; the keys of choices that are not forked yet lead to the one that will fork."""
        self.counters = Counters()
        self._flight: Draft | None = None

    # What the engine asks -------------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Queue a request. Lowers its max_total_tokens to what the model and the whole KV cache hold.

        A request for n choices takes the keys key .. key + n - 1.
        Raises ContextLengthError or InvalidRequestError for what can never run, and for a key in use.
        """
        check_request(
            request,
            max_model_len=self.max_model_len,
            num_blocks=self.tables.pool.num_blocks,
            block_size=self.tables.block_size,
            max_num_seqs=self.options.max_num_seqs,
        )
        sequence = Sequence(request)
        for key in sequence.keys:
            if key in self.sequences:
                raise InvalidRequestError(f"key is {key}; expected one that no unfinished request has")
        self.sequences.update(dict.fromkeys(sequence.keys, sequence))
        if request.params.prompt_logprobs is not None:
            request.prompt_logprobs = [None]
        self.counters.accepted += sequence.num_choices
        self.waiting.push(sequence)

    def abort(self, key: int, reason: FinishReason = FinishReason.ABORT) -> Request | None:
        """End a request now. Returns it, or None when no unfinished request has this key; so it may be repeated.

        Before a request has forked, its n choices are one: aborting its own key ends them all, and the keys of the
        further choices are not known yet. While a plan that holds it is in flight its blocks stay held until commit;
        commit does not return it again.
        """
        sequence = self._find(key)
        if sequence is None:
            return None
        self._finish(sequence, reason)
        if sequence.in_flight:
            self.seats.leave(sequence)
        elif sequence.slot >= 0:
            self.seats.vacate(sequence)
        else:
            self.waiting.remove(sequence)
        return sequence.request

    def finish(self, key: int, reason: FinishReason) -> Request | None:
        """End a request for a reason only the caller knows, such as a stop string or a deadline. The same as abort."""
        return self.abort(key, reason)

    def preempt(self, key: int) -> bool:
        """Make a running request give up its blocks and wait again; no token may depend on it. For tests and operators.

        False when it does not run or is in flight.
        """
        sequence = self._find(key)
        if sequence is None or sequence.slot < 0 or sequence.in_flight:
            return False
        self._preempt(sequence)
        return True

    def has_unfinished(self) -> bool:
        return bool(self.sequences)

    @property
    def num_waiting(self) -> int:
        return len(self.waiting)

    @property
    def num_running(self) -> int:
        return len(self.seats.running)

    def stats(self) -> SchedulerStats:
        """What is held now and what was done so far. Costs about a microsecond per running request."""
        return take_stats(self.counters, self.num_waiting, self.seats.running, self.seats.leaving, self.tables)

    # The step -------------------------------------------------------------------------------------------------------

    def plan(self) -> StepPlan:
        """Decide the next step; a plan without rows when nothing is unfinished. Commit or cancel it before the next.

        Raises RuntimeError when a plan is still in flight.
        """
        if self._flight is not None:
            raise RuntimeError(f"step {self._flight.step} is still in flight; commit or cancel it before the next plan")
        draft = Draft(self.counters.steps, self.options.max_num_batched_tokens)
        draft.may_admit = self.options.batching == "continuous" or not self.seats.running
        prompts_first = self._prompts_come_first()
        if prompts_first:
            self._continue(draft, prompts_only=True)
            self._admit(draft)
        if not draft.rows:
            self._continue(draft)
            if not prompts_first:
                self._admit(draft)
        plan = self._builder.build(draft, self.tables.array, self.tables.collect_copies())
        self._flight = draft
        return plan

    def commit(self, plan: StepPlan, result: StepResult) -> list[Request]:
        """Book a step's result. Returns the requests that received a token or ended by it, forked choices included.

        Raises ValueError when this plan is not the one in flight or the result is not of its size.
        """
        draft = self._in_flight(plan)
        if len(result.token_ids) != len(draft.draws):
            raise ValueError(f"result has {len(result.token_ids)} tokens; the plan draws {len(draft.draws)}")
        self._land()
        self._advance(draft)
        attach_scores(draft.scores, result)
        self.seats.vacate_left()
        if draft.has_forks:
            self._fork(draft.draws)
        return self._receive(draft.draws, result)

    def cancel(self, plan: StepPlan) -> None:
        """Take back a plan that was not, or only partly, run: its requests are preempted and lose nothing but time.

        Raises ValueError when this plan is not the one in flight.
        """
        draft = self._in_flight(plan)
        self._land()
        self.seats.vacate_left()
        for sequence in reversed(draft.rows):
            if sequence.slot >= 0:
                self._preempt(sequence)

    # Planning -------------------------------------------------------------------------------------------------------

    def _prompts_come_first(self) -> bool:
        """Whether this step is for prompts alone, if there is any prompt work that can be done."""
        if self.options.schedule == "separate":
            return True
        if self.options.chunked_prefill:
            return False
        # A prompt that must be whole and does not fit beside the decodes would wait until they have all ended.
        beside = self.options.max_num_batched_tokens - self.num_running
        if any(sequence.num_missing > max(beside, 1) for sequence in self.seats.running):
            return True
        return bool(self.waiting) and self.waiting.first().num_missing > beside

    def _continue(self, draft: Draft, prompts_only: bool = False) -> None:
        """Give running sequences what they lack, first in order first; preempt from the other end for blocks."""
        running = self.seats.running
        index = 0
        while index < len(running) and draft.budget > 0:
            sequence = running[index]
            if not (prompts_only and sequence.is_decoding):
                lacking = sequence.num_missing
                count = lacking if lacking == 1 else self._share(lacking, draft)
                if count and not self._make_room(sequence, count, draft):
                    return
                if count < lacking:
                    self._promise(draft, sequence)
                if count:
                    draft.give(sequence, count, draws=count == lacking)
            index += 1

    def _admit(self, draft: Draft) -> None:
        """Start waiting sequences in order while slots, blocks and budget last. Nobody overtakes the first in line."""
        static = self.options.batching == "static"
        while draft.may_admit and self.waiting and (draft.budget > 0 or static):
            sequence = self.waiting.first()
            if not self.seats.has_seats_for(sequence):
                return
            hits = self.tables.find(sequence)
            lacking = sequence.num_missing - len(hits) * self.tables.block_size
            count = self._share(lacking, draft)
            if not (count or static) or not self.tables.has_room(sequence, hits, draft.promised):
                return
            self._start(self.waiting.pop(), hits)
            self.tables.grow(sequence, sequence.request.num_computed_tokens + count)
            self._promise(draft, sequence)
            if count:
                draft.give(sequence, count, draws=count == lacking)

    def _share(self, lacking: int, draft: Draft) -> int:
        """How many of the tokens it lacks a sequence gets in this step."""
        if lacking <= draft.budget:
            return lacking
        if self.options.chunked_prefill:
            return max(draft.budget, 0)
        return 0 if draft.rows else lacking

    def _make_room(self, sequence: Sequence, count: int, draft: Draft) -> bool:
        """Get the blocks for `count` more tokens, by preemption if need be; false when it was itself preempted."""
        end = sequence.request.num_computed_tokens + count
        while lacking := self.tables.num_lacking(sequence, end):
            if lacking <= self.tables.pool.num_available:
                self.tables.grow(sequence, end)
                break
            victim = self.seats.running[-1]
            self._preempt(victim)
            # What was just taken away must not come back in the same step.
            draft.may_admit = False
            if victim is sequence:
                return False
        return True

    def _promise(self, draft: Draft, sequence: Sequence) -> None:
        """Note the blocks that a running sequence will need next, so that who is admitted now does not take them."""
        draft.promised += max(0, self.tables.num_wanted(sequence) - len(sequence.request.block_table))

    def _start(self, sequence: Sequence, hits: list[int]) -> None:
        request = sequence.request
        self.seats.start(sequence, hits)
        hit = request.num_computed_tokens
        if not request.num_preemptions:
            request.num_cached_tokens = min(hit, request.num_prompt_tokens)
        self.counters.count_hit(hit, sequence.num_seen, request.num_prompt_tokens)
        sequence.num_seen = max(sequence.num_seen, hit)

    def _preempt(self, sequence: Sequence) -> None:
        request = sequence.request
        self.seats.vacate(sequence)
        request.state = RequestState.WAITING
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        self.counters.preemptions += 1
        self.waiting.push(sequence)

    # Booking --------------------------------------------------------------------------------------------------------

    def _find(self, key: int) -> Sequence | None:
        sequence = self.sequences.get(key)
        return sequence if sequence is not None and sequence.request.key == key else None

    def _in_flight(self, plan: StepPlan) -> Draft:
        if self._flight is None or plan.step != self._flight.step:
            raise ValueError(f"step {plan.step} is not in flight; commit or cancel each plan once, in order")
        return self._flight

    def _land(self) -> None:
        """No plan is in flight any more."""
        if self._flight is not None:
            for sequence in self._flight.rows:
                sequence.in_flight = False
        self._flight = None
        self.counters.steps += 1

    def _advance(self, draft: Draft) -> None:
        """Mark the rows' tokens as computed and offer full blocks to the prefix cache."""
        size, counters = self.tables.block_size, self.counters
        for sequence, count in zip(draft.rows, draft.counts, strict=True):
            request = sequence.request
            start = request.num_computed_tokens
            end = request.num_computed_tokens = start + count
            counters.count_span(start, end, sequence.num_seen, request.num_prompt_tokens)
            if end > sequence.num_seen:
                sequence.num_seen = end
            if end % size < count:
                self.tables.register(sequence)
        counters.computed_tokens += sum(draft.counts)

    def _fork(self, draws: list[Sequence]) -> None:
        """Split every sequence of n choices; its n draws then belong to the n choices."""
        for index, sequence in enumerate(draws):
            if sequence.num_choices > 1 and not sequence.request.is_finished:
                choices = self.seats.fork(sequence)
                draws[index : index + len(choices)] = choices
                self.sequences.update((choice.request.key, choice) for choice in choices)

    def _receive(self, draws: list[Sequence], result: StepResult) -> list[Request]:
        """Hand out the drawn tokens and end whom they end."""
        touched: list[Request] = []
        num_ended = 0
        for sequence, token, failed, draw in zip(
            draws, result.token_ids.tolist(), result.failed.tolist(), range(len(draws)), strict=True
        ):
            request = sequence.request
            if request.finish_reason is not None:
                continue  # It was aborted while the step ran.
            touched.append(request)
            reason: FinishReason | None
            if failed:
                self.tables.distrust(sequence)
                request.error, reason = NUMERICAL_ERROR, FinishReason.ERROR
            else:
                attach_logprobs(request, token, result.sampled, draw)
                reason = receive_token(request, token)
                self.counters.generated_tokens += 1
            if reason is not None:
                self._finish(sequence, reason)
                num_ended += 1
        if num_ended:
            self.seats.vacate_finished()
        return touched

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """The request has ended; its seat is taken elsewhere."""
        sequence.request.state = RequestState.FINISHED
        sequence.request.finish_reason = reason
        for key in sequence.keys:
            del self.sequences[key]
        self.counters.finished[str(reason)] += sequence.num_choices
