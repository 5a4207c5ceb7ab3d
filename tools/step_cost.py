"""What a step costs beside the model: scheduler, Python, detokenization.

Runs the real engine over a runner that answers at once, with a number of requests streaming text, and prints the
median microseconds of a step by part: plan, commit, and outputs (text, deadlines, bookkeeping). The runner's own time
is left out. Usage: python tools/step_cost.py [--requests 64] [--steps 400] [--tokenizer DIR] [--no-stream] [--stop]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fakes import FakeRunner, byte_tokenizer, fake_engine, fake_spec

from kvik.engine.engine import Engine
from kvik.request import SamplingParams
from kvik.step import StepPlan, StepResult, TopLogprobs
from kvik.text.tokenizer import Tokenizer

CONTEXT = 100


class InstantRunner(FakeRunner):
    """Answers every plan with tokens drawn in advance."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self._tokens = np.random.default_rng(0).integers(0, num_tokens, 1 << 16, dtype=np.int32)

    def run(self, plan: StepPlan) -> StepResult:
        """The next tokens of the endless row, one for each draw."""
        count = len(plan.sample)
        start = plan.step * 97 % (len(self._tokens) - count)
        return StepResult(
            self._tokens[start : start + count], np.zeros(count, np.bool_), TopLogprobs(np.zeros(count, np.float32))
        )


class Stopwatch:
    """Wraps a callable and notes how long each call took, in microseconds."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.samples: list[float] = []

    def __call__(self, *args: Any) -> Any:
        """Call and time it."""
        started = time.perf_counter()
        result = self._function(*args)
        self.samples.append((time.perf_counter() - started) * 1e6)
        return result


def measure(engine: Engine, steps: int) -> dict[str, float]:
    """Median microseconds of plan, commit and the rest of a step, the runner left out."""
    scheduler: Any = engine.scheduler
    plan, commit = Stopwatch(scheduler.plan), Stopwatch(scheduler.commit)
    run, step = Stopwatch(engine.runner.run), Stopwatch(engine.step)
    scheduler.plan, scheduler.commit, engine.runner.run = plan, commit, run  # type: ignore[method-assign]
    for _ in range(steps):
        for answer in step():
            answer.choices[0].take_text()
    parts = zip(step.samples, plan.samples, commit.samples, run.samples, strict=True)
    own = [whole - planned - committed - ran for whole, planned, committed, ran in parts]
    without_model = [whole - ran for whole, ran in zip(step.samples, run.samples, strict=True)]
    named = {"plan": plan.samples, "commit": commit.samples, "outputs": own, "step": without_model}
    return {name: statistics.median(samples) for name, samples in named.items()}


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--stream", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--stop", action="store_true", help="give every request stop strings to look for")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        tokenizer = Tokenizer.from_directory(args.tokenizer) if args.tokenizer else byte_tokenizer(Path(directory))
    spec = fake_spec(vocab_size=tokenizer.vocab_size, max_position=CONTEXT + args.steps + 64)
    engine = fake_engine(InstantRunner(tokenizer.vocab_size), tokenizer=tokenizer, spec=spec)
    stop = ("\n\nUser:", "</answer>") if args.stop else ()
    params = SamplingParams(max_tokens=None, ignore_eos=True, stop=stop)
    for number in range(args.requests):
        engine.add([number % 200] * CONTEXT, params, request_id=str(number), stream=args.stream)
    for _ in range(20):
        engine.step()
    medians = measure(engine, args.steps)
    kind = "streaming" if args.stream else "not streaming"
    print(f"{args.requests} requests, {kind}, median of {args.steps} steps, microseconds a step:")
    print("  ".join(f"{name} {value:.0f}" for name, value in medians.items()))


if __name__ == "__main__":
    main()
