"""The paged KV cache: where positions lie, what copies carry, what bf16 keeps."""

from __future__ import annotations

import numpy as np
import pytest

from kvik.runners.reference.kv_cache import KVCache
from kvik.runners.reference.quantized import int8_values, round_to_bf16
from kvik.step import Float32, as_int32


def cache(form: str = "f32") -> KVCache:
    return KVCache(num_layers=2, num_blocks=5, block_size=4, num_kv_heads=3, head_dim=2, form=form)


def random(tokens: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).standard_normal((tokens, 3, 2), np.float32)


def test_positions_lie_where_the_block_table_says() -> None:
    assert cache().slots(as_int32([3, 0, -1]), 6).tolist() == [12, 13, 14, 15, 0, 1]


def test_what_is_written_is_read_back_in_its_layer_only() -> None:
    kv, slots = cache(), cache().slots(as_int32([4, 1]), 7)
    kv.write(1, slots[2:], random(5), random(5, seed=1))
    keys, values = kv.read(1, slots)
    assert (keys[2:] == random(5)).all()
    assert (values[2:] == random(5, seed=1)).all()
    assert not keys[:2].any()
    assert not kv.read(0, slots)[0].any()


def test_copies_take_whole_blocks_of_every_layer() -> None:
    kv = cache()
    for layer in range(2):
        kv.write(layer, kv.slots(as_int32([2]), 4), random(4, seed=layer), random(4, seed=layer + 5))
    kv.copy_blocks(as_int32([[2, 0], [2, 4]]))
    for layer in range(2):
        for block in (0, 2, 4):
            keys, values = kv.read(layer, kv.slots(as_int32([block]), 4))
            assert (keys == random(4, seed=layer)).all()
            assert (values == random(4, seed=layer + 5)).all()
        assert not kv.read(layer, kv.slots(as_int32([1]), 4))[0].any()


def test_no_copies_change_nothing() -> None:
    kv = cache()
    kv.copy_blocks(np.zeros((0, 2), np.int32))
    assert not kv.read(0, kv.slots(as_int32([0]), 4))[0].any()


def test_bf16_keeps_eight_bits_to_nearest_even() -> None:
    assert round_to_bf16(np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8], np.float32)).tolist() == [1.0, 1.0, 1 + 2**-6]
    kv, slots = cache("bf16"), cache().slots(as_int32([0]), 4)
    kv.write(0, slots, random(4), random(4, seed=1))
    keys, values = kv.read(0, slots)
    assert (keys == round_to_bf16(random(4))).all()
    assert (values == round_to_bf16(random(4, seed=1))).all()
    assert not (keys == random(4)).all()


def test_int8_has_a_scale_of_its_own_for_each_token_and_head() -> None:
    kv, slots = cache("int8"), cache().slots(as_int32([0]), 4)
    keys = random(4) * np.float32(10.0) ** np.arange(12, dtype=np.float32).reshape(4, 3, 1)
    kv.write(0, slots, keys, random(4, seed=1))
    got, values = kv.read(0, slots)
    assert (got == int8_values(keys)).all()
    assert (values == int8_values(random(4, seed=1))).all()
    assert 0 < (np.abs(got - keys) / np.abs(keys).max(axis=-1, keepdims=True)).max() <= 0.5001 / 127


def test_size_is_keys_and_values_of_all_layers() -> None:
    assert cache().nbytes == 2 * 2 * 5 * 4 * 3 * 2 * 4


@pytest.mark.parametrize("block", [-1, 5])
def test_a_block_outside_the_cache_is_refused(block: int) -> None:
    with pytest.raises(ValueError, match=f"block table names block {block}; expected 0 to 4"):
        cache().slots(as_int32([0, block]), 5)
    with pytest.raises(ValueError, match=f"copy names block {block}; expected 0 to 4"):
        cache().copy_blocks(as_int32([[0, block]]))


def test_a_table_too_short_for_its_row_is_refused() -> None:
    with pytest.raises(ValueError, match="a row of 9 tokens has 2 blocks of 4"):
        cache().slots(as_int32([0, 1]), 9)
