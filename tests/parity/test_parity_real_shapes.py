"""Qwen3-0.6B at its real shapes (random weights): the native runner beside transformers in bf16 and float32.

Needs about 6 GB of memory and two minutes, so it is run by hand: `pytest -m slow tests/parity`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from contenders import make_runner
from oracle import BF16_RATIO, max_difference, teacher_forced_logits, transformers_logits

from kvik.checkpoint import open_checkpoint, write_checkpoint
from kvik.runners.native import available

pytestmark = [pytest.mark.slow, pytest.mark.torch, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen3-0.6b")
    write_checkpoint(open_checkpoint("dummy:qwen3-0.6b", seed=3), path)
    return path


@pytest.mark.skipif(not available(), reason="the native runner was not built")
def test_greedy_tokens_are_those_of_transformers_wherever_bf16_can_tell(directory: Path) -> None:
    ids = np.random.default_rng(5).integers(0, 151936, 96).tolist()
    exact = transformers_logits(directory, ids, "float32")
    theirs = transformers_logits(directory, ids, "bfloat16")
    runner = make_runner("auto", "bf16", "bf16")
    ours = teacher_forced_logits(runner, open_checkpoint(str(directory)), ids, block_size=32)
    runner.close()
    noise = max_difference(theirs, exact)
    print(f"max error against float32: transformers bf16 {noise:.4f}, native {max_difference(ours, exact):.4f}")
    assert max_difference(ours, exact) <= BF16_RATIO * noise
    top_two = np.sort(exact, axis=1)[:, -2:]
    clear = top_two[:, 1] - top_two[:, 0] > 2 * noise
    print(f"{clear.sum()} of {len(ids)} positions have a top-2 gap above the bf16 noise")
    assert clear.sum() >= 10
    assert np.array_equal(ours.argmax(1)[clear], theirs.argmax(1)[clear])
