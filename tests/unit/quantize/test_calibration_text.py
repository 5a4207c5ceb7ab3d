"""The calibration text that ships: of the training side, not too long, and read with its marks."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvik.bench.tasks import read_items
from kvik.checkpoint import box_directory
from kvik.errors import ConfigError
from kvik.quantize.calibration import SHIPPED, encode_calibration, read_calibration
from kvik.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_directory(box_directory())


def test_the_text_that_ships_is_small_and_holds_no_held_out_question() -> None:
    text = read_calibration(None)
    assert 100_000 < len(text.encode()) <= 200_000
    assert SHIPPED.stat().st_size == len(text.encode())
    questions = [item.messages[-1]["content"] for item in read_items()]
    assert not [question for question in questions if f"<|im_start|>user\n{question}<|im_end|>" in text]


def test_marks_in_a_calibration_text_are_special_tokens(tokenizer: Tokenizer) -> None:
    text = "<|im_start|>user\nHello<|im_end|>\n"
    ids = encode_calibration(tokenizer, text, shipped=False)
    assert ids == tokenizer.encode_chat([{"role": "user", "content": "Hello"}], add_generation_prompt=False)
    assert ids != tokenizer.encode(text, add_special_tokens=False)
    assert len(set(ids) & tokenizer.special_ids) == 2


def test_marks_of_the_text_that_ships_vanish_for_a_model_with_others() -> None:
    stories = Path("../shared/data/models/babyllama-tok361/hf")
    if not stories.is_dir():
        pytest.skip(f"{stories} is not here")
    tokenizer = Tokenizer.from_directory(stories)
    text = "<|im_start|>user\nHello<|im_end|>\n"
    plain = tokenizer.encode("user\nHello\n", add_special_tokens=False)
    assert encode_calibration(tokenizer, text, shipped=True) == plain
    assert encode_calibration(tokenizer, text, shipped=False) == tokenizer.encode(text, add_special_tokens=False)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"calib .*none.txt cannot be read: No such file"):
        read_calibration(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(ConfigError, match="is not UTF-8 text: byte 3"):
        read_calibration(tmp_path / "latin.txt")
