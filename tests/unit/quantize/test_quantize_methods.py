"""The algorithms on single matrices and layers: what each promises, and the identities it rests on."""

from __future__ import annotations

import numpy as np
import pytest

from kvik.checkpoint import DummyCheckpoint
from kvik.quantize.awq import clipped, held_at, quantize_awq, search_scales
from kvik.quantize.blocks import TOKENS, Blocks, judged_by
from kvik.quantize.forward import READERS, LayerForward, Statistics, gather
from kvik.quantize.gptq import block_length, inverse_factor, quantize_gptq, upper_inverse
from kvik.quantize.grid import Grid, kept, round_to_nearest, stored
from kvik.quantize.methods import in_place
from kvik.quantize.run import embedded, layer_weights
from kvik.quantize.scaling import move, normalized, per_maker
from kvik.quantize.smooth import quantize_int8, search_migration
from kvik.runners.reference.attention import attend
from kvik.runners.reference.decoder import Decoder, rms_norm
from kvik.step import Float32, as_int32

RNG = np.random.default_rng(5)


def correlated(tokens: int, channels: int) -> Float32:
    """Activations whose channels say much of each other, some of them large."""
    rng = np.random.default_rng(channels)
    mixed = rng.normal(size=(tokens, channels // 4)) @ rng.normal(size=(channels // 4, channels))
    return (mixed * np.exp(rng.normal(size=channels))).astype(np.float32) + rng.normal(size=(tokens, channels)).astype(
        np.float32
    ) * np.float32(0.1)


def output_error(x: Float32, weight: Float32, values: Float32) -> float:
    return float(np.square(x @ (values - weight).T).sum())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_to_nearest_is_off_by_half_a_step_at_most(bits: int, symmetric: bool) -> None:
    weight = RNG.normal(size=(6, 32)).astype(np.float32)
    rounded = round_to_nearest(weight, Grid(bits, symmetric, "f32"), 8)
    gap = np.abs(kept(rounded, 8) - weight).reshape(6, 4, 8)
    assert (gap <= rounded.scales[..., None] * 0.5001).all()
    assert gap.max() > 0
    if symmetric:
        assert (rounded.zeros == 1 << (bits - 1)).all()


def test_scales_are_numbers_that_the_file_can_hold() -> None:
    weight = RNG.normal(size=(4, 16)).astype(np.float32)
    for form in ("f16", "bf16"):
        scales = round_to_nearest(weight, Grid(4, False, form), 8).scales
        np.testing.assert_array_equal(stored(scales, form), scales)
    silent = round_to_nearest(np.zeros((2, 8), np.float32), Grid(4, False), 8)
    assert (silent.scales > 0).all()
    assert (kept(silent, 8) == 0).all()


def test_a_lowest_zero_is_kept() -> None:
    weight = np.abs(RNG.normal(size=(4, 8))).astype(np.float32)
    assert (round_to_nearest(weight, Grid(4, False), 8).zeros == 0).all()
    assert (round_to_nearest(weight, Grid(4, False, lowest_zero=1), 8).zeros == 1).all()


def test_searching_the_range_lowers_the_error_that_is_weighed() -> None:
    weight = RNG.standard_t(3, size=(16, 32)).astype(np.float32)
    importance = np.exp(RNG.normal(size=32)).astype(np.float32)
    grid = Grid(4, True)
    scale, zero = grid.search(weight, importance)
    plain_scale, plain_zero = grid.spread(weight)
    found = np.square(grid.values(grid.levels(weight, scale, zero), scale, zero) - weight) * importance
    plain = np.square(grid.values(grid.levels(weight, plain_scale, plain_zero), plain_scale, plain_zero) - weight)
    assert found.sum() < 0.95 * (plain * importance).sum()


@pytest.mark.parametrize("size", [1, 5, 64, 65, 200])
def test_the_inverse_of_a_triangle(size: int) -> None:
    upper = np.triu(RNG.normal(size=(size, size)) * 0.1) + np.eye(size)
    np.testing.assert_allclose(upper_inverse(upper) @ upper, np.eye(size), atol=1e-9)


def test_the_factor_is_that_of_the_inverse_even_where_inputs_repeat() -> None:
    x = correlated(400, 40).astype(np.float64)
    hessian = x.T @ x
    factor = inverse_factor(hessian, 0.01)
    damped = hessian + np.eye(40) * 0.01 * np.diag(hessian).mean()
    np.testing.assert_allclose(factor.T @ factor @ damped, np.eye(40), atol=1e-7)
    assert (np.tril(factor, -1) == 0).all()
    broken = np.ones((8, 8))
    broken[0, 1] = broken[1, 0] = 3
    assert np.isfinite(inverse_factor(broken, 1e-6)).all()


def test_blocks_begin_where_groups_begin() -> None:
    for size in (8, 32, 96, 128, 160, 256, 3072):
        length = block_length(size)
        assert length <= 128
        assert size % length == 0 or length % size == 0


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("size", [32, 160, 96])
def test_gptq_beats_rounding_to_nearest_on_correlated_inputs(size: int, act_order: bool) -> None:
    inputs = 480
    x = correlated(2000, inputs)
    weight = np.random.default_rng(1).normal(size=(24, inputs)).astype(np.float32)
    grid = Grid(4, True, "f32")
    hessian = (x.T @ x).astype(np.float64)
    rounded = quantize_gptq(weight, hessian, grid, size, act_order=act_order)
    plain = output_error(x, weight, kept(round_to_nearest(weight, grid, size), size))
    assert output_error(x, weight, in_place(rounded, size)) < 0.5 * plain
    assert (rounded.order is not None) == act_order
    if rounded.order is not None:
        sizes = np.diag(hessian)[rounded.order]
        assert (np.diff(sizes) <= 0).all()


def test_gptq_is_rounding_to_nearest_where_inputs_are_independent() -> None:
    weight = RNG.normal(size=(8, 64)).astype(np.float32)
    grid = Grid(4, False, "f32")
    rounded = quantize_gptq(weight, np.eye(64), grid, 64)
    scale, zero = grid.search(weight, np.ones(64, np.float32))
    np.testing.assert_array_equal(rounded.levels, grid.levels(weight, scale, zero).astype(np.uint8))


def test_gptq_takes_inputs_that_are_never_active() -> None:
    x = correlated(300, 32)
    x[:, [3, 7]] = 0
    weight = RNG.normal(size=(8, 32)).astype(np.float32)
    rounded = quantize_gptq(weight, (x.T @ x).astype(np.float64), Grid(4, True, "f32"), 32)
    assert np.abs(kept(rounded, 32)[:, 3] - weight[:, 3]).max() < rounded.scales.max()


SPECS = ("tiny-qwen3", "tiny-qwen2", "tiny-mistral", "tiny-llama")


def layer_of(name: str, length: int = 24) -> tuple[DummyCheckpoint, dict[str, Float32], Float32]:
    source = DummyCheckpoint(name, seed=2)
    ids = np.random.default_rng(0).integers(0, source.spec.vocab_size, (6, length))
    weights = layer_weights(source, 0)
    return (
        source,
        {key: values * np.float32(4) for key, values in weights.items()},
        embedded(source, as_int32(ids)) * 30,
    )


@pytest.mark.parametrize("name", SPECS)
def test_the_forward_is_the_reference_decoder(name: str) -> None:
    source = DummyCheckpoint(name)
    spec, ids = source.spec, as_int32(np.random.default_rng(0).integers(0, 300, (2, 40)))
    weights = {key: source.tensor(key).float32() for key in spec.tensor_shapes()}
    x, positions = embedded(source, ids), as_int32(range(40))
    forward = LayerForward(spec, 40)
    for layer in range(spec.num_layers):
        forward.run(layer, layer_weights(source, layer), x)
    for row in range(2):
        hidden = Decoder(spec, weights).hidden(
            ids[row], positions, lambda layer, q, k, v: attend(q, k, v, positions, spec.window(layer))
        )
        ours = rms_norm(x[row], weights["final_norm"], spec.rms_norm_eps)
        np.testing.assert_allclose(ours, hidden, atol=2e-5)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("channels", list(READERS))
def test_moving_sizes_between_channels_leaves_the_layer_as_it_is(name: str, channels: str) -> None:
    source, weights, x = layer_of(name)
    spec = source.spec
    seen: dict[str, Statistics] = {}
    exact, moved = x.copy(), x.copy()
    LayerForward(spec, 24).run(0, weights, exact, seen.__setitem__)
    made = per_maker(spec, channels, seen[channels].mean_size)
    changed = dict(weights)
    move(spec, changed, channels, np.random.default_rng(3).uniform(0.5, 2, made.shape).astype(np.float32))
    LayerForward(spec, 24).run(0, changed, moved)
    assert not np.array_equal(changed[READERS[channels][0]], weights[READERS[channels][0]])
    np.testing.assert_allclose(moved, exact, atol=0.01 * np.abs(exact).max())


def test_statistics_are_those_of_all_tokens() -> None:
    x = correlated(100, 16)
    seen = gather(iter([x[:30], x[30:]]), 100, 16)
    np.testing.assert_allclose(seen.hessian, x.T @ x, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(seen.mean_size, np.abs(x).mean(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(seen.max_size, np.abs(x).max(axis=0))
    np.testing.assert_array_equal(seen.sample, x)


@pytest.mark.parametrize("name", ["tiny-qwen3", "tiny-qwen2"])
def test_awq_lowers_the_error_of_a_layer_with_large_channels(name: str) -> None:
    source, weights, x = layer_of(name)
    spec = source.spec
    weights["attn_norm"][::13] *= 20
    weights["mlp_norm"][::13] *= 20
    seen: dict[str, Statistics] = {}
    exact = x.copy()
    LayerForward(spec, 24).run(0, weights, exact, seen.__setitem__)
    grid = Grid(4, False)
    changed = dict(weights)
    blocks = Blocks(LayerForward(spec, 24), 0, weights, x, seen)
    rounded = quantize_awq(spec, changed, seen, blocks, grid, 8)
    ours, plain = x.copy(), x.copy()
    LayerForward(spec, 24).run(0, changed | {key: kept(each, 8) for key, each in rounded.items()}, ours)
    nearest = {key: kept(round_to_nearest(weights[key], grid, 8), 8) for key in rounded}
    LayerForward(spec, 24).run(0, weights | nearest, plain)
    assert np.square(ours - exact).sum() < 0.8 * np.square(plain - exact).sum()


@pytest.mark.parametrize("name", SPECS)
def test_the_blocks_of_a_layer_add_up_to_the_layer(name: str) -> None:
    source, weights, x = layer_of(name)
    forward, after = LayerForward(source.spec, 24), x.copy()
    forward.run(0, weights, after)
    between = x + forward.attention_output(0, weights, x)
    np.testing.assert_allclose(between + forward.mlp_output(weights, between), after, atol=1e-3 * np.abs(after).max())


@pytest.mark.parametrize("channels", list(READERS))
def test_a_block_is_judged_by_what_leaves_it(channels: str) -> None:
    source, weights, x = layer_of("tiny-llama")
    seen: dict[str, Statistics] = {}
    forward, exact, ours = LayerForward(source.spec, 24), x.copy(), x.copy()
    forward.run(0, weights, exact, seen.__setitem__)
    blocks = Blocks(forward, 0, weights, x, seen)
    held = {each: held_at(weights[each], np.ones(1, np.float32), Grid(4, False), 8) for each in READERS[channels]}
    assert blocks.error(channels, weights, {each: weights[each] for each in held}) == 0
    if channels in ("attn", "o"):
        gap = forward.attention_output(0, weights | held, x) - forward.attention_output(0, weights, x)
    else:
        forward.run(0, weights | held, ours)
        gap = ours - exact
    assert blocks.error(channels, weights, held) == pytest.approx(np.square(gap).sum(), rel=0.02)


def test_scales_are_those_with_the_least_error_of_the_block() -> None:
    source, weights, x = layer_of("tiny-qwen3")
    weights["mlp_norm"][::13] *= 5
    seen: dict[str, Statistics] = {}
    forward, grid = LayerForward(source.spec, 24), Grid(4, False)
    forward.run(0, weights, x.copy(), seen.__setitem__)
    blocks, sizes = Blocks(forward, 0, weights, x, seen), seen["mlp"].mean_size
    scales = search_scales(weights, "mlp", sizes, blocks, grid, 8)

    def error(columns: Float32) -> float:
        return blocks.error("mlp", weights, {each: held_at(weights[each], columns, grid, 8) for each in READERS["mlp"]})

    assert error(scales) < 0.9 * error(np.ones_like(sizes))
    assert all(error(scales) <= error(normalized(sizes ** np.float32(ratio))) for ratio in (0.25, 0.5, 0.75))


@pytest.mark.parametrize(("name", "shared"), [("tiny-qwen3", True), ("tiny-llama", False)])
def test_values_that_query_heads_share_keep_their_sizes(name: str, shared: bool) -> None:
    source, weights, x = layer_of(name)
    weights["v"][::5] *= 30
    seen: dict[str, Statistics] = {}
    forward, changed = LayerForward(source.spec, 24), dict(weights)
    forward.run(0, weights, x.copy(), seen.__setitem__)
    quantize_awq(source.spec, changed, seen, Blocks(forward, 0, weights, x, seen), Grid(4, False), 8)
    assert (source.spec.group > 1) is shared
    assert np.array_equal(changed["o"], weights["o"]) is shared


def test_blocks_are_judged_by_some_sequences() -> None:
    x = np.arange(100, dtype=np.float32).reshape(100, 1, 1).repeat(TOKENS // 4, axis=1)
    some = judged_by(x)
    assert some[:, 0, 0].tolist() == [0, 25, 50, 75]
    some += 1
    assert x[0, 0, 0] == 0
    assert judged_by(x[:2]).shape == (2, TOKENS // 4, 1)
    assert judged_by(x.repeat(8, axis=1)).shape == (1, 2 * TOKENS, 1)


def test_clipping_lowers_the_output_error_where_a_weight_stands_out() -> None:
    x = RNG.normal(size=(500, 32)).astype(np.float32)
    weight = RNG.normal(size=(8, 32)).astype(np.float32) * np.float32(0.1)
    x[:, 4] *= 0.01
    weight[:, 4] = 2
    grid = Grid(4, False)
    scale, zero = clipped(weight, x.T @ x, grid, 32)
    found = kept(round_to_nearest(weight, grid, 32, scales=scale, zeros=zero), 32)
    assert output_error(x, weight, found) < 0.7 * output_error(x, weight, kept(round_to_nearest(weight, grid, 32), 32))


def test_int8_moves_large_activations_into_weights() -> None:
    source, weights, x = layer_of("tiny-qwen3")
    spec, grid = source.spec, Grid(8, True, "bf16")
    weights["mlp_norm"][:] = 1
    weights["mlp_norm"][5] = 50
    seen: dict[str, Statistics] = {}
    LayerForward(spec, 24).run(0, weights, x.copy(), seen.__setitem__)
    scales = search_migration(spec, weights, "mlp", seen["mlp"], grid)
    assert scales is not None
    assert scales[5] == scales.max()
    changed = dict(weights)
    rounded = quantize_int8(spec, changed, seen, grid)
    assert abs(changed["mlp_norm"][5]) < 50
    exact, ours = x.copy(), x.copy()
    LayerForward(spec, 24).run(0, weights, exact)
    size = {key: each.levels.shape[1] for key, each in rounded.items()}
    LayerForward(spec, 24).run(0, changed | {key: kept(each, size[key]) for key, each in rounded.items()}, ours)
    assert np.square(ours - exact).sum() < 0.01 * np.square(exact - x).sum()
