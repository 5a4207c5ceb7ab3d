"""Loss and held-out accuracy of a run over its tokens, as a PNG: `python -m tools.box.plot --run DIR --out FILE`.

This file knows nothing of how the numbers came about.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tools.box.state import read_log
from tools.box.train import DEFAULT_OUT

SHOWN = ("definition", "refusal", "addition_2", "addition_3", "extraction", "copying", "json", "needle", "sorting")


def plot(log: Path, out: Path) -> None:
    """Two panels side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    records = read_log(log)
    losses = [(r["tokens"] / 1e6, r["loss"]) for r in records if "loss" in r]
    judged = [(r["tokens"] / 1e6, r["held_out"]) for r in records if "held_out" in r]
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), constrained_layout=True)
    left.plot(*zip(*losses, strict=True), linewidth=0.8)
    left.set(yscale="log", xlabel="training tokens, millions", ylabel="loss, nats per answer token", title="Training")
    for task in SHOWN:
        right.plot([x for x, _ in judged], [100 * found[task] for _, found in judged], marker=".", label=task)
    right.set(xlabel="training tokens, millions", ylabel="exact match, %", ylim=(-2, 102), title="Held-out questions")
    right.legend(fontsize=8, ncols=2, loc="lower right")
    for panel in (left, right):
        panel.grid(alpha=0.3)
    figure.savefig(out, dpi=110)


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description="Draw the loss and the held-out accuracy of a run.")
    parser.add_argument("--run", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    plot(args.run / "log.jsonl", args.out)


if __name__ == "__main__":
    main()
