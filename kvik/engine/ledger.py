"""The ledger: which requests are unfinished, and the one place where a request is ended.

Every accepted request is opened once and ended once, whatever ends it: its last token, a stop string, a deadline, an
abort or an error. What it lived through is timed here: its place in the queue, its tokens, its end. This file knows
nothing of how a step is computed or of what a token costs.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable

from kvik.engine.metrics import EngineMetrics, RequestTimes
from kvik.engine.outputs import Answer, Choice
from kvik.errors import EngineError, KvikError, NumericalError
from kvik.request import FinishReason, Request, RequestState

Abort = Callable[[int, FinishReason], Request | None]
Order = tuple[float, int, int]
_SLACK = 64


class Ledger:
    """Unfinished answers by request id, their choices by scheduler key, and their deadlines.

    `abort` takes the request of a key out of the schedule; it is called for whatever ends for a reason that the
    scheduler does not know.
    """

    def __init__(self, metrics: EngineMetrics, abort: Abort) -> None:
        self._metrics = metrics
        self._abort = abort
        self._answers: dict[str, Answer] = {}
        self._choices: dict[int, Choice] = {}
        self._deadlines: list[tuple[Order, Answer]] = []
        self._queued: list[tuple[Order, Answer]] = []
        """Those that never had a seat, as a heap in the order in which the scheduler will give them one."""
        self._last_token: dict[int, float] = {}
        """When each choice got its last token, by key."""
        self._step_started = 0.0
        self._touched: dict[Answer, None] = {}

    def __len__(self) -> int:
        return len(self._answers)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._answers

    def request_ids(self) -> list[str]:
        """Unfinished requests, oldest first."""
        return list(self._answers)

    def get(self, request_id: str) -> Answer | None:
        """The unfinished answer of this name."""
        return self._answers.get(request_id)

    def answer_of(self, key: int) -> Answer | None:
        """The answer that a scheduler key belongs to, if it is unfinished or has ended in the step just done."""
        choice = self._choices.get(key)
        if choice is not None:
            return choice.answer
        return next((answer for answer in self._touched if key in answer.keys), None)

    def open(self, answer: Answer) -> None:
        """Take in an accepted request."""
        self._metrics.accepted += 1
        self._answers[answer.request_id] = answer
        self._choices.update(zip(answer.keys, answer.choices, strict=True))
        first = answer.first
        heapq.heappush(self._queued, ((first.priority, first.arrival, first.key), answer))
        if answer.params.deadline_s is not None:
            deadline = answer.times.arrival + answer.params.deadline_s
            heapq.heappush(self._deadlines, ((deadline, 0, first.key), answer))

    def end_overdue(self, now: float) -> None:
        """A step starts: end every request whose deadline has passed; the next `take_touched` has it."""
        self._step_started = now
        while self._deadlines and self._deadlines[0][0][0] <= now:
            answer = heapq.heappop(self._deadlines)[1]
            if not answer.is_finished:
                self.end(answer, FinishReason.DEADLINE, now)
                self._touched[answer] = None

    def end(self, answer: Answer, reason: FinishReason, now: float) -> None:
        """End all unfinished choices of a request, with what they have."""
        for key, choice in zip(answer.keys, answer.choices, strict=True):
            if choice.finish_reason is None:
                self._abort(key, reason)
                self._end_choice(choice, reason, now)

    def fail(self, key: int, error: Exception, now: float) -> None:
        """End the request of a key, because computing it raised. What is not Kvik's own becomes an EngineError."""
        answer = self._choices[key].answer
        answer.error = error if isinstance(error, KvikError) else engine_error(error)
        self._abort(key, FinishReason.ERROR)
        self._end_choice(self._choices[key], FinishReason.ERROR, now)
        self._end_unborn(answer, now)
        self._touched[answer] = None

    def update(self, moved: Iterable[Request], now: float) -> None:
        """Bring answers up to what the scheduler committed."""
        choices, touched = self._choices, self._touched
        gaps: dict[float, int] = {}
        self._note_seated()
        for request in moved:
            choice = choices.get(request.key)
            if choice is None:
                continue
            choice.request = request
            answer = choice.answer
            touched[answer] = None
            if request.error is None:
                self._time_token(request.key, answer.times, now, gaps)
            if request.finish_reason is not None:
                self._end_choice(choice, request.finish_reason, now)
            elif choice.eager and choice.advance():
                self._abort(request.key, FinishReason.STOP)
                self._end_choice(choice, FinishReason.STOP, now)
        for gap, times in gaps.items():
            self._metrics.itl.add(gap, times)

    def take_touched(self, now: float) -> list[Answer]:
        """Answers that moved or ended since the last call."""
        touched = list(self._touched)
        self._touched.clear()
        for answer in touched:
            if answer.num_unfinished:
                self._end_unborn(answer, now)
        return touched

    def _note_seated(self) -> None:
        """Time who got a first seat in this step. Nobody overtakes the first of the queue, so only its front moves."""
        while self._queued:
            answer = self._queued[0][1]
            request = answer.first
            seated = request.num_computed_tokens or request.num_preemptions or request.state is RequestState.RUNNING
            if not (seated or answer.is_finished or request.is_finished):
                return
            heapq.heappop(self._queued)
            if seated:
                answer.times.scheduled = self._step_started
                self._metrics.queue.add(self._step_started - answer.times.arrival)

    def _time_token(self, key: int, times: RequestTimes, now: float, gaps: dict[float, int]) -> None:
        """A choice got a token. Most choices of a step waited equally long, so gaps are gathered before they count."""
        last = self._last_token.get(key)
        self._last_token[key] = now
        if last is not None:
            gaps[now - last] = gaps.get(now - last, 0) + 1
        elif times.first_token is None:
            times.first_token = now
            self._metrics.ttft.add(now - times.arrival)

    def _end_unborn(self, answer: Answer, now: float) -> None:
        """Choices that were never forked, because the one that computes their prompt ended, end like it."""
        first = answer.choices[0]
        if first.finish_reason is not None:
            for choice in answer.choices:
                if choice.request is None and choice.finish_reason is None:
                    self._end_choice(choice, first.finish_reason, now)

    def _end_choice(self, choice: Choice, reason: FinishReason, now: float) -> None:
        answer = choice.answer
        if reason is FinishReason.ERROR and answer.error is None:
            self._metrics.numerical_errors += 1
            answer.error = NumericalError(f"{answer.request_id}: the model produced NaN or infinity; the answer ends")
        choice.end(reason)
        self._metrics.output_tokens += choice.num_tokens
        key = answer.keys[choice.index]
        del self._choices[key]
        self._last_token.pop(key, None)
        answer.num_unfinished -= 1
        if answer.num_unfinished == 0:
            self._close(answer, now)

    def _close(self, answer: Answer, now: float) -> None:
        del self._answers[answer.request_id]
        answer.times.end = now
        reason = answer.finish_reason
        assert reason is not None
        outputs = [choice.num_tokens for choice in answer.choices]
        self._metrics.end_request(reason, answer.times, len(answer.prompt_token_ids), outputs)
        self._queued = self._pruned(self._queued)
        self._deadlines = self._pruned(self._deadlines)

    def _pruned(self, heap: list[tuple[Order, Answer]]) -> list[tuple[Order, Answer]]:
        """A heap without the ended answers, once these are most of it: they must not be held until their turn."""
        if len(heap) <= 2 * len(self._answers) + _SLACK:
            return heap
        kept = [entry for entry in heap if not entry[1].is_finished]
        heapq.heapify(kept)
        return kept


def engine_error(error: Exception) -> EngineError:
    """What somebody else's code raised while it served a request, so that users meet no exception but Kvik's."""
    made = EngineError(f"{type(error).__name__}: {error}")
    made.__cause__ = error
    return made
