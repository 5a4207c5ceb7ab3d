"""Tokenizers for the tests of this room: real ones from ../shared/data where present, tiny ones built here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer

from kvik.text.tokenizer import Tokenizer

DATA = Path("../shared/data")


@pytest.fixture(scope="session")
def qwen3_directory() -> Path:
    path = DATA / "tokenizers" / "qwen3"
    if not path.is_dir():
        pytest.skip(f"{path} is not here")
    return path


@pytest.fixture(scope="session")
def qwen3(qwen3_directory: Path) -> Tokenizer:
    return Tokenizer.from_directory(qwen3_directory)


@pytest.fixture(params=["stories260K", "babyllama-tok361"])
def llama(request: pytest.FixtureRequest) -> tuple[Tokenizer, dict[str, Any]]:
    path = DATA / "models" / request.param
    if not path.is_dir():
        pytest.skip(f"{path} is not here")
    return Tokenizer.from_directory(path / "hf"), json.loads((path / "golden.json").read_text())


def byte_level_raw(specials: list[AddedToken]) -> RawTokenizer:
    """Every byte a token, no merges, and some added tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = RawTokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_tokens(specials)
    return raw


@pytest.fixture
def make_byte_level() -> Callable[[list[AddedToken]], RawTokenizer]:
    return byte_level_raw


@pytest.fixture
def write_tokenizer(tmp_path: Path) -> Callable[..., Path]:
    """Write a directory with a tiny tokenizer and the side files given by name (dot left out)."""

    def write(raw: RawTokenizer | None = None, **files: Any) -> Path:
        specials = [AddedToken(text, special=True, normalized=False) for text in ("<s>", "</s>", "<|end|>")]
        (raw or byte_level_raw(specials)).save(str(tmp_path / "tokenizer.json"))
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return tmp_path

    return write


@pytest.fixture
def normalizing_raw() -> RawTokenizer:
    """Special tokens that are matched after normalization, which lowercases."""
    raw = byte_level_raw([AddedToken("<s>", special=True, normalized=True)])
    raw.normalizer = normalizers.Lowercase()
    return raw
