"""The safetensors reader: what it reads equals what was written, and no lie in a header survives."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvik.checkpoint.files import MAX_JSON_BYTES
from kvik.checkpoint.formats.safetensors import SafetensorsFile
from kvik.errors import CheckpointError


def image(header: dict[str, Any] | bytes, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: Any, shape: Any, begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    return path


def test_reads_what_the_format_library_writes(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    half, full = np.linspace(-1, 1, 6, dtype=np.float16), np.linspace(-9, 9, 8, dtype=np.float32).reshape(2, 2, 2)
    tensors = {"f16": half, "f32": full, "i64": np.array([5])}
    file = SafetensorsFile(write(tmp_path, library.save(tensors, {"format": "pt"})))
    assert {name: file.entries[name].dtype for name in file.entries} == {"f16": "F16", "f32": "F32", "i64": "I64"}
    np.testing.assert_array_equal(file.array("f16"), half)
    np.testing.assert_array_equal(file.array("f32"), full)


def test_bf16_comes_out_as_bit_patterns(tmp_path: Path) -> None:
    bits = np.array([[0x3F80, 0x4000], [0xBF80, 0x7F80]], np.uint16)
    file = SafetensorsFile(write(tmp_path, image({"w": entry("BF16", [2, 2], 0, 8)}, bits.tobytes())))
    np.testing.assert_array_equal(file.array("w"), bits)


def test_an_array_is_a_view_of_the_file_and_outlives_the_reader(tmp_path: Path) -> None:
    header = json.dumps({"w": entry("F32", [2], 0, 8)}).encode()
    path = write(tmp_path, image(header, np.array([1, 2], np.float32).tobytes()))
    view = SafetensorsFile(path).array("w")
    with path.open("r+b") as file:
        file.seek(8 + len(header))
        file.write(np.float32(7).tobytes())
    assert view.tolist() == [7, 2]
    assert not view.flags.writeable


def test_data_that_is_not_aligned_is_read(tmp_path: Path) -> None:
    for padding in range(4):
        header = json.dumps({"w": entry("F32", [3], 0, 12)}).encode() + b" " * padding
        path = write(tmp_path, image(header, np.array([1, -2, 3], np.float32).tobytes()))
        assert SafetensorsFile(path).array("w").tolist() == [1, -2, 3]


def test_scalars_and_empty_tensors_are_read(tmp_path: Path) -> None:
    header = {"empty": entry("F32", [0, 5], 0, 0), "scalar": entry("F16", [], 0, 2), "last": entry("BF16", [0], 2, 2)}
    file = SafetensorsFile(write(tmp_path, image(header, np.float16(3).tobytes())))
    assert file.array("empty").shape == (0, 5)
    assert file.array("scalar").shape == ()
    assert float(file.array("scalar")) == 3
    assert file.array("last").dtype == np.uint16
    file.release("empty")


def test_a_file_without_tensors_is_valid(tmp_path: Path) -> None:
    assert SafetensorsFile(write(tmp_path, image({"__metadata__": {"format": "pt"}}))).entries == {}


def test_a_file_that_may_only_be_read_is_enough(tmp_path: Path) -> None:
    path = write(tmp_path, image({"w": entry("F32", [1], 0, 4)}, np.float32(5).tobytes()))
    path.chmod(0o444)
    assert SafetensorsFile(path).array("w").tolist() == [5]


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs /proc of Linux")
def test_release_gives_pages_back_and_they_can_be_read_again(tmp_path: Path) -> None:
    size = 32 << 20
    header = {"a": entry("F32", [size // 8], 0, size // 2), "b": entry("F32", [size // 8], size // 2, size)}
    file = SafetensorsFile(write(tmp_path, image(header, b"\0\0\x80\x3f" * (size // 4))))
    total = sum(float(file.array(name).sum()) for name in "ab")
    resident = _file_pages()
    file.release("a")
    assert resident - _file_pages() > size // 2 - (1 << 20)
    assert sum(float(file.array(name).sum()) for name in "ab") == total == size // 4


def _file_pages() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile"))


GOOD = entry("F32", [2], 0, 8)
LIES: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "has 0 bytes"),
    "seven bytes": (b"\0" * 7, "has 7 bytes"),
    "header of no bytes": (b"\0" * 8, "not valid JSON"),
    "header longer than the file": ((100).to_bytes(8, "little") + b"{}", "the file ends after 10 bytes"),
    "header beyond the limit": ((MAX_JSON_BYTES + 1).to_bytes(8, "little") + b"{}", "expected at most"),
    "header of 2**64 - 1 bytes": (b"\xff" * 8, "expected at most"),
    "header is no JSON": (image(b"{]"), "not valid JSON"),
    "header is no UTF-8": (image(b'{"\xff": 1}'), "not valid JSON"),
    "header is a list": (image(b"[]"), "expected an object"),
    "header nests 100,000 deep": (image(b"[" * 100_000), "not valid JSON"),
    "duplicate tensor": (image(b'{"w": 1, "w": 2}'), "key 'w' appears twice"),
    "duplicate key in an entry": (image(b'{"w": {"dtype": "F32", "dtype": "F16"}}'), "key 'dtype' appears twice"),
    "entry is a number": (image({"w": 3}), "'w' is 3"),
    "dtype missing": (image({"w": {"shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8), "has dtype None"),
    "dtype unknown": (image({"w": entry("F31", [2], 0, 8)}, b"\0" * 8), "has dtype 'F31'"),
    "dtype is a list": (image({"w": entry(["F32"], [2], 0, 8)}, b"\0" * 8), "has dtype"),
    "shape missing": (image({"w": {"dtype": "F32", "data_offsets": [0, 8]}}, b"\0" * 8), "has shape None"),
    "shape negative": (image({"w": entry("F32", [-2], 0, 8)}, b"\0" * 8), r"has shape \[-2\]"),
    "two negatives": (image({"w": entry("F32", [-1, -2], 0, 8)}, b"\0" * 8), "has shape"),
    "shape of floats": (image({"w": entry("F32", [2.0], 0, 8)}, b"\0" * 8), "has shape"),
    "shape of booleans": (image({"w": entry("F32", [True, 2], 0, 8)}, b"\0" * 8), "has shape"),
    "shape of 33 dimensions": (image({"w": entry("F32", [1] * 32 + [2], 0, 8)}, b"\0" * 8), "up to 32"),
    "shape of 100 digits": (image(b'{"w": {"shape": [' + b"9" * 100 + b"]}}"), "a number of 100 digits"),
    "shape too large": (image({"w": entry("F32", [2**40, 2**40], 0, 8)}, b"\0" * 8), "spans 8 bytes"),
    "shape too small": (image({"w": entry("F32", [1], 0, 8)}, b"\0" * 8), "takes 4"),
    "half a byte": (image({"w": entry("F4", [3], 0, 1)}, b"\0"), "takes 2"),
    "one offset": (image({"w": {**GOOD, "data_offsets": [0]}}, b"\0" * 8), "has data_offsets"),
    "offsets reversed": (image({"w": entry("F32", [2], 8, 0)}, b"\0" * 8), "begin <= end"),
    "offset negative": (image({"w": entry("F32", [2], -8, 0)}, b"\0" * 8), "has data_offsets"),
    "span behind the end": (image({"w": GOOD}, b"\0" * 7), "the file ends"),
    "span at 2**63": (image({"w": entry("F32", [2], 2**63, 2**63 + 8)}, b"\0" * 8), "the file ends"),
    "overlap": (image({"w": GOOD, "v": entry("F32", [2], 4, 12)}, b"\0" * 12), "'v' overlaps tensor 'w' by 4 bytes"),
    "same span twice": (image({"w": GOOD, "v": GOOD}, b"\0" * 8), "overlaps"),
    "gap": (image({"w": GOOD, "v": entry("F32", [1], 12, 16)}, b"\0" * 16), "begins 4 bytes after the end"),
    "gap at the beginning": (image({"w": entry("F32", [1], 4, 8)}, b"\0" * 8), "begins 4 bytes after the end"),
    "bytes behind the last tensor": (image({"w": GOOD}, b"\0" * 9), "1 bytes after the end of tensor 'w'"),
    "data and no tensor": (image({}, b"\0"), "1 bytes after the end of the header"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_file_is_refused_and_named(lie: str, tmp_path: Path) -> None:
    data, message = LIES[lie]
    path = write(tmp_path, data)
    with pytest.raises(CheckpointError, match=message) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_types_that_cannot_be_computed_with_are_refused_when_asked_for(tmp_path: Path) -> None:
    file = SafetensorsFile(write(tmp_path, image({"w": entry("I64", [1], 0, 8)}, b"\0" * 8)))
    with pytest.raises(CheckpointError, match=r"'w' has dtype I64; expected one of BF16, F16, F32"):
        file.array("w")
    with pytest.raises(CheckpointError, match="no tensor 'x'"):
        file.array("x")


def test_what_is_no_file_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="is a directory; expected a file"):
        SafetensorsFile(tmp_path)
    with pytest.raises(CheckpointError, match="no such file"):
        SafetensorsFile(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not a regular file"):
        SafetensorsFile(tmp_path / "pipe")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path, image({}))
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
        SafetensorsFile(path)
