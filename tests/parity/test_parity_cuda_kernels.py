"""Every Triton kernel against its twin in plain torch: on a GPU if there is one, else in Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cuda_bench import DEVICE, DTYPES, ON_GPU, TOLERANCE, assert_close, random, step_of

torch = pytest.importorskip("torch")

from kvik.runners.cuda import plain  # noqa: E402
from kvik.runners.cuda.batch import batch_of  # noqa: E402
from kvik.runners.cuda.cache import FORMS, KVCache  # noqa: E402
from kvik.runners.cuda.heads import Heads, Rotary  # noqa: E402
from kvik.runners.cuda.kernels import launch, pointwise, rope  # noqa: E402
from kvik.runners.cuda.kernels.attention import TileShape, attend_tiles  # noqa: E402

BLOCK = 32
MIXED = [(40, 41), (0, 9), (99, 100), (60, 69), (0, 1)]
"""Decodes, a whole prompt, a later chunk of one, and a prompt of one token."""
INTERPRETED_NAN = pytest.mark.filterwarnings("ignore::RuntimeWarning")
WRITTEN_ON_GPU = ["bf16", "fp8"] if ON_GPU else []
"""The interpreter rounds to fp8 wrongly where the next number has another exponent."""
HEADS = {"g1-d16": Heads(2, 2, 16), "g2-d64": Heads(4, 2, 64), "g3-d8": Heads(3, 1, 8), "g8-d80": Heads(8, 1, 80)}


def filled_cache(heads: Heads, num_blocks: int, form: str) -> KVCache:
    """A cache in which every slot holds something."""
    cache = KVCache(1, num_blocks, BLOCK, heads, form=form, device=DEVICE)
    layer, slots = cache.layer(0), torch.arange(num_blocks * BLOCK, device=DEVICE)
    for seed, (data, scales) in enumerate(((layer.keys, layer.key_scales), (layer.values, layer.value_scales))):
        plain.store(data, scales, slots, random((len(slots), heads.kv, heads.dim), seed=seed))
    return cache


def form_of(dtype: torch.dtype) -> str:
    return next(form for form, held in FORMS.items() if held == dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [8, 33, 1024])
def test_add_rms_norm(dtype: torch.dtype, width: int) -> None:
    x, residual, weight = random((5, width), dtype, 1), random((5, width), dtype, 2), random((width,), dtype, 3)
    for other in (residual, None):
        ours, theirs = (f(x, other, weight, 1e-6) for f in (pointwise.add_rms_norm, plain.add_rms_norm))
        assert torch.equal(ours[1], theirs[1])
        assert_close(ours[0], theirs[0], TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [8, 1500])
def test_silu_mul(dtype: torch.dtype, width: int) -> None:
    gate_up = random((3, 2 * width), dtype, scale=4)
    assert_close(pointwise.silu_mul(gate_up), plain.silu_mul(gate_up), TOLERANCE[dtype])


def test_kernels_take_no_tokens_at_all() -> None:
    empty, weight = random((0, 16)), random((8,))
    assert pointwise.silu_mul(empty).shape == (0, 8)
    assert pointwise.add_rms_norm(random((0, 8)), None, weight, 1e-6)[0].shape == (0, 8)


@pytest.mark.parametrize("norms", [True, False], ids=["norms", "plain"])
@pytest.mark.parametrize("form", ["f32", "int8", *WRITTEN_ON_GPU])
@pytest.mark.parametrize("heads", [HEADS["g2-d64"], HEADS["g3-d8"]], ids=["g2-d64", "g3-d8"])
def test_rope_and_store(heads: Heads, form: str, norms: bool) -> None:
    plan, num_blocks = step_of([(3, 5), (40, 41)], BLOCK)
    angle = random((64, heads.dim // 2), seed=7)
    weights = [random((heads.dim,), seed=seed) if norms else None for seed in (8, 9)]
    rotary = Rotary(heads, *weights, 1e-6, angle.cos(), angle.sin())
    qkv = random((plan.num_tokens, heads.projected), seed=10)
    batch = batch_of(plan, BLOCK, 4, DEVICE)
    batch.slots[1] = -1
    results = []
    for module in (rope, plain):
        layer = KVCache(1, num_blocks, BLOCK, heads, form=form, device=DEVICE).layer(0)
        results.append((module.rope_and_store(qkv, rotary, batch, layer), layer))
    (ours, our_layer), (theirs, their_layer) = results
    assert_close(ours, theirs, TOLERANCE[torch.float32])
    assert our_layer.keys.float().abs().sum(dim=(1, 3)).count_nonzero() == 2, "of three tokens one is padding"
    # A level may fall to the other side where the two round a key's last bit differently.
    bound = {"int8": 1 / 127, "fp8": 1 / 8, "bf16": 1e-2, "f32": 1e-5}[form]
    assert_close(our_layer.keys, their_layer.keys, bound)
    assert_close(our_layer.values, their_layer.values, bound)
    assert_close(our_layer.key_scales.sum(), their_layer.key_scales.sum(), 1e-5)


@INTERPRETED_NAN
def test_int8_levels_are_those_of_the_definition() -> None:
    """Values go into the cache unrotated, so their levels can be compared to the last one."""
    from kvik.runners.reference.quantized import quantize_int8

    heads = Heads(2, 2, 16)
    plan, num_blocks = step_of([(0, 8)], BLOCK)
    angle = random((32, 8))
    qkv = random((8, heads.projected), seed=3, scale=30)
    qkv[4, -16:] = 0
    qkv[5, -1] = float("nan")
    qkv[6, -2] = float("inf")
    layer = KVCache(1, num_blocks, BLOCK, heads, form="int8", device=DEVICE).layer(0)
    rope.rope_and_store(
        qkv, Rotary(heads, None, None, 1e-6, angle.cos(), angle.sin()), batch_of(plan, BLOCK, 4, DEVICE), layer
    )
    levels, scales = quantize_int8(qkv[:, -32:].cpu().numpy().reshape(8, 2, 16))
    block = int(plan.block_tables[0, 0])
    sound = np.isfinite(scales[..., 0])
    kept = layer.values[block].cpu().numpy().transpose(1, 0, 2)[:8]
    assert (kept[sound] == levels[sound]).all()
    assert np.array_equal(layer.value_scales[block].cpu().numpy().T[:8], scales[..., 0], equal_nan=True)


@pytest.mark.parametrize(("heads", "window"), [("g1-d16", 0), ("g2-d64", 33), ("g3-d8", 7), ("g8-d80", 0)])
def test_attention_of_a_mixed_step(heads: str, window: int) -> None:
    check_attention(HEADS[heads], window, torch.float32, "f32", launch.AdaptiveShapes(processors=4, several_rows=32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["same", "int8", "fp8"])
def test_attention_over_every_form_of_cache(dtype: torch.dtype, form: str) -> None:
    held = form_of(dtype) if form == "same" else form
    check_attention(HEADS["g2-d64"], 0, dtype, held, launch.AdaptiveShapes(processors=4, several_rows=32))


@pytest.mark.parametrize("shapes", [launch.FixedShapes(parts=3), launch.AdaptiveShapes(24)], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("window", [0, 70])
def test_attention_in_parts(shapes: launch.Shapes, window: int) -> None:
    check_attention(HEADS["g3-d8"], window, torch.float32, "f32", shapes, [(200, 201), (130, 133), (0, 1)])


def check_attention(
    heads: Heads,
    window: int,
    dtype: torch.dtype,
    form: str,
    shapes: launch.Shapes,
    spans: list[tuple[int, int]] = MIXED,
) -> None:
    plan, num_blocks = step_of(spans, BLOCK)
    layer = filled_cache(heads, num_blocks, form).layer(0)
    queries = random((plan.num_tokens, heads.query * heads.dim), dtype, 5)
    size = max(1, shapes.several_rows // (1 << (heads.group - 1).bit_length()))
    batch = batch_of(plan, BLOCK, size, DEVICE)
    ours = launch.attend(shapes, queries, layer, heads, batch, window)
    assert_close(ours, plain.attend(queries, layer, heads, batch, window), TOLERANCE[dtype])


@pytest.mark.parametrize("parts", [1, 4])
def test_tiles_without_tokens_read_and_write_nothing(parts: int) -> None:
    heads = HEADS["g2-d64"]
    plan, num_blocks = step_of([(40, 41), (50, 51)], BLOCK)
    layer = filled_cache(heads, num_blocks, "f32").layer(0)
    batch = batch_of(plan, BLOCK, 1, DEVICE)
    queries = random((2, heads.query * heads.dim))
    out = torch.full_like(queries, 123.0)
    tiles = replace(batch.single, counts=torch.tensor([1, 0], dtype=torch.int32, device=DEVICE))
    attend_tiles(queries, layer, heads, batch, tiles, 0, TileShape(16, 64, parts, 4), out)
    assert (out[1] == 123.0).all()
    assert_close(out[:1], plain.attend(queries, layer, heads, batch, 0)[:1], 2e-5)


@INTERPRETED_NAN
@pytest.mark.parametrize("parts", [1, 4])
def test_a_key_that_is_no_number_shows_in_its_row_alone(parts: int) -> None:
    heads = HEADS["g2-d64"]
    plan, num_blocks = step_of([(90, 91), (50, 51)], BLOCK)
    layer = filled_cache(heads, num_blocks, "f32").layer(0)
    layer.keys[plan.block_tables[0, 1], :, 3] = float("nan")
    batch = batch_of(plan, BLOCK, 1, DEVICE)
    queries = random((2, heads.query * heads.dim))
    out = torch.zeros_like(queries)
    attend_tiles(queries, layer, heads, batch, batch.single, 0, TileShape(16, 64, parts, 4), out)
    assert out[0].isnan().all()
    assert out[1].isfinite().all()
