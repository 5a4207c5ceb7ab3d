"""GGUF's blocks: unpacked to the last bit as others unpack them, and packed so that they unpack to the same."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kvik.checkpoint.formats.gguf.layouts import BY_NAME, TYPES, BlockType
from kvik.checkpoint.formats.gguf.pack import WRITTEN, pack
from kvik.checkpoint.formats.gguf.unpack import CHUNK, FORMS, unpack
from kvik.errors import CheckpointError

FIXTURES = Path(__file__).parents[4] / "shared" / "data" / "gguf" / "dequant-fixtures"
QUANTIZED = [kind for kind in TYPES.values() if kind.quantized]


def by_name(kind: BlockType) -> str:
    return kind.name


def random_blocks(kind: BlockType, rows: int, per_row: int, seed: int = 0) -> NDArray[Any]:
    """Any bits whatever, but for finite steps."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows, per_row * kind.layout.itemsize), np.uint8).view(kind.layout)
    for field in ("d", "dmin", "m"):
        if field in (kind.layout.names or ()):
            blocks[field] = rng.standard_normal(blocks.shape).astype(np.float16)
    return blocks


@pytest.mark.parametrize("kind", QUANTIZED, ids=by_name)
def test_fixtures_unpack_to_the_last_bit(kind: BlockType) -> None:
    if not FIXTURES.is_dir():
        pytest.skip("../shared/data is not there")
    blocks = np.frombuffer((FIXTURES / f"{kind.name}.bin").read_bytes(), kind.layout).reshape(4, -1)
    expected = np.frombuffer((FIXTURES / f"{kind.name}.ref").read_bytes(), np.float32).reshape(4, -1)
    np.testing.assert_array_equal(unpack("w", kind, blocks, "w").float32().view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("kind", QUANTIZED, ids=by_name)
def test_random_blocks_unpack_as_the_format_library_does(kind: BlockType) -> None:
    library = pytest.importorskip("gguf")
    blocks = random_blocks(kind, 5, 3)
    expected = library.dequantize(blocks.view(np.uint8), library.GGMLQuantizationType(kind.number))
    np.testing.assert_array_equal(unpack("w", kind, blocks, "w").float32(), expected)


@pytest.mark.parametrize("kind", QUANTIZED, ids=by_name)
def test_the_record_says_what_it_holds(kind: BlockType) -> None:
    tensor = unpack("layers.0.q", kind, random_blocks(kind, 4, 2), "w")
    assert (tensor.name, tensor.dtype, tensor.shape) == ("layers.0.q", kind.name, (4, 2 * kind.elements))
    assert tensor.levels.dtype == np.uint8
    assert int(tensor.levels.max()) < 2**tensor.bits
    assert tensor.scales.shape == (4, 2 * kind.elements // tensor.group_size)
    assert tensor.scales.dtype == np.float32
    assert (tensor.zeros is None) != (tensor.mins is None)
    other = tensor.zeros if tensor.zeros is not None else tensor.mins
    assert other is not None
    assert other.shape == tensor.scales.shape


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_the_smaller_form_of_scales_is_kept(name: str) -> None:
    tensor = unpack("w", BY_NAME[name], random_blocks(BY_NAME[name], 3, 2), "w")
    supers = tensor.super_blocks
    assert supers is not None
    per_step = tensor.scales.shape[1] // supers.step.shape[1]
    steps = np.repeat(supers.step, per_step, axis=1).astype(np.float32)
    np.testing.assert_array_equal(steps * supers.factor, tensor.scales)
    assert supers.step.dtype == np.float16
    assert (supers.min_step is None) == (tensor.mins is None)
    if supers.min_step is not None and supers.min_factor is not None and tensor.mins is not None:
        min_steps = np.repeat(supers.min_step, per_step, axis=1).astype(np.float32)
        np.testing.assert_array_equal(min_steps * supers.min_factor, tensor.mins)


def test_a_known_block_of_each_half_and_pair() -> None:
    """Elements 0, 1, .. as the formats spread them, written out by hand."""
    block = np.zeros((1, 1), BY_NAME["Q4_0"].layout)
    block["d"], block["qs"][0, 0] = 1, [0x10 * (15 - i) + i for i in range(16)]
    expected = [*range(16), *range(15, -1, -1)]
    assert unpack("w", BY_NAME["Q4_0"], block, "w").levels[0].tolist() == expected
    block = np.zeros((1, 1), BY_NAME["Q6_K"].layout)
    block["d"], block["scales"] = 1, 1
    block["qs"][0, 0, 1], block["qh"][0, 0, 1] = 0xA5, 0b11100100
    levels = unpack("w", BY_NAME["Q6_K"], block, "w").levels[0]
    assert [int(levels[i]) for i in (1, 33, 65, 97)] == [0x05, 0x10, 0x2A, 0x30]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", QUANTIZED, ids=by_name)
def test_a_step_that_is_no_number_is_refused(kind: BlockType, bad: float) -> None:
    for field in ("d", "dmin", "m"):
        if field in (kind.layout.names or ()):
            blocks = random_blocks(kind, 3, 2)
            blocks[field][1, 1] = bad
            with pytest.raises(CheckpointError, match=rf"^file: tensor t: {field} of row 1, block 1 is -?(nan|inf)"):
                unpack("w", kind, blocks, "file: tensor t")


@pytest.mark.parametrize("name", ["Q4_K", "Q3_K", "Q8_0"])
def test_unpacking_holds_little_beside_the_result(name: str) -> None:
    kind = BY_NAME[name]
    blocks = random_blocks(kind, 8 * CHUNK // 4096, 4096 // kind.elements)
    tracemalloc.start()
    tensor = unpack("w", kind, blocks, "w")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    zeros = 0 if tensor.zeros is None else tensor.zeros.nbytes
    kept = tensor.levels.nbytes + tensor.scales.nbytes + zeros + (tensor.mins.nbytes if tensor.mins is not None else 0)
    assert peak < 1.5 * kept + 8 * CHUNK


@pytest.mark.parametrize("name", WRITTEN)
def test_packing_what_was_unpacked_changes_nothing_that_matters(name: str) -> None:
    """Values on a type's grid come back close to themselves: the layout is the inverse of the reader's."""
    kind = BY_NAME[name]
    values = np.random.default_rng(1).standard_normal((6, 4 * kind.elements)).astype(np.float32)
    once = unpack("w", kind, pack(values, kind, "w"), "w").float32()
    again = unpack("w", kind, pack(once, kind, "w"), "w").float32()
    error = np.sqrt(((values - once) ** 2).mean())
    assert np.sqrt(((once - again) ** 2).mean()) < 0.35 * error


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_plain_types_round_and_refuse(name: str) -> None:
    kind = BY_NAME[name]
    values = np.array([[1, -0.5, 3e-5, 1000.0]], np.float32)
    packed = pack(values, kind, "w")
    assert packed.dtype == kind.layout
    if name != "BF16":
        np.testing.assert_array_equal(packed, values.astype(kind.layout))
    else:
        np.testing.assert_allclose((packed.astype(np.uint32) << 16).view(np.float32), values, rtol=2**-8)
    for bad in (np.nan, np.inf):
        with pytest.raises(CheckpointError, match="weight w holds NaN or infinity"):
            pack(np.array([[bad]], np.float32), kind, "weight w")


def test_what_is_beyond_f16_is_refused_there_alone() -> None:
    values = np.array([[70000.0]], np.float32)
    with pytest.raises(CheckpointError, match="holds 70000; expected at most 65504 to write F16"):
        pack(values, BY_NAME["F16"], "w")
    assert pack(values, BY_NAME["F32"], "w")[0, 0] == 70000


def test_every_quantized_type_has_a_form_with_its_own_geometry() -> None:
    assert set(FORMS) == {kind.name for kind in QUANTIZED}
    assert {name: BY_NAME[name].layout.itemsize for name in ("Q4_0", "Q4_K", "Q6_K", "Q2_K")} == {
        **{"Q4_0": 18, "Q4_K": 144, "Q6_K": 210, "Q2_K": 84}
    }
