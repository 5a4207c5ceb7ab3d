"""A simulation: the real scheduler, steps that cost what a cost model says, and no waiting.

Each replica is a scheduler with a clock of its own; a request goes to the replica with the fewest unfinished ones when
it arrives. What comes out are records as a measured load has them, so figures and goodput are computed alike. Left out
are HTTP, the queue in front of an engine and prefixes that prompts share. This file knows nothing of how a cost was
found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvik.bench.serve.arrivals import Arrival
from kvik.bench.serve.load import Record, micros
from kvik.bench.step_cost import Step, StepCost
from kvik.config import SchedulerOptions
from kvik.errors import InvalidRequestError
from kvik.request import Request, SamplingParams
from kvik.scheduler import Scheduler
from kvik.step import StepPlan, StepResult, ints

TOO_LONG = "too long"


@dataclass(frozen=True)
class Site:
    """What every replica is: options of its scheduler, its KV cache, what its steps cost."""

    scheduler: SchedulerOptions
    num_blocks: int
    block_size: int
    max_model_len: int
    cost: StepCost


@dataclass
class _Course:
    """A request under way: moments in seconds."""

    index: int
    arrival: Arrival
    due: float
    first: float | None = None
    last: float = 0.0


class Replica:
    """One engine on paper."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._scheduler = Scheduler(
            site.scheduler,
            num_blocks=site.num_blocks,
            block_size=site.block_size,
            max_model_len=site.max_model_len,
            prefix_caching=False,
        )
        self._courses: dict[int, _Course] = {}
        self.now = 0.0
        """When its last step ended, or will."""
        self.steps = 0
        self.busy = 0.0
        """Seconds inside steps."""

    @property
    def unfinished(self) -> int:
        """Requests that have not ended."""
        return len(self._courses)

    @property
    def preemptions(self) -> int:
        """Requests that had to give up their blocks."""
        return self._scheduler.counters.preemptions

    def add(self, course: _Course) -> None:
        """Take a request at the moment it is due. Raises InvalidRequestError for one that can never run."""
        arrival = course.arrival
        total = arrival.input_len + arrival.output_len
        params = SamplingParams(temperature=0.0, max_tokens=arrival.output_len, ignore_eos=True)
        tokens = [0] * arrival.input_len
        self._scheduler.add(Request(course.index, tokens, arrival.input_len, params, total, arrival=course.index))
        self._courses[course.index] = course
        self.now = max(self.now, course.due)

    def run_until(self, moment: float) -> list[_Course]:
        """Take every step that begins before this moment; the requests that ended."""
        ended: list[_Course] = []
        while self._courses and self.now < moment:
            ended += self._step()
        return ended

    def _step(self) -> list[_Course]:
        plan = self._scheduler.plan()
        seconds = self._cost(plan)
        self.now += seconds
        self.busy += seconds
        self.steps += 1
        draws = len(plan.sample)
        moved = self._scheduler.commit(plan, StepResult(ints(draws), np.zeros(draws, np.bool_)))
        ended = []
        for request in moved:
            course = self._courses[request.key]
            course.first = self.now if course.first is None else course.first
            course.last = self.now
            if request.is_finished:
                ended.append(self._courses.pop(request.key))
        return ended

    def _cost(self, plan: StepPlan) -> float:
        step = Step.of_plan(plan, 0.0)
        return self._site.cost.seconds(step.rows, step.tokens, step.kv_reads)


@dataclass(frozen=True)
class Simulated:
    """A load that was played on paper."""

    records: list[Record]
    seconds: float
    """From the first arrival to the last end."""
    steps: int
    preemptions: int
    busy_share: float
    """Of the replicas' time, spent in steps."""


def simulate(site: Site, arrivals: Sequence[Arrival], replicas: int) -> Simulated:
    """Play these arrivals on so many replicas; those without a time of arrival come at once."""
    fleet = [Replica(site) for _ in range(replicas)]
    records: dict[int, Record] = {}
    for index, arrival in enumerate(arrivals):
        due = arrival.offset_s or 0.0
        for replica in fleet:
            records.update((each.index, _record(each)) for each in replica.run_until(due))
        course = _Course(index, arrival, due)
        try:
            min(fleet, key=lambda replica: replica.unfinished).add(course)
        except InvalidRequestError:
            records[index] = _refused(course)
    for replica in fleet:
        records.update((each.index, _record(each)) for each in replica.run_until(float("inf")))
    seconds = max(replica.now for replica in fleet) or 1e-9
    return Simulated(
        [records[index] for index in range(len(arrivals))],
        seconds,
        sum(replica.steps for replica in fleet),
        sum(replica.preemptions for replica in fleet),
        sum(replica.busy for replica in fleet) / (seconds * replicas),
    )


def _record(course: _Course) -> dict[str, Any]:
    """A request as a measured load records it; its tokens come at even distances, as far as TPOT can tell."""
    first, count = course.first or course.last, course.arrival.output_len
    ttft, e2e = micros(first - course.due), micros(course.last - course.due)
    return {
        "id": course.index,
        "due_us": micros(course.due),
        "late_us": 0,
        "asked": count,
        "input_tokens": course.arrival.input_len,
        "output_tokens": count,
        "counted": True,
        "events_us": [ttft],
        "ttft_us": ttft,
        "e2e_us": e2e,
        "tpot_us": (e2e - ttft) / (count - 1) if count > 1 else None,
        "finish_reason": "length",
    }


def _refused(course: _Course) -> dict[str, Any]:
    said = f"{course.arrival.input_len} tokens in and {course.arrival.output_len} out can never run"
    base = {"id": course.index, "due_us": micros(course.due), "late_us": 0, "asked": course.arrival.output_len}
    return {**base, "e2e_us": 0, "error": TOO_LONG, "said": said}
