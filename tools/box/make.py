"""The model in the box with one command: `python -m tools.box.make --tokens 120e6` trains, decays, judges and exports.

Every step is a program of its own beside this file and is called as such; a command that was interrupted goes on where
it stopped. Takes hours on two cores. This file knows only the order of things.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from tools.box.state import read_log
from tools.box.train import DEFAULT_OUT

DECAY_STEPS = 1200


def call(program: str, *arguments: object) -> None:
    """Run one of the programs to its end. Raises CalledProcessError."""
    command = [sys.executable, "-m", f"tools.box.{program}", *map(str, arguments)]
    print("$", " ".join(command), flush=True)
    subprocess.run(command, check=True)


def steps_for(run: Path, tokens: float, steps: int) -> int:
    """The step at which a run will have seen so many tokens, guessed from its log; `steps` where there is none."""
    seen = [record for record in read_log(run / "log.jsonl") if "loss" in record]
    if not seen:
        return steps
    return int(tokens / seen[-1]["tokens"] * seen[-1]["step"])


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description="Train, judge and export the model in the box.")
    parser.add_argument("--run", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--out", type=Path, default=Path("kvik/box/model"))
    parser.add_argument("--tokens", type=float, default=120e6, help="training tokens before the decay, about")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--count", type=int, default=400, help="held-out questions of each task")
    args = parser.parse_args()
    common = ("--out", args.run, "--device", args.device, "--compile")
    call("train", *common, "--steps", 40)
    call("train", *common, "--steps", steps_for(args.run, args.tokens, 8000))
    call("train", *common, "--decay-steps", DECAY_STEPS)
    call("export", "--run", args.run, "--out", args.out)
    call("plot", "--run", args.run, "--out", args.run / "training.png")
    call("evaluate", "--model", args.out, "--count", args.count, "--json", args.run / "accuracy.json")


if __name__ == "__main__":
    main()
