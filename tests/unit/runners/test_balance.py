"""A balanced model is the same function, bit for bit, of weights that keep theirs; and its columns are of one size."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import whole_prompt

from kvik.checkpoint.checkpoint import Tensor, float32_to_bf16
from kvik.checkpoint.dummy import DummyCheckpoint
from kvik.checkpoint.quantized import QuantizedTensor
from kvik.checkpoint.spec import DecoderSpec, RopeSpec
from kvik.config import RunnerOptions
from kvik.runners.balance import MAX_EXPONENT, BalancedCheckpoint, balanced, balancing_exponents
from kvik.runners.reference import ReferenceRunner
from kvik.step import Float32

SPEC = DecoderSpec("llama", 61, 48, 72, 2, 4, 2, 16, 1e-5, RopeSpec(), 64, dtype="f32")
SPECS = {
    "grouped": SPEC,
    "one head each, biases": replace(SPEC, num_kv_heads=4, qkv_bias=True, o_bias=True),
    "grouped, biases, tied": replace(SPEC, num_kv_heads=1, qkv_bias=True, tied_head=True),
    "norms of heads, tied": replace(SPEC, qk_norm=True, tied_head=True),
}


class RoughCheckpoint:
    """Weights with rows and columns of very different sizes, changed where a test says; counts what is asked for."""

    name = "rough"
    directory: Path | None = None

    def __init__(self, spec: DecoderSpec = SPEC, changed: dict[str, Float32] | None = None) -> None:
        self.spec = spec
        self.asked: Counter[str] = Counter()
        self.released: list[str] = []
        self._changed = changed or {}

    def values(self, name: str) -> Float32:
        """As float32, before they are rounded to the stored form."""
        if name in self._changed:
            return self._changed[name]
        shape = self.spec.tensor_shapes()[name]
        rng = np.random.default_rng(list(name.encode()))
        sizes = np.exp2(rng.uniform(-5, 5, shape[-1])) * np.exp2(rng.uniform(-2, 2, (shape[0], 1))).reshape(-1, 1)
        values = rng.standard_normal(shape) * (sizes if len(shape) == 2 else 1) / np.sqrt(shape[-1])
        return (values + (len(shape) == 1)).astype(np.float32)

    def tensor(self, name: str) -> Tensor:
        self.asked[name] += 1
        values = self.values(name)
        if self.spec.dtype == "bf16":
            return Tensor(name, "bf16", float32_to_bf16(values))
        return Tensor(name, self.spec.dtype, values.astype(np.float16) if self.spec.dtype == "f16" else values)

    def release(self, name: str) -> None:
        self.released.append(name)


def logits(checkpoint: RoughCheckpoint | BalancedCheckpoint) -> Float32:
    ids = [3, 60, 0, 17, 17, 42, 8]
    runner = ReferenceRunner(RunnerOptions(), weights="f32")
    runner.load(checkpoint)
    runner.allocate(1, 32)
    return runner.logits(whole_prompt(ids))


def column_sizes(checkpoint: BalancedCheckpoint, *names: str) -> Float32:
    """Root mean square of each column of all of these."""
    values = np.concatenate([checkpoint.tensor(name).float32() for name in names])
    sizes: Float32 = np.sqrt((values.astype(np.float64) ** 2).mean(axis=0))
    return sizes


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("name", SPECS)
def test_the_function_is_the_same_to_the_last_bit(name: str, dtype: str) -> None:
    """Products with powers of two are exact, and so are sums of them."""
    rough = RoughCheckpoint(replace(SPECS[name], dtype=dtype))
    smooth = BalancedCheckpoint(rough)
    expected = logits(rough)
    assert np.isfinite(expected).all()
    assert (logits(smooth) == expected).all()
    assert not (smooth.tensor("layers.1.q").float32() == rough.tensor("layers.1.q").float32()).all()


@pytest.mark.parametrize("name", SPECS)
def test_columns_come_to_one_size(name: str) -> None:
    """The largest is at most twice the smallest; what o reads, over the heads that share a KV head."""
    spec = SPECS[name]
    smooth = BalancedCheckpoint(RoughCheckpoint(spec))
    for names in (("q", "k", "v"), ("gate", "up"), ("down",)):
        sizes = column_sizes(smooth, *(f"layers.0.{each}" for each in names))
        assert sizes.max() < 2.001 * sizes.min(), names
    o = column_sizes(smooth, "layers.0.o").reshape(spec.num_kv_heads, spec.group, spec.head_dim)
    shared = np.sqrt((o**2).mean(axis=1))
    assert shared.max() < 2.001 * shared.min()
    head = column_sizes(smooth, "embed" if spec.tied_head else "head")
    assert (head.max() < 2.001 * head.min()) != spec.tied_head


def test_what_makes_and_reads_no_channel_is_as_stored() -> None:
    rough = RoughCheckpoint(SPECS["one head each, biases"])
    smooth = BalancedCheckpoint(rough)
    for name in ("embed", "layers.0.q_bias", "layers.0.k_bias", "layers.0.o_bias"):
        assert (smooth.tensor(name).data == rough.tensor(name).data).all()
    tied = RoughCheckpoint(SPECS["norms of heads, tied"])
    for name in ("final_norm", "layers.1.q_norm", "layers.1.k_norm"):
        assert (BalancedCheckpoint(tied).tensor(name).data == tied.tensor(name).data).all()


@pytest.mark.parametrize("role", ["attn_norm", "q", "v", "o", "mlp_norm", "gate", "up", "down"])
def test_bf16_weights_keep_their_bits_but_the_exponent(role: str) -> None:
    name = f"layers.1.{role}"
    rough = RoughCheckpoint(replace(SPEC, dtype="bf16"))
    before, after = rough.tensor(name), BalancedCheckpoint(rough).tensor(name)
    assert after.dtype == "bf16"
    assert ((before.data ^ after.data) & 0x807F == 0).all()
    powers = np.log2(np.abs(after.float32() / before.float32()))
    assert (powers == np.rint(powers)).all()
    assert powers.any()


def test_a_balanced_model_is_hardly_changed_by_balancing_it() -> None:
    once = BalancedCheckpoint(RoughCheckpoint())
    twice = BalancedCheckpoint(once)
    for name in SPEC.tensor_shapes():
        ratio = np.abs(twice.tensor(name).float32() / BalancedCheckpoint(RoughCheckpoint()).tensor(name).float32())
        assert ratio.max() <= 4
        assert np.median(ratio) == 1


def test_a_model_in_balance_is_handed_on_as_it_is() -> None:
    """Random weights of one size need no factors, and are not copied."""
    even = {"layers.0.down": np.ones((48, 72), np.float32)}
    assert BalancedCheckpoint(RoughCheckpoint(changed=even)).tensor("layers.0.down").data is even["layers.0.down"]


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("odd", [0.0, -0.0, np.nan, np.inf, 1e-40, -1e-44, 3e38])
def test_odd_numbers_stay_what_they_are(odd: float, dtype: str) -> None:
    """Very small numbers lose bits or become zero, the largest become infinite; the others of their matrix do not."""
    spec = replace(SPEC, dtype=dtype)
    values = RoughCheckpoint(spec).values("layers.0.up")
    values[5, 7] = odd
    before = RoughCheckpoint(spec, {"layers.0.up": values})
    with np.errstate(over="ignore"):
        after = BalancedCheckpoint(before).tensor("layers.0.up").float32()
    if odd == 0 or not np.isfinite(odd):
        assert after[5, 7].tobytes() == np.float32(odd).tobytes()
    else:
        assert after[5, 7] * np.sign(odd) >= 0
    powers = np.log2(np.abs(np.delete(after, 5, 0) / np.delete(before.tensor("layers.0.up").float32(), 5, 0)))
    assert (powers == np.rint(powers)).all()


def test_columns_that_say_nothing_of_their_size_are_left_alone() -> None:
    squares = np.array([0.0, np.nan, np.inf, 1.0, 4.0, 16.0])
    assert balancing_exponents(squares).tolist() == [0, 0, 0, -1, 0, 1]
    assert balancing_exponents(np.zeros(3)).tolist() == [0, 0, 0]


def test_no_column_is_moved_by_more_than_the_limit() -> None:
    squares = np.exp2([-200.0, *[0.0] * 9, 200.0])
    assert balancing_exponents(squares).tolist() == [-MAX_EXPONENT, *[0] * 9, MAX_EXPONENT]


def test_a_column_of_zeros_and_one_of_nan_change_nothing_else() -> None:
    values = RoughCheckpoint().values("layers.0.down")
    values[:, 3], values[:, 4] = 0, np.nan
    rough = RoughCheckpoint(changed={"layers.0.down": values})
    down, up = (BalancedCheckpoint(rough).tensor(f"layers.0.{role}").float32() for role in ("down", "up"))
    assert (down[:, 3] == 0).all()
    assert np.isnan(down[:, 4]).all()
    assert np.isfinite(np.delete(down, 4, 1)).all()
    assert np.isfinite(up).all()


def test_each_tensor_is_read_once_and_released() -> None:
    rough = RoughCheckpoint(SPECS["one head each, biases"])
    smooth = BalancedCheckpoint(rough)
    for name in rough.spec.tensor_shapes():
        smooth.tensor(name)
        smooth.release(name)
    assert rough.asked == Counter(list(rough.spec.tensor_shapes()))
    assert rough.released == list(rough.spec.tensor_shapes())


def test_a_tensor_can_be_asked_for_again_and_in_any_order() -> None:
    rough = RoughCheckpoint()
    smooth, other = BalancedCheckpoint(rough), BalancedCheckpoint(rough)
    first = {name: smooth.tensor(name).float32() for name in reversed(SPEC.tensor_shapes())}
    for name in SPEC.tensor_shapes():
        assert (other.tensor(name).float32() == first[name]).all()
        assert (smooth.tensor(name).float32() == first[name]).all()


def test_no_more_is_held_than_one_part_of_a_layer_and_the_result() -> None:
    spec = replace(SPEC, dtype="bf16", hidden_size=512, intermediate_size=1024, num_layers=3, tied_head=True)
    source = BalancedCheckpoint(DummyCheckpoint.from_spec(replace(spec, vocab_size=16)))
    mlp = 3 * 512 * 1024 * 2
    tracemalloc.start()
    for name in source.spec.tensor_shapes():
        source.tensor(name)
        source.release(name)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert mlp < peak < mlp + 512 * 1024 * 2 + 2**21


def test_only_quantized_weights_are_balanced() -> None:
    rough = RoughCheckpoint()
    assert [form for form in ("f32", "bf16", "int8", "int4") if balanced(rough, form) is not rough] == ["int8", "int4"]
    smooth = balanced(rough, "int4")
    assert (smooth.name, smooth.spec, smooth.directory) == ("rough", SPEC, None)


class PartlyQuantized(RoughCheckpoint):
    """Some roles are quantized already."""

    def __init__(self, *roles: str) -> None:
        super().__init__()
        self._roles = roles

    def tensor(self, name: str) -> Any:
        if name.split(".")[-1] not in self._roles:
            return super().tensor(name)
        rows, columns = self.spec.tensor_shapes()[name]
        levels = np.random.default_rng(list(name.encode())).integers(0, 16, (rows, columns)).astype(np.uint8)
        scales, zeros = np.exp2(np.arange(rows, dtype=np.float32) % 7)[:, None], np.full((rows, 1), 8, np.int16)
        return QuantizedTensor(name, "made up", 4, levels, scales, columns, zeros=zeros)


@pytest.mark.parametrize(
    ("quantized", "alone"),
    [
        ("k", {"attn_norm", "k"}),
        ("v", {"attn_norm", "v", "o"}),
        ("o", {"o"}),
        ("gate", {"mlp_norm", "gate"}),
        ("up", {"mlp_norm", "up", "down"}),
        ("down", {"down"}),
        ("head", {"final_norm", "head"}),
    ],
)
def test_channels_of_a_weight_that_is_quantized_already_are_left_alone(quantized: str, alone: set[str]) -> None:
    """And the others are balanced, so the model is the same function still."""
    sound = PartlyQuantized(quantized)
    smooth = BalancedCheckpoint(sound)
    for name in SPEC.tensor_shapes():
        got, stored = smooth.tensor(name), sound.tensor(name)
        assert type(got) is type(stored)
        if name.split(".")[-1] in alone | {"embed"}:
            assert (got.float32() == stored.float32()).all()
    name = "layers.0.attn_norm" if "mlp_norm" in alone else "layers.0.mlp_norm"
    assert (smooth.tensor(name).float32() != sound.tensor(name).float32()).any()
    assert (logits(smooth) == logits(sound)).all()
