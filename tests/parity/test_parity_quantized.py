"""Quantized forms: every runner against the reference with the same options, and the reference against plain float32.

The bound of a fast runner comes from its own difference to the reference in bf16 on the same toy. Where activations
are rounded to 8 bits beside whole weights (every instruction set but AMX), it is three times wider; where keys and
values are rounded, a difference before rounding can become a whole step after it, so the tight bound is for float32
beside the quantized part, and a wider one for forms as they are used. Planted faults in scales and in the order of
weights are shown to break the tight one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from contenders import QUANTIZED, make_runner, runner_kinds
from oracle import BLOCK, max_difference, scheduled_logits, shuffled_tables, teacher_forced_logits
from toys import TOYS, ToyCheckpoint, random_checkpoint, token_ids

from kvik.runners.balance import BalancedCheckpoint
from kvik.runners.reference.quantized import int4_values, int8_values
from kvik.step import Float32

CHUNKS = (13, 1, 1, 25)
TIGHT = {
    "int8": {"weights": "int8", "kv_dtype": "f32"},
    "int4": {"weights": "int4", "kv_dtype": "f32"},
    "int8 KV": {"weights": "f32", "kv_dtype": "int8"},
}
BF16_RATIO = {"tight": 1.5, "wide": 3.0}
"""Of the difference in bf16, where activations are bf16. Seen on the toys: at most 0.9 and 2.4."""
INT8_RATIO = {"tight": 4.5, "wide": 5.5}
"""The same where linear layers round activations to 8 bits. Seen on the toys: at most 3.1 and 3.8."""
OF_LARGEST = 1e-3
FAULTY = "qwen2-d64-g2-window"
INT4_GROUPS: list[dict[str, Any]] = [
    {"group_size": 64},
    {"group_size": 128},
    {"symmetric": True},
    {"group_size": 128, "symmetric": True},
]
IDENTITY = ("qwen3-d80-g8-window", "llama-d16-g2-linear")


@pytest.fixture(params=QUANTIZED)
def form(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=runner_kinds())
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=runner_kinds()[1:])
def native_kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def logits_of(kind: str, checkpoint: ToyCheckpoint, weights: str, kv_dtype: str, **int4: Any) -> Float32:
    runner = make_runner(kind, weights, kv_dtype, **int4)
    logits = teacher_forced_logits(runner, checkpoint, token_ids(checkpoint.spec, sum(CHUNKS)), CHUNKS)
    runner.close()
    return logits


@cache
def answer(kind: str, name: str, weights: str, kv_dtype: str, **int4: Any) -> Float32:
    return logits_of(kind, random_checkpoint(TOYS[name]), weights, kv_dtype, **int4)


def allowed(kind: str, name: str, form: str, width: str = "tight") -> float:
    """Largest difference to the reference with the same options, from the one in bf16."""
    rounds_activations = form != "int8 KV" and kind not in ("reference", "amx", "amx-emulated")
    ratio = (INT8_RATIO if rounds_activations else BF16_RATIO)[width]
    reference = answer("reference", name, "bf16", "bf16")
    in_bf16 = max_difference(answer(kind, name, "bf16", "bf16"), reference)
    return ratio * in_bf16 + OF_LARGEST * float(np.abs(reference).max())


@pytest.mark.parametrize("name", TOYS)
def test_logits_are_those_of_the_reference_in_the_same_form(name: str, native_kind: str) -> None:
    for width, forms in (("tight", TIGHT), ("wide", QUANTIZED)):
        for form, options in forms.items():
            difference = max_difference(answer(native_kind, name, **options), answer("reference", name, **options))
            assert difference <= allowed(native_kind, name, form, width), options


@pytest.mark.parametrize("int4", INT4_GROUPS, ids=str)
def test_int4_groups_of_every_kind_are_those_of_the_reference(int4: dict[str, Any], native_kind: str) -> None:
    """And far from those of the default, so that an option that is not heard is seen."""
    expected = answer("reference", FAULTY, **TIGHT["int4"], **int4)
    bound = allowed(native_kind, FAULTY, "int4")
    assert max_difference(answer(native_kind, FAULTY, **TIGHT["int4"], **int4), expected) <= bound
    assert max_difference(answer("reference", FAULTY, **TIGHT["int4"]), expected) > bound


@pytest.mark.parametrize(("weights", "values"), [("int8", int8_values), ("int4", int4_values)])
@pytest.mark.parametrize("name", TOYS)
def test_the_reference_quantizes_every_matrix_and_nothing_else(
    name: str, weights: str, values: Callable[[Float32], Float32]
) -> None:
    """Balanced and quantized by hand and computed as float32, the model answers the same bytes."""
    sound = random_checkpoint(TOYS[name])
    weights_of = {key: BalancedCheckpoint(sound).tensor(key).float32() for key in sound.weights}
    kept = sound.with_weights({key: values(w) if w.ndim == 2 else w for key, w in weights_of.items()})
    got = answer("reference", name, weights, "f32")
    assert (got == logits_of("reference", kept, "f32", "f32")).all()
    assert not (got == answer("reference", name, "f32", "f32")).all()


@pytest.mark.parametrize("form", ["int8", "int4"], indirect=True)
def test_channels_beside_an_outlier_survive(form: str, native_kind: str) -> None:
    """One channel of the residual stream is 300 times larger than the rest and no matrix reads it: what shares a scale
    with it keeps enough bits.
    """
    sound, channel = random_checkpoint(TOYS[FAULTY]), 5
    changed = {key: w.copy() for key, w in sound.weights.items()}
    changed["embed"][:, channel] = 300 * np.abs(sound.weights["embed"]).mean()
    for key, weight in changed.items():
        if key.split(".")[-1] in ("q", "k", "v", "gate", "up", "head"):
            weight[:, channel] = 0
    outlying = sound.with_weights(changed)
    reference = logits_of("reference", outlying, **TIGHT[form])
    in_bf16 = max_difference(
        logits_of(native_kind, outlying, "bf16", "f32"), logits_of("reference", outlying, "bf16", "f32")
    )
    assert max_difference(logits_of(native_kind, outlying, **TIGHT[form]), reference) <= 4.5 * in_bf16


# Planted faults, each made in the weights such that the quantized model is one with the fault


def rows_exchange_scales(weight: Float32) -> Float32:
    """The rows of the largest and the least scale, each with the scale of the other."""
    top = np.abs(weight).max(axis=1)
    large, small = top.argmax(), top.argmin()
    faulty = weight.copy()
    faulty[large] *= top[small] / top[large]
    faulty[small] *= top[large] / top[small]
    return faulty


def scales_are_of_the_next_group(weight: Float32) -> Float32:
    """Every group of 32 inputs has the scale of the group to its right."""
    groups = weight.reshape(len(weight), -1, 32)
    top = np.abs(groups).max(axis=-1, keepdims=True)
    return (groups * np.roll(top, -1, axis=1) / top).reshape(weight.shape)


def neighbours_change_places(weight: Float32) -> Float32:
    """The halves of every byte are exchanged."""
    return weight.reshape(len(weight), -1, 2)[:, :, ::-1].reshape(weight.shape)


@pytest.mark.parametrize("fault", [rows_exchange_scales, scales_are_of_the_next_group, neighbours_change_places])
@pytest.mark.parametrize("form", ["int8", "int4"], indirect=True)
def test_faults_in_scales_and_order_break_the_bound(form: str, kind: str, fault: Callable[[Float32], Float32]) -> None:
    name = "layers.1.q"
    sound = random_checkpoint(TOYS[FAULTY])
    faulty = sound.with_weights({name: fault(sound.weights[name])})
    expected = answer("reference", FAULTY, **TIGHT[form])
    got = logits_of(kind, faulty, **TIGHT[form])
    assert max_difference(got, expected) > allowed(kind, FAULTY, form)


def test_a_head_whose_scales_are_a_quarter_too_large_breaks_the_bound(kind: str) -> None:
    """Its values made as much larger are the same integers with larger scales."""
    sound, name = random_checkpoint(TOYS[FAULTY]), "layers.1.v"
    changed = {key: sound.weights[key].copy() for key in (name, f"{name}_bias")}
    for weight in changed.values():
        weight[: sound.spec.head_dim] *= 1.25
    got = logits_of(kind, sound.with_weights(changed), **TIGHT["int8 KV"])
    expected = answer("reference", FAULTY, **TIGHT["int8 KV"])
    assert max_difference(got, expected) > allowed(kind, FAULTY, "int8 KV")


# Same bytes


def alone(kind: str, form: str, name: str, ids: Sequence[int], chunks: Sequence[int] | None, seed: int = 0) -> Float32:
    runner = make_runner(kind, **QUANTIZED[form])
    logits = teacher_forced_logits(runner, random_checkpoint(TOYS[name]), ids, chunks, seed=seed)
    runner.close()
    return logits


@pytest.mark.parametrize("name", IDENTITY)
def test_chunks_and_the_order_of_blocks_change_nothing(name: str, form: str, kind: str) -> None:
    ids = token_ids(TOYS[name], 70)
    whole = alone(kind, form, name, ids, None)
    for seed, chunks in enumerate(([1] * 70, [32, 32, 6], [7, 1, 45, 1, 16]), start=1):
        assert (alone(kind, form, name, ids, chunks, seed) == whole).all()


@pytest.mark.parametrize("name", IDENTITY)
def test_rows_of_a_mixed_batch_are_rows_alone(name: str, form: str, kind: str) -> None:
    prompts = [token_ids(TOYS[name], length, seed) for seed, length in enumerate((70, 17, 3, 55))]
    tables, num_blocks = shuffled_tables([len(ids) for ids in prompts], BLOCK, seed=5)
    runner = make_runner(kind, **QUANTIZED[form])
    runner.load(random_checkpoint(TOYS[name]))
    runner.allocate(num_blocks, BLOCK)
    schedule = [{0: 40}, {0: 1, 1: 15, 2: 3}, {3: 9, 0: 1}, {1: 1, 0: 27, 3: 46}]
    schedule.append({0: 1, 1: 1})
    together = scheduled_logits(runner, prompts, tables, schedule)
    runner.close()
    for ids, logits in zip(prompts, together, strict=True):
        assert (logits == alone(kind, form, name, ids, None)).all()
