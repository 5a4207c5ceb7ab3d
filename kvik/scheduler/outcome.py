"""What a step's result means for a request: its new token, its log-probabilities, whether it ends.

This file knows nothing of blocks, queues or other requests.
"""

from __future__ import annotations

from kvik.request import FinishReason, Logprob, Request, TokenLogprobs
from kvik.scheduler.sequence import Sequence
from kvik.step import StepResult, TopLogprobs

NUMERICAL_ERROR = "numerical error"


def receive_token(request: Request, token: int) -> FinishReason | None:
    """Append a drawn token. Returns why the request ends with it, if it does."""
    request.tokens.append(token)
    if token in request.stop_ids:
        request.stop_token = token
        return FinishReason.STOP
    if len(request.tokens) >= request.max_total_tokens:
        return FinishReason.LENGTH
    return None


def attach_logprobs(request: Request, token: int, sampled: TopLogprobs, draw: int) -> None:
    """Note the log-probabilities of a drawn token, if they were asked for."""
    if request.params.logprobs is not None:
        request.logprobs.append(read_logprobs(sampled, draw, token, request.params.logprobs))


def attach_scores(scores: list[tuple[Sequence, int]], result: StepResult) -> None:
    """Note the log-probabilities of prompt tokens: the plan's entries belong to these sequences, in order."""
    index = 0
    for sequence, count in scores:
        request = sequence.request
        asked = request.params.prompt_logprobs or 0
        for _ in range(count):
            sequence.num_scored += 1
            target = request.tokens[sequence.num_scored]
            request.prompt_logprobs.append(read_logprobs(result.scored, index, target, asked))
            index += 1


def read_logprobs(table: TopLogprobs, index: int, token: int, count: int) -> TokenLogprobs:
    """Entry `index` of a table of log-probabilities, with at most `count` likeliest tokens."""
    ids = table.top_ids[index, :count].tolist() if count else []
    values = table.top_logprobs[index, :count].tolist() if count else []
    top = tuple(Logprob(i, value) for i, value in zip(ids, values, strict=True) if i >= 0)
    return TokenLogprobs(token, float(table.logprobs[index]), top)
