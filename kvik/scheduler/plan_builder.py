"""Turns the scheduler's decisions of one step into the arrays of a StepPlan.

What stays the same while a request runs (its key, its sampling parameters) lies in arrays by slot and is gathered in
one go; when the same slots draw as in the step before, not even that. What is gathered is merely passed on: this file
knows neither policy nor what any sampling parameter means.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvik.request import choice_seed
from kvik.scheduler.sequence import Sequence
from kvik.step import Int32, SamplePlan, ScorePlan, StepPlan, as_int32

_COLUMNS = {
    "keys": np.int64,
    "temperature": np.float32,
    "top_k": np.int32,
    "top_p": np.float32,
    "min_p": np.float32,
    "repetition_penalty": np.float32,
    "presence_penalty": np.float32,
    "frequency_penalty": np.float32,
    "seeds": np.uint64,
    "num_logprobs": np.int32,
}


@dataclass
class Draft:
    """A step while it is being decided: which sequence gets how many tokens."""

    step: int
    budget: int
    """Tokens still to give away."""
    may_admit: bool = True
    promised: int = 0
    """Blocks that running sequences will need for tokens they know already."""
    rows: list[Sequence] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    draws: list[Sequence] = field(default_factory=list)
    """Who draws a token; a sequence of n choices stands here n times."""
    draw_rows: list[int] = field(default_factory=list)
    scores: list[tuple[Sequence, int]] = field(default_factory=list)
    """Who has how many prompt tokens scored."""
    has_forks: bool = False
    is_plain: bool = True
    """Whether no draw needs bias or history."""

    def give(self, sequence: Sequence, count: int, draws: bool) -> None:
        """A row of the next `count` tokens of this sequence, which draws a token when these are all it knows."""
        if draws:
            self._draw(sequence)
        self.rows.append(sequence)
        self.counts.append(count)
        self.budget -= count
        sequence.in_flight = True

    def _draw(self, sequence: Sequence) -> None:
        row = len(self.rows)
        self.is_plain = self.is_plain and sequence.is_plain
        if sequence.num_choices == 1:
            self.draws.append(sequence)
            self.draw_rows.append(row)
        else:
            self.has_forks = True
            self.draws += [sequence] * sequence.num_choices
            self.draw_rows += [row] * sequence.num_choices


class PlanBuilder:
    """Persistent columns by slot, and the arrays made from them."""

    def __init__(self, num_slots: int) -> None:
        self._columns: dict[str, Any] = {name: np.zeros(num_slots, dtype) for name, dtype in _COLUMNS.items()}
        self._gathered_slots: list[int] = []
        self._gathered: dict[str, Any] = {}

    def seat(self, sequence: Sequence) -> None:
        """Enter a sequence into its slot's columns."""
        request, params = sequence.request, sequence.request.params
        values = {
            "keys": request.key,
            "temperature": params.temperature,
            "top_k": max(params.top_k, 0),
            "top_p": params.top_p,
            "min_p": params.min_p,
            "repetition_penalty": params.repetition_penalty,
            "presence_penalty": params.presence_penalty,
            "frequency_penalty": params.frequency_penalty,
            "seeds": np.uint64(request.seed),
            "num_logprobs": -1 if params.logprobs is None else params.logprobs,
        }
        for name, value in values.items():
            self._columns[name][sequence.slot] = value
        self._gathered_slots = []

    def build(self, draft: Draft, tables: Int32, copies: list[tuple[int, int]]) -> StepPlan:
        """The plan of a decided step; `tables` is every slot's block table. Notes in `draft` which prompt tokens it
        scores.
        """
        if not draft.rows:
            return _empty_plan(draft.step)
        tokens, starts, width = _gather_tokens(draft)
        slots = [sequence.slot for sequence in draft.rows]
        counts = as_int32(draft.counts)
        first = as_int32(starts)
        query_start_loc = np.zeros(len(slots) + 1, np.int32)
        np.cumsum(counts, out=query_start_loc[1:])
        seq_lens = first + counts
        is_decode = len(tokens) == len(slots)
        return StepPlan(
            step=draft.step,
            keys=self._columns["keys"][slots],
            token_ids=as_int32(tokens),
            positions=first if is_decode else _spread(first, counts, query_start_loc),
            query_start_loc=query_start_loc,
            seq_lens=seq_lens,
            block_tables=tables[slots, :width],
            copies=np.array(copies, np.int32).reshape(-1, 2),
            sample=self._sample(draft, seq_lens),
            score=_score(draft, starts, query_start_loc),
        )

    def _sample(self, draft: Draft, seq_lens: Int32) -> SamplePlan:
        if not draft.draws:
            return SamplePlan()
        rows = as_int32(draft.draw_rows)
        columns = self._gather(draft)
        start = np.zeros(len(rows) + 1, np.int32)
        shared: dict[str, Any] = {"rows": rows, "positions": seq_lens[rows].astype(np.int64), **columns}
        if draft.is_plain:
            return SamplePlan(**shared, bias_start=start, history_start=start, history_prompt=start[1:])
        return SamplePlan(**shared, **_bias(draft.draws), **_history(draft.draws))

    def _gather(self, draft: Draft) -> dict[str, Any]:
        """The columns of the drawing slots; frozen, as plans of several steps may share them."""
        slots = [sequence.slot for sequence in draft.draws]
        if slots == self._gathered_slots:
            return self._gathered
        gathered = {name: column[slots] for name, column in self._columns.items()}
        if draft.has_forks:
            _number_choices(draft.draws, gathered)
        for column in gathered.values():
            column.flags.writeable = False
        self._gathered, self._gathered_slots = gathered, [] if draft.has_forks else slots
        return gathered


def _empty_plan(step: int) -> StepPlan:
    none = np.zeros(0, np.int32)
    return StepPlan(step, np.zeros(0, np.int64), none, none, np.zeros(1, np.int32), none, np.zeros((0, 0), np.int32))


def _gather_tokens(draft: Draft) -> tuple[list[int], list[int], int]:
    """The tokens of all rows, the position of each row's first, and the longest block table."""
    tokens: list[int] = []
    starts: list[int] = []
    width = 0
    for sequence, count in zip(draft.rows, draft.counts, strict=True):
        request = sequence.request
        start = request.num_computed_tokens
        starts.append(start)
        if count == 1:
            tokens.append(request.tokens[start])
        else:
            tokens += request.tokens[start : start + count]
        if len(request.block_table) > width:
            width = len(request.block_table)
    return tokens, starts, width


def _spread(first: Int32, counts: Int32, query_start_loc: Int32) -> Int32:
    """Positions of all tokens: row r counts up from first[r]."""
    return np.arange(query_start_loc[-1], dtype=np.int32) + np.repeat(first - query_start_loc[:-1], counts)


def _number_choices(draws: list[Sequence], columns: dict[str, Any]) -> None:
    """Give the choices of a fork their own keys and seeds; they stand one after another."""
    choice = 0
    for index, sequence in enumerate(draws):
        choice = choice + 1 if index and draws[index - 1] is sequence else 0
        if choice:
            columns["keys"][index] = sequence.request.key + choice
            columns["seeds"][index] = np.uint64(choice_seed(sequence.request.seed, choice))


def _bias(draws: list[Sequence]) -> dict[str, Any]:
    """logit_bias, and minus infinity for tokens that would end an answer before min_tokens."""
    starts: list[int] = [0]
    tokens: list[int] = []
    values: list[float] = []
    for sequence in draws:
        request = sequence.request
        bias: dict[int, float] = request.params.logit_bias
        if request.num_output_tokens < request.params.min_tokens:
            bias = bias | dict.fromkeys(sorted(request.stop_ids), -np.inf)
        tokens += bias.keys()
        values += bias.values()
        starts.append(len(tokens))
    return {
        "bias_start": as_int32(starts),
        "bias_tokens": as_int32(tokens),
        "bias_values": np.array(values, np.float32),
    }


def _history(draws: list[Sequence]) -> dict[str, Any]:
    """The known tokens of every draw with penalties."""
    starts: list[int] = [0]
    prompts: list[int] = []
    parts = array("i")
    for sequence in draws:
        request = sequence.request
        if request.params.has_penalties:
            sequence.history.extend(request.tokens[len(sequence.history) :])
            parts.extend(sequence.history)
        prompts.append(request.num_prompt_tokens if request.params.has_penalties else 0)
        starts.append(len(parts))
    return {
        "history_start": as_int32(starts),
        "history_tokens": np.array(parts, np.int32),
        "history_prompt": as_int32(prompts),
    }


def _score(draft: Draft, starts: list[int], query_start_loc: Int32) -> ScorePlan:
    """Entries for the prompt tokens whose predecessors are computed in this step and that have no score yet."""
    indices: list[int] = []
    targets: list[int] = []
    num_top: list[int] = []
    for row, sequence in enumerate(draft.rows):
        request = sequence.request
        if request.params.prompt_logprobs is None or not sequence.num_to_score:
            continue
        begin = sequence.num_scored
        end = min(starts[row] + draft.counts[row], request.num_prompt_tokens - 1)
        if begin >= end:
            continue
        offset = int(query_start_loc[row]) - starts[row]
        indices += range(offset + begin, offset + end)
        targets += request.tokens[begin + 1 : end + 1]
        num_top += [request.params.prompt_logprobs] * (end - begin)
        draft.scores.append((sequence, end - begin))
    if not indices:
        return ScorePlan()
    return ScorePlan(as_int32(indices), as_int32(targets), as_int32(num_top))
