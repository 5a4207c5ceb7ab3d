"""Broken GGUF files: whatever is done to one, it opens cleanly or is a CheckpointError, in bounded memory.

A mutation changes bytes, numbers or lengths of the head, or cuts, doubles or moves part of the file. Each is a function
of its number, so that one that fails can be made again: `mutated(image, number)`.
"""

from __future__ import annotations

import json
import random
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvik.checkpoint import DummyCheckpoint, GgufCheckpoint, write_checkpoint
from kvik.checkpoint.dummy import DUMMIES
from kvik.checkpoint.gguf_write import write_gguf
from kvik.checkpoint.hf import HuggingFaceCheckpoint
from kvik.errors import CheckpointError
from kvik.text.described import described_tokenizer

SPEC = replace(DUMMIES["tiny-llama"], vocab_size=96, hidden_size=32, intermediate_size=32, num_layers=1, tied_head=True)
TOKENS = ["<unk>", "<s>", "</s>", "<0x0A>", "▁", *"abcdefghij", "ab", "abc", "▁a"]
PIECES = {
    "added_tokens": [{"id": i, "content": TOKENS[i], "special": True, "normalized": False} for i in range(3)],
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    },
    "pre_tokenizer": None,
    "model": {
        "type": "BPE",
        "byte_fallback": True,
        "unk_token": "<unk>",
        "vocab": {token: i for i, token in enumerate(TOKENS)},
        "merges": [["a", "b"], ["ab", "c"], ["▁", "a"]],
    },
}
BYTES = {
    "added_tokens": [{"id": i, "content": TOKENS[i], "special": True, "normalized": False} for i in range(3)],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    "model": {
        "type": "BPE",
        "vocab": {token: i + 3 for i, token in enumerate(TOKENS[5:])},
        "merges": [["a", "b"], ["ab", "c"]],
    },
}
EXTREMES = (0, 1, 2, 3, 7, 255, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**48, 2**63 - 1, 2**63, 2**64 - 1)
OVERHEAD = 8 << 20
"""Bytes that opening may take beyond the file's: Python's objects for keys and tensors, whose number is limited."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Small models, one of each kind of tokenizer, plain and quantized."""
    made = []
    for name, tokenizer, kind in (("pieces", PIECES, "Q8_0"), ("bytes", BYTES, "Q4_0"), ("plain", BYTES, "F16")):
        directory = tmp_path_factory.mktemp(name)
        write_checkpoint(DummyCheckpoint.from_spec(SPEC), directory)
        (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
        (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
        write_gguf(directory / "model.gguf", HuggingFaceCheckpoint(directory), kind)
        made.append((directory / "model.gguf").read_bytes())
    return made


def head_of(image: bytes) -> int:
    """About where the table ends: what lies behind is numbers that may be anything."""
    return image.index(b"output_norm.weight") + 200


def flip(data: bytearray, rng: random.Random, head: int) -> None:
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(head)
        data[at] ^= 1 << rng.randrange(8)


def number(data: bytearray, rng: random.Random, head: int) -> None:
    form = rng.choice(["<I", "<Q", "<B", "<f"])
    at = rng.randrange(head - 8)
    value: Any = rng.choice(EXTREMES) % (1 << 8 * struct.calcsize(form))
    if form == "<f":
        value = rng.choice([float("nan"), float("inf"), -1.0, 0.0, 1e38])
    struct.pack_into(form, data, at, value)


def cut(data: bytearray, rng: random.Random, head: int) -> None:
    del data[rng.randrange(len(data) if rng.random() < 0.3 else head) :]


def remove(data: bytearray, rng: random.Random, head: int) -> None:
    at = rng.randrange(head)
    del data[at : at + rng.randint(1, 64)]


def double(data: bytearray, rng: random.Random, head: int) -> None:
    at, size = rng.randrange(head), rng.randint(1, 200)
    data[at:at] = data[at : at + size]


def move(data: bytearray, rng: random.Random, head: int) -> None:
    source, target, size = rng.randrange(head), rng.randrange(head), rng.randint(1, 64)
    data[target : target + size] = data[source : source + size]


def anywhere(data: bytearray, rng: random.Random, _: int) -> None:
    flip(data, rng, len(data))


CHANGES: tuple[Callable[[bytearray, random.Random, int], None], ...] = (
    *(flip, flip, number, number, number, cut, remove, double, move, anywhere, anywhere),
)


def mutated(image: bytes, seed: int) -> bytes:
    """The file after one to three changes, a function of the seed."""
    rng, data = random.Random(seed), bytearray(image)
    for _ in range(rng.choice([1, 1, 2, 3])):
        if len(data) > 64:
            rng.choice(CHANGES)(data, rng, max(16, min(head_of(image), len(data) - 16)))
    return bytes(data)


def open_all(path: Path) -> None:
    """Everything that loading a model does, but computing with it."""
    checkpoint = GgufCheckpoint(path)
    shapes = checkpoint.spec.tensor_shapes()
    for name, shape in shapes.items():
        tensor = checkpoint.tensor(name)
        assert tensor.shape == shape
        checkpoint.release(name)
    checkpoint.spec.rope.inv_freq(checkpoint.spec.head_dim)
    files = checkpoint.tokenizer_files()
    if files is not None:
        described_tokenizer(checkpoint.name, files).encode("abc a")


def opens(path: Path, image: bytes, *, watched: bool) -> bool:
    """Whether the image opens; any exception but a CheckpointError, and any waste of memory where that is watched,
    fails the test.
    """
    path.unlink(missing_ok=True)  # quicker than to cut short what was mapped
    path.write_bytes(image)
    message, peak = "", 0
    if watched:
        tracemalloc.start()
    try:
        open_all(path)
    except CheckpointError as error:
        message = str(error)
    finally:
        if watched:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    assert peak < 1.1 * len(image) + OVERHEAD, message
    assert len(message) < 2000
    assert not message or path.name in message, message
    return not message


def run(images: list[bytes], tmp_path: Path, seeds: range) -> int:
    """How many mutations still open. Memory is watched in one of ten, as that takes ten times as long."""
    path, opened = tmp_path / "model.gguf", 0
    for seed in seeds:
        image = images[seed % len(images)]
        try:
            opened += opens(path, mutated(image, seed), watched=seed % 10 == 0)
        except Exception as error:
            raise AssertionError(f"mutation {seed} of image {seed % len(images)}") from error
    return opened


def test_the_files_open_before_anything_is_done_to_them(images: list[bytes], tmp_path: Path) -> None:
    for image in images:
        (tmp_path / "model.gguf").write_bytes(image)
        open_all(tmp_path / "model.gguf")
        assert len(image) < 60_000


def test_two_thousand_mutations_open_or_are_refused(images: list[bytes], tmp_path: Path) -> None:
    opened = run(images, tmp_path, range(2_000))
    assert 20 < opened < 1_600, "mutations should reach what matters, and not break everything"


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_hundred_thousand_mutations_open_or_are_refused(images: list[bytes], tmp_path: Path) -> None:
    assert run(images, tmp_path, range(2_000, 102_000)) > 1_000


def test_a_mutation_is_a_function_of_its_number(images: list[bytes]) -> None:
    assert mutated(images[0], 7) == mutated(images[0], 7) != mutated(images[0], 8)
