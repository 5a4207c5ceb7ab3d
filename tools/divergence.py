"""How far each quantized form moves the next-token distribution of a model, where there is no text to score.

Prints, for every form, the mean and the 99th percentile of the Kullback-Leibler divergence from the distributions in
float32, in nats, and how often the most likely token is the same; over random tokens in one sequence. On random weights
this judges arithmetic, not language. Usage: python tools/divergence.py [--model dummy:qwen3-0.6b] [--tokens 256]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from kvik.bench.plans import Layout, make_plan, random_tokens
from kvik.checkpoint import open_checkpoint
from kvik.config import RunnerOptions
from kvik.runners.native import NativeRunner
from kvik.step import Float32

FORMS = (("bf16", "bf16"), ("int8", "bf16"), ("int4", "bf16"), ("bf16", "int8"), ("int8", "int8"), ("int4", "int8"))


def log_probabilities(model: str, weights: str, kv_dtype: str, num_tokens: int) -> Float32:
    """[tokens, vocab] of one sequence of random tokens."""
    runner = NativeRunner(RunnerOptions(backend="native"), weights=weights, kv_dtype=kv_dtype)
    runner.load(open_checkpoint(model))
    layout = Layout(1, num_tokens, 32)
    runner.allocate(layout.num_blocks, layout.block_size)
    logits = runner.logits(make_plan(0, layout, random_tokens(0, runner.vocab_size, 1, num_tokens), 0, draw=False))
    runner.close()
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="dummy:qwen3-0.6b")
    parser.add_argument("--tokens", type=int, default=256)
    arguments = parser.parse_args()
    exact = log_probabilities(arguments.model, "f32", "f32", arguments.tokens)
    print("weights  KV      mean KL     p99 KL   same first token")
    for weights, kv_dtype in FORMS:
        held = log_probabilities(arguments.model, weights, kv_dtype, arguments.tokens)
        divergence = (np.exp(exact) * (exact - held)).sum(axis=1)
        same = (exact.argmax(axis=1) == held.argmax(axis=1)).mean()
        tail = np.quantile(divergence, 0.99)
        print(f"{weights:8} {kv_dtype:5} {divergence.mean():10.2e} {tail:10.2e} {100 * same:10.1f} %")


if __name__ == "__main__":
    main()
