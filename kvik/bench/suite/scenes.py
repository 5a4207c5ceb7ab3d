"""What the suite puts to the engine, beside the scenes of the ladder. This file knows nothing of engines or clocks."""

from __future__ import annotations

import random
from dataclasses import dataclass

from kvik.bench.ladder.scenes import Arrival, Scene

SHARING_PERCENT = 70
"""Requests that begin alike, of all."""
SHARED_PERCENT = 80
"""Of their prompts."""


@dataclass(frozen=True)
class Lengths:
    """How many requests of how many tokens; the plan's are 256 of 512 and 512, prefixes on 100 of 512."""

    requests: int = 32
    input_len: int = 512
    output_len: int = 128
    prefix_requests: int = 100
    prefix_output_len: int = 4
    latency_requests: int = 5
    seed: int = 0
    top_token: int = 4095

    @property
    def longest(self) -> int:
        """Tokens of the longest request."""
        return self.input_len + max(self.output_len, self.prefix_output_len)


QUICK = Lengths(requests=6, input_len=64, output_len=12, prefix_requests=20, prefix_output_len=2, latency_requests=2)


def _prompt(draw: random.Random, lengths: Lengths, count: int) -> list[int]:
    return [draw.randint(0, lengths.top_token) for _ in range(count)]


def even(lengths: Lengths, requests: int) -> Scene:
    """So many requests of equal lengths, all at once."""
    draw = random.Random(lengths.seed)
    arrivals = [Arrival(_prompt(draw, lengths, lengths.input_len), lengths.output_len) for _ in range(requests)]
    return Scene("even", f"{requests} requests of equal lengths, all at once", tuple(arrivals))


def one_by_one(lengths: Lengths) -> Scene:
    """Requests of equal lengths, one after another."""
    draw = random.Random(lengths.seed)
    arrivals = [
        Arrival(_prompt(draw, lengths, lengths.input_len), lengths.output_len, index * lengths.output_len)
        for index in range(lengths.latency_requests)
    ]
    return Scene("one-by-one", "one request at a time", tuple(arrivals))


def sharing(lengths: Lengths) -> Scene:
    """Of all requests 70 % share the first 80 % of their prompts. The first of them comes alone and the rest at once
    when it has its first token: somebody has to compute what the others find.
    """
    draw = random.Random(lengths.seed)
    common = _prompt(draw, lengths, lengths.input_len * SHARED_PERCENT // 100)
    alike = lengths.prefix_requests * SHARING_PERCENT // 100
    prompts = [common + _prompt(draw, lengths, lengths.input_len - len(common)) for _ in range(alike)]
    prompts += [_prompt(draw, lengths, lengths.input_len) for _ in range(lengths.prefix_requests - alike)]
    rest = prompts[1:]
    draw.shuffle(rest)
    arrivals = [Arrival(prompts[0], lengths.prefix_output_len)]
    arrivals += [Arrival(prompt, lengths.prefix_output_len, 1) for prompt in rest]
    why = f"{lengths.prefix_requests} requests, {alike} of which share {len(common)} of {lengths.input_len} tokens"
    return Scene("sharing", why, tuple(arrivals))


def trickle(lengths: Lengths) -> Scene:
    """A new prompt comes every few tokens, so that prompts and decodes are always about at the same time."""
    draw = random.Random(lengths.seed)
    every = max(1, lengths.output_len // 2)
    arrivals = [
        Arrival(_prompt(draw, lengths, lengths.input_len), lengths.output_len, index * every)
        for index in range(lengths.requests)
    ]
    return Scene("trickle", "a new prompt whenever half an answer's tokens have been generated", tuple(arrivals))
