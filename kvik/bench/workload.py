"""Workloads as token ids: how many requests, how long their prompts and answers, how many at a time.

Drawn from a seeded generator in the order of the nano-vLLM benchmark, so that its seed gives its requests. The same
workload is put through every engine. This file knows nothing of engines or clocks.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvik.errors import ConfigError

DECODE_CONTEXT = 100
STAGGER_TOKENS = 1024
"""Prompt tokens that an engine is taken to compute per step at the least, while the first requests decode already."""
NANO_VLLM_RANGE = (100, 1024)
NANO_VLLM_TOP_TOKEN = 10000
NANO_VLLM_SEED = 0
MAX_REQUESTS = 1 << 16
MAX_TOKENS = 1 << 20
"""Of one prompt or one answer."""
Range = tuple[int, int]


@dataclass(frozen=True)
class Requests:
    """Prompts with the number of tokens each is to be answered with."""

    prompts: list[list[int]]
    output_lens: list[int]

    @property
    def input_tokens(self) -> int:
        """Of all prompts together."""
        return sum(map(len, self.prompts))

    @property
    def output_tokens(self) -> int:
        """Asked for, all answers together."""
        return sum(self.output_lens)


def draw_requests(count: int, input_len: Range, output_len: Range, seed: int, top_token: int) -> Requests:
    """`count` requests with lengths drawn evenly from both ranges, ends included; token ids from 0 to top_token.

    The order of draws is that of nano-vLLM's bench.py: each prompt's length and then its tokens, then all answers.
    """
    draw = random.Random(seed).randint
    prompts = [[draw(0, top_token) for _ in range(draw(*input_len))] for _ in range(count)]
    return Requests(prompts, [draw(*output_len) for _ in range(count)])


def nano_vllm_requests(count: int) -> Requests:
    """The first `count` requests' worth of nano-vLLM's benchmark, which has 256."""
    return draw_requests(count, NANO_VLLM_RANGE, NANO_VLLM_RANGE, NANO_VLLM_SEED, NANO_VLLM_TOP_TOKEN)


def parse_range(text: str, name: str) -> Range:
    """`100-1024`, or `512` for 512-512. Raises ConfigError naming the option."""
    match = re.fullmatch(r"(\d{1,7})(?:-(\d{1,7}))?", text.strip())
    if match is None:
        raise ConfigError(f"{name} is {text!r}; expected a length such as 512 or a range such as 100-1024")
    low, high = int(match[1]), int(match[2] or match[1])
    if not 1 <= low <= high <= MAX_TOKENS:
        raise ConfigError(f"{name} is {text!r}; expected 1 <= shortest <= longest <= {MAX_TOKENS}")
    return low, high


@dataclass(frozen=True)
class Case:
    """One comparison: requests of known lengths, and what of their run is measured."""

    name: str
    kind: str
    """decode, prefill or total."""
    concurrency: int
    draw: Callable[[int, int], Requests]
    """Requests for a seed and a vocabulary size."""
    steps: int = 0
    """For decode: steps that are to be in the window in which all requests decode."""


def parse_cases(text: str, steps: int) -> list[Case]:
    """Cases by name, divided by commas. Raises ConfigError naming what is not one."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"case is {text!r}; {EXPECTED}")
    return [parse_case(name, steps) for name in names]


EXPECTED = (
    "expected decodeB or decodeB@C (B sequences at C tokens), prefillN or prefillNxB, seed002, "
    "nano-vllm or nano-vllm@COUNT"
)


def parse_case(name: str, steps: int) -> Case:
    """One case; `steps` is how long a decode is watched. Raises ConfigError."""
    if name == "seed002":
        return Case(name, "total", 8, lambda seed, vocab: draw_requests(40, (32, 32), (50, 50), seed, vocab - 1))
    for pattern, make in _PATTERNS:
        match = re.fullmatch(pattern, name)
        if match is not None:
            numbers = [int(number) for number in match.groups() if number is not None]
            if not all(1 <= number <= MAX_REQUESTS for number in numbers):
                raise ConfigError(f"case is {name!r}; expected numbers from 1 to {MAX_REQUESTS}")
            return make(name, numbers, steps)
    raise ConfigError(f"case is {name!r}; {EXPECTED}")


def _decode(name: str, numbers: Sequence[int], steps: int) -> Case:
    """Requests that outlast the window: while the last prompt is computed, the first ones already decode."""
    batch, context = numbers[0], numbers[1] if len(numbers) > 1 else DECODE_CONTEXT
    stagger = -(-(batch - 1) * context // STAGGER_TOKENS)
    output_len = steps + stagger + 1

    def draw(seed: int, vocab_size: int) -> Requests:
        return draw_requests(batch, (context, context), (output_len, output_len), seed, vocab_size - 1)

    return Case(name, "decode", batch, draw, steps)


def _prefill(name: str, numbers: Sequence[int], _: int) -> Case:
    length, batch = numbers[0], numbers[1] if len(numbers) > 1 else 1
    return Case(
        name, "prefill", batch, lambda seed, vocab: draw_requests(batch, (length, length), (1, 1), seed, vocab - 1)
    )


def _nano_vllm(name: str, numbers: Sequence[int], _: int) -> Case:
    count = numbers[0] if numbers else 64
    return Case(name, "total", min(count, 256), lambda seed, vocab: nano_vllm_requests(count))


_PATTERNS = (
    (r"decode(\d{1,6})(?:@(\d{1,6}))?", _decode),
    (r"prefill(\d{1,6})(?:x(\d{1,6}))?", _prefill),
    (r"nano-vllm(?:@(\d{1,6}))?", _nano_vllm),
)
