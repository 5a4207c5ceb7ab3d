"""What a driver's answer to `run` says: the figures of one sample, taken from the times at which tokens came.

`events` are cumulative: seconds since the start, output tokens, requests that have their first token, requests that
have ended. This file knows nothing of processes or of engines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kvik.bench.peers import PeerError
from kvik.bench.workload import Case, Requests


class Event(NamedTuple):
    """The state of a run after one step."""

    seconds: float
    tokens: int
    started: int
    ended: int


@dataclass(frozen=True)
class Window:
    """The part of a run that is measured."""

    tokens: int
    seconds: float
    mean_generated: float
    """Tokens that each request had been given, on average over the window; 0 where that is not asked."""


def sample_of(label: str, case: Case, requests: Requests, reply: Mapping[str, Any]) -> dict[str, Any]:
    """One engine's sample. Raises PeerError for an answer that makes no sense."""
    try:
        events = [Event(*event) for event in reply["events"]]
        output_tokens = sum(reply["output_tokens"])
        window = _WINDOWS[case.kind](case, requests, events, float(reply["seconds"]))
        first = next(event.seconds for event in events if event.tokens > 0)
        first_ids = list(reply["first_token_ids"])
        if len(first_ids) != len(requests.prompts):
            raise ValueError(f"{len(first_ids)} first tokens of {len(requests.prompts)} requests")
    except (KeyError, TypeError, ValueError, IndexError, StopIteration) as error:
        raise PeerError(f"{label} gave an answer without sense: {type(error).__name__}: {error}") from error
    if window.seconds <= 0 or window.tokens < case.concurrency * case.steps:
        raise PeerError(
            f"{label} gave {window.tokens} tokens in {window.seconds:.3g} s while all {case.concurrency} requests "
            f"decoded; expected at least {case.concurrency * case.steps}: ask for more steps"
        )
    return {
        "seconds": window.seconds,
        "tokens": window.tokens,
        "tokens_per_s": window.tokens / window.seconds,
        "output_tokens": output_tokens,
        "steps": len(events),
        "mean_generated": window.mean_generated,
        "first_token_s": first,
        "first_token_ids": first_ids,
        "peak_bytes": reply.get("peak_bytes"),
    }


def _decode(case: Case, _: Requests, events: Sequence[Event], __: float) -> Window:
    """From the step in which the last request got its first token to the one in which the first request ended."""
    begin = next(event for event in events if event.started == case.concurrency)
    end = next(event for event in events if event.ended > 0)
    generated = (begin.tokens + end.tokens) / 2 / case.concurrency
    return Window(end.tokens - begin.tokens, end.seconds - begin.seconds, generated)


def _prefill(case: Case, requests: Requests, events: Sequence[Event], _: float) -> Window:
    """From the start to the first token of the last request."""
    end = next(event for event in events if event.started == case.concurrency)
    return Window(requests.input_tokens, end.seconds, 0.0)


def _total(_: Case, requests: Requests, __: Sequence[Event], seconds: float) -> Window:
    return Window(requests.output_tokens, seconds, 0.0)


_WINDOWS = {"decode": _decode, "prefill": _prefill, "total": _total}
