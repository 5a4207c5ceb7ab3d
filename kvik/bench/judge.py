"""Models held against one of them, the reference: on one text, position by position, and in speed, in turn.

Every window of the text goes through all models at once, a few positions at a time, so that no more than two pieces of
[positions, vocabulary] are held however long the text is. This file knows nothing of files or of what is printed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kvik.bench.accuracy import measure_tasks
from kvik.bench.checks import EvidenceError
from kvik.bench.decode import DecodeWorkload, decode_sampler, prefill_rows
from kvik.bench.divergence import Float64, divergences, log_partition, token_losses
from kvik.bench.judge_figures import Scores
from kvik.bench.judge_operands import Operand
from kvik.bench.judge_sides import Side, as_ids
from kvik.bench.perplexity import Window
from kvik.bench.plans import Layout
from kvik.bench.tasks import Item, Judged
from kvik.engine.build import build_engine
from kvik.engine.llm import LLM
from kvik.errors import ConfigError
from kvik.step import Float32, Int32

PIECE_BYTES, FEWEST, MOST = 1 << 25, 16, 512
"""Size of the logits that are asked for at once, and of how many positions at least and at most."""

Advance = Callable[[int], object]


def score_text(
    sides: Sequence[Side], layouts: Sequence[Layout], windows: Sequence[Window], advance: Advance
) -> list[Scores]:
    """Every side's scores over all windows, the reference first. `advance` is told of positions done.

    Raises EvidenceError for logits that are not finite.
    """
    found: list[list[Float64]] = [[] for _ in sides]
    for window in windows:
        for index, piece in _score_window(sides, layouts, window):
            found[index].append(piece)
        advance(window.scored)
    return [Scores(*np.concatenate(pieces, axis=1)) for pieces in found]


def _score_window(sides: Sequence[Side], layouts: Sequence[Layout], window: Window) -> list[tuple[int, Float64]]:
    """(side, [3, positions]) of every piece of a window, in order."""
    ids, targets = as_ids(window.token_ids[:-1]), as_ids(window.token_ids[1:])
    first, width = len(ids) - window.scored, piece_width(sides[0].bench.runner.vocab_size)
    for side, layout in zip(sides, layouts, strict=True):
        chunk = side.bench.config.scheduler.max_num_batched_tokens
        for start in range(0, first, chunk):
            side.feed(layout, ids[start : min(start + chunk, first)], start)
    found = []
    for start in range(first, len(ids), width):
        part = slice(start, start + width)
        found += list(enumerate(_score_piece(sides, layouts, ids[part], targets[part], start)))
    return found


def _score_piece(
    sides: Sequence[Side], layouts: Sequence[Layout], ids: Int32, targets: Int32, start: int
) -> list[Float64]:
    """[3, positions] of each side: losses, divergences, agreement."""
    reference = sides[0].logits(layouts[0], ids, start)
    log_z, likeliest = _finite(reference, sides[0], start), reference.argmax(axis=1)
    nothing = np.zeros(len(ids))
    found = [np.stack([token_losses(reference, log_z, targets), nothing, nothing + 1])]
    for side, layout in zip(sides[1:], layouts[1:], strict=True):
        logits = side.logits(layout, ids, start)
        its_z = _finite(logits, side, start)
        moved = divergences(reference, log_z, logits, its_z)
        found.append(np.stack([token_losses(logits, its_z, targets), moved, logits.argmax(axis=1) == likeliest]))
    return found


def _finite(logits: Float32, side: Side, start: int) -> Float64:
    log_z = log_partition(logits)
    if not np.isfinite(log_z).all():
        position = start + int(np.flatnonzero(~np.isfinite(log_z))[0])
        raise EvidenceError(f"{side.label} gives logits that are not finite at position {position} of a window")
    return log_z


def piece_width(vocab_size: int) -> int:
    """Positions whose logits are asked for at once."""
    return min(max(PIECE_BYTES // (4 * vocab_size), FEWEST), MOST)


def speed_round(
    sides: Sequence[Side], layouts: Sequence[Layout], context: int, steps: int
) -> Callable[[], dict[str, Any]]:
    """A function that has each side decode one sequence, in order and in the next round in reverse.

    A sample is the reference's run, with those of the others inside.
    """
    workload = DecodeWorkload(1, context, steps)
    takes = {
        side.label: decode_sampler(side.bench.runner, layout, workload, prefill_rows(side.bench, layout, context))
        for side, layout in zip(sides, layouts, strict=True)
    }
    order = list(takes)

    def take() -> dict[str, Any]:
        runs = {label: takes[label]() for label in order}
        order.reverse()
        timed = {label: {**run, "tpot_s": run["seconds"] / run["tokens"]} for label, run in runs.items()}
        return {**timed[sides[0].label], "others": {side.label: timed[side.label] for side in sides[1:]}}

    return take


def answer_tasks(operands: Sequence[Operand], items: Sequence[Item], *, progress: bool) -> dict[str, Judged]:
    """What each operand answers to the same questions, one model loaded at a time. Raises ConfigError for one without a
    chat template, and what makes a question fail.
    """
    judged = {}
    for operand in operands:
        with LLM.from_engine(build_engine(operand.config)) as llm:
            if llm.tokenizer is None or not llm.tokenizer.has_chat_template:
                raise ConfigError(f"{operand.label} has no chat template; expected one, as tasks are questions")
            judged[operand.label] = measure_tasks(llm, items, progress=progress)
    return judged


def compare_answers(judged: Mapping[str, Judged]) -> dict[str, dict[str, Any]]:
    """Of each label: right answers, and against the first label what it gained and lost."""
    reference = _right(next(iter(judged.values())))
    found = {}
    for label, each in judged.items():
        pairs = list(zip(reference, _right(each), strict=True))
        gained, lost = sum(b > a for a, b in pairs), sum(a > b for a, b in pairs)
        found[label] = {**each.overall.as_dict(), "gained": gained, "lost": lost}
    return found


def _right(judged: Judged) -> list[bool]:
    return [item.is_right(text) for item, text in zip(judged.items, judged.answers, strict=True)]
