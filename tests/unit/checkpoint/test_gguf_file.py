"""The GGUF reader: what it reads equals what was written, and no lie in a head or table survives."""

from __future__ import annotations

import math
import struct
import tracemalloc
from pathlib import Path

import gguf_images as g
import numpy as np
import pytest

from kvik.checkpoint.formats.gguf.file import GgufFile
from kvik.errors import CheckpointError, UnsupportedModelError

F32, F16, Q4_0, Q8_0, BF16 = 0, 1, 2, 8, 30


def small(tmp_path: Path) -> Path:
    """One f32 matrix [2, 3] and a Q8_0 matrix [2, 32]."""
    matrix = np.arange(6, dtype="<f4").tobytes()
    blocks = b"".join(np.float16(i + 1).tobytes() + bytes(range(32)) for i in range(2))
    tensors = [g.tensor("m", [3, 2], F32, 0), g.tensor("q", [32, 2], Q8_0, 32)]
    keys = [g.text("general.architecture") + g.value(g.STRING, "llama")]
    return g.write(tmp_path, g.image(keys, tensors, matrix + bytes(8) + blocks))


def refused(tmp_path: Path, data: bytes) -> str:
    with pytest.raises(CheckpointError) as caught:
        GgufFile(g.write(tmp_path, data))
    assert str(tmp_path) in str(caught.value)
    return str(caught.value)


def test_reads_what_the_format_library_writes(tmp_path: Path) -> None:
    library = pytest.importorskip("gguf")
    writer = library.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_context_length(64)
    writer.add_token_list(["a", "é", ""])
    matrix, half = np.linspace(-9, 9, 12, dtype=np.float32).reshape(3, 4), np.arange(8, dtype=np.float16)
    writer.add_tensor("matrix", matrix)
    writer.add_tensor("half", half)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    file = GgufFile(tmp_path / "model.gguf")
    assert file.metadata["llama.context_length"] == 64
    assert list(file.metadata["tokenizer.ggml.tokens"]) == ["a", "é", ""]
    np.testing.assert_array_equal(file.blocks("matrix"), matrix)
    np.testing.assert_array_equal(file.blocks("half"), half)


def test_every_type_of_value_is_read(tmp_path: Path) -> None:
    numbers = {g.U8: 200, g.I8: -5, g.U16: 60000, g.I16: -7, g.U32: 2**32 - 1, g.I32: -9, g.U64: 2**63, g.I64: -(2**62)}
    values = {**numbers, g.F32: 0.5, g.F64: math.pi, g.BOOL: 1, g.STRING: "ü"}
    keys = [g.text(f"k{kind}") + g.value(kind, content) for kind, content in values.items()]
    keys.append(g.text("list") + g.value(g.ARRAY, (g.I16, [3, -4])))
    keys.append(g.text("flags") + g.value(g.ARRAY, (g.BOOL, [0, 1])))
    keys.append(g.text("words") + g.value(g.ARRAY, (g.STRING, ["a", "b c"])))
    keys.append(g.text("none") + g.value(g.ARRAY, (g.F64, [])))
    metadata = GgufFile(g.write(tmp_path, g.image(keys))).metadata
    assert {int(key[1:]): metadata[key] for key in metadata if key[1:].isdigit()} == values
    assert metadata["k7"] is True
    assert metadata["list"].tolist() == [3, -4]
    assert metadata["flags"].tolist() == [False, True]
    assert list(metadata["words"]) == ["a", "b c"]
    assert len(metadata["none"]) == 0


def test_tensors_are_views_in_row_major_order_and_outlive_the_reader(tmp_path: Path) -> None:
    path = small(tmp_path)
    file = GgufFile(path)
    view, blocks = file.blocks("m"), file.blocks("q")
    file.release("m")
    del file
    assert view.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert blocks.shape == (2, 1)
    assert blocks["d"].tolist() == [[1], [2]]
    assert not view.flags.writeable
    with pytest.raises(CheckpointError, match="no tensor 'x'"):
        GgufFile(path).blocks("x")


def test_version_2_is_read_and_others_are_refused(tmp_path: Path) -> None:
    assert GgufFile(g.write(tmp_path, g.image(version=2) + bytes(8))).entries == {}
    for version in (0, 1, 4):
        assert f"GGUF version {version}; supported: 2 and 3" in refused(tmp_path, g.image(version=version) + bytes(8))
    assert "it is big-endian" in refused(tmp_path, b"GGUF" + struct.pack(">IQQ", 3, 0, 0))
    assert "begins with b'GGML'" in refused(tmp_path, b"GGML" + bytes(40))


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = small(tmp_path).read_bytes()
    for length in range(len(whole)):
        refused(tmp_path, whole[:length])


@pytest.mark.parametrize("count", [3, 2**16 + 1, 2**40, 2**64 - 1])
def test_counts_that_lie_are_refused(tmp_path: Path, count: int) -> None:
    key = g.text("k") + g.value(g.U32, 1)
    refused(tmp_path, g.image([key], counts=(0, count)))
    refused(tmp_path, g.image([key], [g.tensor("t", [8], F32, 0)], bytes(32), counts=(count, 1)))
    for element in (g.U8, g.F64, g.STRING, g.BOOL):
        lying = g.text("k") + g.value(g.ARRAY, (element, [], max(count, 1000)))
        assert "metadata 'k'" in refused(tmp_path, g.image([lying]))


def test_strings_that_lie_are_refused(tmp_path: Path) -> None:
    for length in (2**63, 2**26 + 1, 70000):
        assert "metadata key 0 has" in refused(tmp_path, g.image([g.text("k", length)], counts=(0, 1)))
    long = g.text("k") + struct.pack("<I", g.STRING) + g.text("v", 2**40)
    assert f"metadata 'k' has {2**40} bytes" in refused(tmp_path, g.image([long]))
    inner = g.text("k") + struct.pack("<IIQ", g.ARRAY, g.STRING, 1) + g.text("v", 2**40)
    assert "string 0 of metadata 'k'" in refused(tmp_path, g.image([inner]))
    assert "is no UTF-8" in refused(tmp_path, g.image([g.text("k") + g.value(g.STRING, b"\xff")]))
    lazy = GgufFile(g.write(tmp_path, g.image([g.text("k") + g.value(g.ARRAY, (g.STRING, ["a", b"\xff"]))])))
    with pytest.raises(CheckpointError, match="string 1 of metadata 'k' is no UTF-8"):
        list(lazy.metadata["k"])


def test_values_of_no_type_are_refused(tmp_path: Path) -> None:
    assert "has type 13; expected 0 to 12" in refused(tmp_path, g.image([g.text("k") + struct.pack("<IQ", 13, 0)]))
    nested = g.text("k") + struct.pack("<IIQ", g.ARRAY, g.ARRAY, 0)
    assert "elements of type 9" in refused(tmp_path, g.image([nested]))
    assert "boolean of 2; expected 0 or 1" in refused(tmp_path, g.image([g.text("k") + g.value(g.BOOL, 2)]))
    flags = g.text("k") + g.value(g.ARRAY, (g.BOOL, [1, 7]))
    assert "neither 0 nor 1" in refused(tmp_path, g.image([flags]))


def test_names_that_appear_twice_are_refused(tmp_path: Path) -> None:
    key, row = g.text("k") + g.value(g.U8, 1), g.tensor("t", [8], F32, 0)
    assert "metadata key 'k' appears twice" in refused(tmp_path, g.image([key, key]))
    assert "tensor 't' appears twice" in refused(tmp_path, g.image([], [row, row], bytes(64)))


@pytest.mark.parametrize(
    ("kind", "name"), [(16, "IQ2_XXS"), (26, "I32"), (39, "MXFP4"), (4, "4"), (2**31, "2147483648")]
)
def test_types_that_are_not_done_are_named_with_their_tensor(tmp_path: Path, kind: int, name: str) -> None:
    path = g.write(tmp_path, g.image([], [g.tensor("blk.3.ffn_up.weight", [256, 4], kind, 0)], bytes(4096)))
    with pytest.raises(UnsupportedModelError, match=rf"'blk.3.ffn_up.weight' has type {name}, .* Q4_K"):
        GgufFile(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (g.tensor("t", [8], F32, 64), "ends at byte"),
        (g.tensor("t", [8], F32, 2**64 - 32), "ends at byte"),
        (g.tensor("t", [2**40, 2**40], F32, 0), "expected 1 to"),
        (g.tensor("t", [2**30, 2**10], F32, 0), "ends at byte"),
        (g.tensor("t", [8], F32, 4), "has offset 4; expected a multiple of the alignment, 32"),
        (g.tensor("t", [0, 8], F32, 0), "has shape"),
        (g.tensor("t", [1, 1, 1, 1, 1], F32, 0), "has 5 dimensions; expected at most 4"),
        (g.tensor("t", [33], Q4_0, 0), "expects rows of a multiple of 32"),
        (g.tensor("t" * 200, [8], F32, 0), "has 200 bytes; expected at most 127"),
    ],
)
def test_tensors_that_cannot_be_there_are_refused(tmp_path: Path, row: bytes, message: str) -> None:
    assert message in refused(tmp_path, g.image([], [row], bytes(64)))


def test_tensors_that_overlap_are_refused_and_gaps_are_not(tmp_path: Path) -> None:
    rows = [g.tensor("a", [16], F32, 0), g.tensor("b", [8], F32, 32)]
    assert "tensor 'b' overlaps tensor 'a' by 32 bytes" in refused(tmp_path, g.image([], rows, bytes(96)))
    rows = [g.tensor("a", [8], F32, 64), g.tensor("b", [8], F32, 0)]
    assert list(GgufFile(g.write(tmp_path, g.image([], rows, bytes(96)))).entries) == ["a", "b"]


def test_the_stated_alignment_counts(tmp_path: Path) -> None:
    def stated(kind: int, value: object) -> list[bytes]:
        return [g.text("general.alignment") + g.value(kind, value)]

    row, data = g.tensor("t", [2], F32, 0), np.array([5, 6], "<f4").tobytes()
    file = GgufFile(g.write(tmp_path, g.image(stated(g.U32, 256), [row], data, alignment=256)))
    assert file.blocks("t").tolist() == [5, 6]
    assert file.entries["t"].start % 256 == 0
    for kind, value in ((g.U32, 0), (g.U32, 48), (g.U32, 2**30), (g.F32, 32.0), (g.STRING, "32"), (g.I32, -32)):
        assert "general.alignment" in refused(tmp_path, g.image(stated(kind, value), [row], data))


def test_reading_takes_no_more_memory_than_the_file(tmp_path: Path) -> None:
    keys = [
        g.text("words") + g.value(g.ARRAY, (g.STRING, [""] * 100_000)),
        g.text("numbers") + g.value(g.ARRAY, (g.U8, [0] * 100_000)),
    ]
    path = g.write(tmp_path, g.image(keys, [g.tensor("t", [2**18], F32, 0)], bytes(2**20)))
    tracemalloc.start()
    file = GgufFile(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(file.metadata["words"]) == 100_000
    assert peak < 100_000


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a directory"):
        GgufFile(tmp_path)
    with pytest.raises(CheckpointError, match="no such file"):
        GgufFile(tmp_path / "none.gguf")
    assert "has 0 bytes" in refused(tmp_path, b"")
