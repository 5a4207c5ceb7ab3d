"""The operations of the reference decoder against figures that can be checked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from kvik.checkpoint.spec import DecoderSpec, RopeSpec
from kvik.runners.reference.decoder import Decoder, linear, rms_norm, rope, silu
from kvik.step import Float32, as_int32

SPEC = DecoderSpec("llama", 11, 8, 12, 1, 2, 1, 4, 1e-5, RopeSpec(theta=100.0), 64, dtype="f32")


def random(*shape: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def decoder(spec: DecoderSpec = SPEC, **changed: Float32) -> Decoder:
    weights = {name: random(*shape, seed=len(name)) for name, shape in spec.tensor_shapes().items()}
    return Decoder(spec, weights | {name.replace("__", "."): weight for name, weight in changed.items()})


def test_linear_is_a_matrix_product_with_a_bias() -> None:
    x, weight, bias = random(5, 7), random(3, 7, seed=1), random(3, seed=2)
    assert linear(x, weight, bias) == pytest.approx(x.astype(float) @ weight.T + bias, abs=1e-5)
    assert linear(x[:0], weight).shape == (0, 3)


@pytest.mark.parametrize(("outputs", "inputs"), [(3, 7), (64, 64), (172, 64), (33, 513)])
def test_linear_gives_a_token_the_same_bytes_in_any_company(outputs: int, inputs: int) -> None:
    x, weight = random(37, inputs), random(outputs, inputs, seed=1)
    together = linear(x, weight)
    for start, stop in [(0, 1), (5, 6), (36, 37), (3, 19), (1, 37)]:
        assert (linear(x[start:stop], weight) == together[start:stop]).all()


def test_rms_norm_divides_by_the_root_mean_square() -> None:
    x = np.array([[3.0, 4.0, 0.0, 0.0]], np.float32)
    weight = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    assert rms_norm(x, weight, 0.0)[0] == pytest.approx([3 / 2.5, 8 / 2.5, 0, 0])
    assert rms_norm(x, weight, 6.25)[0, 0] == pytest.approx(3 / math.sqrt(12.5))


def test_silu_is_x_times_its_sigmoid() -> None:
    x = np.array([0.0, 1.0, -2.0], np.float32)
    assert silu(x) == pytest.approx([0.0, 1 / (1 + math.exp(-1)), -2 / (1 + math.exp(2))])


def test_rope_turns_the_halves_of_a_head_against_each_other() -> None:
    x = np.array([[[1.0, 0.0, 0.0, 2.0]]], np.float32)
    cos, sin = np.array([[0.6, 0.0]], np.float32), np.array([[0.8, 1.0]], np.float32)
    assert rope(x, cos, sin)[0, 0] == pytest.approx([0.6, -2.0, 0.8, 0.0])


def test_products_after_rope_depend_on_the_distance_alone() -> None:
    q, k = random(1, 1, 4), random(1, 1, 4, seed=1)

    def product(p: int, r: int) -> float:
        model = decoder()
        turned = rope(q, *model.rotation(as_int32([p]))), rope(k, *model.rotation(as_int32([r])))
        return float((turned[0] * turned[1]).sum())

    assert product(9, 4) == pytest.approx(product(45, 40), abs=1e-5)
    assert product(9, 4) != pytest.approx(product(4, 9), abs=1e-2)


def test_position_zero_is_not_turned_and_yarn_scales_it() -> None:
    cos, sin = decoder().rotation(as_int32([0]))
    assert (cos.tolist(), sin.tolist()) == ([[1, 1]], [[0, 0]])
    stretched = replace(SPEC, rope=RopeSpec(attention_factor=1.25))
    assert decoder(stretched).rotation(as_int32([0]))[0].tolist() == [[1.25, 1.25]]


def test_far_positions_have_exact_angles() -> None:
    cos, _ = decoder().rotation(as_int32([100_000]))
    assert cos[0, 0] == pytest.approx(math.cos(100_000), abs=1e-7)


def test_the_residual_passes_through_layers_that_add_nothing() -> None:
    zero = {"layers__0__o": np.zeros((8, 8), np.float32), "layers__0__down": np.zeros((8, 12), np.float32)}
    model = decoder(final_norm=np.ones(8, np.float32), **zero)
    hidden = model.hidden(as_int32([3]), as_int32([0]), lambda layer, q, k, v: q)
    embedded = random(11, 8, seed=len("embed"))[3:4]
    assert hidden == pytest.approx(rms_norm(embedded, np.ones(8, np.float32), 1e-5))


def test_a_tied_head_is_the_embedding() -> None:
    tied, hidden = decoder(replace(SPEC, tied_head=True)), random(2, 8)
    assert tied.logits(hidden) == pytest.approx(hidden @ random(11, 8, seed=len("embed")).T, abs=1e-5)
    assert decoder().logits(hidden) == pytest.approx(hidden @ random(11, 8, seed=len("head")).T, abs=1e-5)
