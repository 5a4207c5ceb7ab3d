"""A comparison from its operands to its result: models loaded, text scored, speed and answers measured, all checked.

This file knows nothing of the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from kvik.bench.checks import refuse_failed, run_checks
from kvik.bench.evidence import Result, compose
from kvik.bench.judge import Advance, answer_tasks, compare_answers, score_text, speed_round
from kvik.bench.judge_figures import Scores, figures_of, stored_scores
from kvik.bench.judge_operands import Operand
from kvik.bench.judge_sides import Side, open_sides
from kvik.bench.machine import roofline
from kvik.bench.measure import Progress, Repeat, describe_repetition, interleaved
from kvik.bench.perplexity import ERROR_METHOD, Window, block_sums, cut_windows
from kvik.bench.plans import random_tokens
from kvik.bench.tasks import Item
from kvik.bench.workbench import describe_model, describe_runner, flat_options, machine_with_limits
from kvik.errors import ConfigError, InvalidRequestError

WINDOW, CONTEXT = 512, 128
METHOD = (
    "The reference's tokenizer encodes the text once; windows as for perplexity. At every scored position all models "
    "give logits over the whole vocabulary: divergence is KL(reference || model) in nats, its 99th percentile the "
    "smallest value that at least 99 % of positions do not exceed, agreement the share of positions where both have "
    f"the same most likely token. Differences are taken block by block; {ERROR_METHOD}. Speed: each model in turn "
    "decodes one sequence of `context` random tokens for some greedy steps, straight on the runner, in the next round "
    "in reverse order; medians. load_peak_bytes: growth of the process's resident memory while a model was loaded, "
    "pages of its files included; memory_bytes: what its runner holds after its last step."
)

Bar = Callable[[int], AbstractContextManager[Advance]]
"""Shows progress over so many positions."""


@dataclass(frozen=True)
class Comparison:
    """What is compared on what. Without a text, `max_tokens` random tokens."""

    operands: Sequence[Operand]
    text: str | None
    window: int | None = None
    stride: int | None = None
    max_tokens: int | None = None
    steps: int = 32
    items: Sequence[Item] = ()


@dataclass(frozen=True)
class _Text:
    """Token ids, the head of every window, and bytes where all of a known text is scored."""

    tokens: Sequence[int]
    head: Sequence[int]
    num_bytes: int | None


def judge(
    asked: Comparison,
    repeat: Repeat,
    progress: Progress,
    bar: Bar,
    *,
    probe: Callable[[], Mapping[str, Any]] = roofline,
    show_answers: bool = False,
) -> Result:
    """The result of a comparison. Raises KvikError for models or a text that cannot be compared on, EvidenceError if a
    check fails.
    """
    with open_sides(asked.operands) as sides:
        text = _read(asked, sides[0])
        windows = cut_windows(text.tokens, _window(asked, sides), text.head, asked.stride)
        scored = sum(window.scored for window in windows)
        if scored < 2:
            raise InvalidRequestError(f"the text has {len(text.tokens)} tokens; expected at least 3", param="text")
        context = _context(asked, sides)
        longest = max(len(window.token_ids) for window in windows)
        layouts = [side.allocate(max(longest, context + asked.steps)) for side in sides]
        with bar(scored) as advance:
            scores = score_text(sides, layouts, windows, advance)
        take = speed_round(sides, layouts, context, asked.steps)
        samples = interleaved(take, "tokens_per_s", repeat, progress, probe)
        result = _composed(sides, _workload(asked, windows, text, context), samples, repeat)
        result["judged"] = _judged(sides, scores, text)
    if asked.items:
        answers = compare_answers(answer_tasks(asked.operands, asked.items, progress=show_answers))
        for label, found in answers.items():
            result["judged"]["sides"][label]["tasks"] = found
    return _checked(result)


def _read(asked: Comparison, reference: Side) -> _Text:
    if asked.text is None:
        if asked.max_tokens is None:
            raise ConfigError("neither a text nor a number of tokens is given; expected one")
        drawn = random_tokens(0, reference.bench.runner.vocab_size, 1, asked.max_tokens)
        return _Text(drawn[0].tolist(), [], None)
    tokenizer = reference.tokenizer
    if tokenizer is None:
        raise InvalidRequestError(f"{reference.label} has no tokenizer; expected one, or no text", param="text")
    tokens = tokenizer.encode(asked.text, add_special_tokens=False)
    head = tokenizer.encode("", add_special_tokens=True)
    whole = asked.max_tokens is None or asked.max_tokens >= len(tokens)
    return _Text(tokens[: asked.max_tokens], head, len(asked.text.encode()) if whole else None)


def _window(asked: Comparison, sides: Sequence[Side]) -> int:
    longest = min(side.max_len for side in sides)
    if asked.window is not None and asked.window > longest:
        raise InvalidRequestError(f"window is {asked.window}; expected at most {longest}", param="window")
    return asked.window or min(WINDOW, longest)


def _context(asked: Comparison, sides: Sequence[Side]) -> int:
    """Tokens before the decoded ones: as many as there is room for, up to CONTEXT."""
    room = min(side.max_len for side in sides) - asked.steps
    if room < 1:
        raise ConfigError(f"steps is {asked.steps}; expected at most {room + asked.steps - 1}")
    return min(CONTEXT, room)


def _workload(asked: Comparison, windows: Sequence[Window], text: _Text, context: int) -> dict[str, Any]:
    longest = max(len(window.token_ids) for window in windows)
    return {
        "text": "random tokens" if asked.text is None else "given",
        "text_tokens": len(text.tokens),
        "scored_tokens": sum(window.scored for window in windows),
        "windows": len(windows),
        "window": longest,
        "stride": asked.stride or longest - len(text.head),
        "context": context,
        "tokens_per_sample": asked.steps,
        "questions": len(asked.items),
    }


def _composed(sides: Sequence[Side], workload: dict[str, Any], samples: list[dict[str, Any]], repeat: Repeat) -> Result:
    reference = sides[0].bench
    return compose(
        kind="judge",
        metric="tokens_per_s",
        unit="tokens/s",
        machine=machine_with_limits(samples),
        model=describe_model(reference.name, reference.cost),
        options=flat_options(reference.config) | describe_runner(reference.runner),
        workload=workload,
        seed=reference.config.runner.seed,
        warmups=repeat.warmups,
        samples=samples,
        limits={"capacity_metric": None, "cost": None, "does_not_bind": "forms are held against each other"},
        how_obtained=f"{METHOD} {describe_repetition(repeat)}.",
    )


def _judged(sides: Sequence[Side], scores: Sequence[Scores], text: _Text) -> dict[str, Any]:
    sizes = block_sums(scores[0].agrees)  # the reference agrees with itself everywhere
    return {
        "reference": sides[0].label,
        "text_tokens": len(text.tokens),
        "text_bytes": text.num_bytes,
        "block_tokens": [int(size) for size in sizes],
        "sides": {side.label: _side(side, its) for side, its in zip(sides, scores, strict=True)},
    }


def _side(side: Side, scores: Scores) -> dict[str, Any]:
    bench = side.bench
    return {
        "options": flat_options(bench.config),
        "runner": bench.runner.name,
        "kernels": bench.runner.kernels().chosen,
        "disk_bytes": side.disk_bytes,
        "memory_bytes": side.memory_bytes(),
        "load_peak_bytes": side.load_peak_bytes,
        "scores": stored_scores(scores),
        "tasks": None,
    }


def _checked(result: Result) -> Result:
    """With every figure, and with the checks of a comparison beside those of any result."""
    for label, side in result["judged"]["sides"].items():
        side["figures"] = figures_of(result, label)
    result["checks"] = run_checks(result)
    refuse_failed(result["checks"])
    return result
