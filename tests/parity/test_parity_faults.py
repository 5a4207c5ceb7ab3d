"""The parity check has teeth: planted faults move the logits far past its bound, in every runner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from contenders import make_runner
from faults import FAULTS, Fault
from oracle import (
    BLOCK,
    FLOAT32_BOUND,
    max_difference,
    plan_for,
    shuffled_tables,
    teacher_forced_logits,
    transformers_logits,
)
from toys import ToyCheckpoint, random_checkpoint, token_ids, toy

from kvik.checkpoint import write_checkpoint
from kvik.runners.reference import decoder
from kvik.runners.runner import Runner
from kvik.step import Float32

pytestmark = pytest.mark.torch
pytest.importorskip("transformers")

NewRunner = Callable[..., Runner]
CLEARLY = 5 * FLOAT32_BOUND
IDS = 50
SPEC = toy("qwen2", hidden=48, heads=6, group=3, head_dim=16, vocab=83, layers=3, window=(0, 7, 7))


@pytest.fixture(scope="module")
def checkpoint() -> ToyCheckpoint:
    return random_checkpoint(SPEC, seed=3)


@pytest.fixture(scope="module")
def expected(checkpoint: ToyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Float32:
    directory = tmp_path_factory.mktemp("sound")
    write_checkpoint(checkpoint, directory)
    return transformers_logits(directory, token_ids(SPEC, IDS))


def test_the_sound_model_passes(new_runner: NewRunner, checkpoint: ToyCheckpoint, expected: Float32) -> None:
    got = teacher_forced_logits(new_runner(), checkpoint, token_ids(SPEC, IDS), [40, 1, 9])
    assert max_difference(got, expected) <= FLOAT32_BOUND


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_caught(
    fault: Fault, new_runner: NewRunner, checkpoint: ToyCheckpoint, expected: Float32
) -> None:
    got = teacher_forced_logits(new_runner(), fault(checkpoint), token_ids(SPEC, IDS), [40, 1, 9])
    assert max_difference(got, expected) > CLEARLY


def test_a_chunk_one_position_late_is_caught(
    new_runner: NewRunner, checkpoint: ToyCheckpoint, expected: Float32
) -> None:
    """Rotary positions are relative, so only a shift in the middle of a sequence can be seen."""
    ids, runner = token_ids(SPEC, IDS), new_runner()
    tables, num_blocks = shuffled_tables([IDS + 1], BLOCK)
    runner.load(checkpoint)
    runner.allocate(num_blocks, BLOCK)
    runner.logits(plan_for([ids], {0: (0, 40)}, tables))
    sound = plan_for([ids], {0: (40, IDS)}, tables)
    late = replace(sound, positions=sound.positions + 1, seq_lens=sound.seq_lens + 1)
    assert max_difference(runner.logits(late), expected[40:]) > CLEARLY


def test_a_block_of_the_wrong_sequence_is_caught(
    new_runner: NewRunner, checkpoint: ToyCheckpoint, expected: Float32
) -> None:
    ids, runner = token_ids(SPEC, IDS), new_runner()
    tables, num_blocks = shuffled_tables([IDS, IDS], BLOCK)
    runner.load(checkpoint)
    runner.allocate(num_blocks, BLOCK)
    both = [ids, token_ids(SPEC, IDS, seed=1)]
    runner.logits(plan_for(both, {0: (0, 40), 1: (0, 40)}, tables))
    crossed = [np.concatenate([tables[1][:1], tables[0][1:]]), tables[1]]
    got = runner.logits(plan_for(both, {0: (40, IDS)}, crossed))
    assert max_difference(got, expected[40:]) > CLEARLY


def test_one_flipped_sign_in_the_rotation_is_caught(
    monkeypatch: pytest.MonkeyPatch, checkpoint: ToyCheckpoint, expected: Float32
) -> None:
    """A rotation that is none cannot be planted through weights, so it is planted in the reference itself."""

    def flipped(x: Float32, cos: Float32, sin: Float32) -> Float32:
        first, second = np.split(x, 2, axis=-1)
        cos, sin = cos[:, None, :], sin[:, None, :]
        return np.concatenate([first * cos - second * sin, second * cos - first * sin], axis=-1)

    monkeypatch.setattr(decoder, "rope", flipped)
    runner = make_runner("reference")
    got = teacher_forced_logits(runner, checkpoint, token_ids(SPEC, IDS))
    assert max_difference(got, expected) > CLEARLY
