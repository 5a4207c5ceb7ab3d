"""The fake model on the shelf: its parameters, its vocabulary, and that there is nothing to load."""

from __future__ import annotations

import pytest

from kvik.checkpoint import FakeCheckpoint, fake, open_checkpoint
from kvik.checkpoint.fake import FakeOptions
from kvik.config import EngineConfig
from kvik.engine.memory import ModelFigures
from kvik.errors import CheckpointError


def test_every_parameter_is_read() -> None:
    text = "step_ms=5, row_us=2.5,token_us=1000000,max_model_len=1048576,length=3-9,text=ascii"
    assert FakeOptions.parse(text) == FakeOptions(5.0, 2.5, 1e6, 1048576, (3, 9), "ascii")
    assert FakeOptions.parse("length=64").length == (64, 64)
    assert FakeOptions.parse("length=0-0").length == (0, 0)
    assert FakeOptions.parse("") == FakeOptions()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "step=5",
            r"has no parameter 'step=5'; expected name=value, names are step_ms, row_us, token_us, max_model_len",
        ),
        ("step_ms", "has no parameter 'step_ms'; expected name=value"),
        ("step_ms=1,", "has no parameter ''"),
        ("step_ms=1,step_ms=1", "has step_ms twice"),
        ("step_ms=-1", "has step_ms='-1'; expected a number of milliseconds from 0 to 60000"),
        ("step_ms=60001", "expected a number of milliseconds"),
        ("step_ms=nan", "expected a number of milliseconds"),
        ("step_ms=1e3", "expected a number of milliseconds"),
        ("row_us=1000001", "has row_us='1000001'; expected a number of microseconds from 0 to 1000000"),
        ("token_us=", "has token_us=''; expected a number of microseconds"),
        ("max_model_len=1", "has max_model_len='1'; expected a whole number from 2 to 1048576"),
        ("max_model_len=1048577", "expected a whole number"),
        ("max_model_len=4k", "expected a whole number"),
        ("length=9-3", "has length='9-3'; expected a number of tokens, or two of them such as 1-200"),
        ("length=-3", "expected a number of tokens"),
        ("length=2147483648", "expected a number of tokens"),
        ("text=utf8", "has text='utf8'; expected ascii or mixed"),
        ("text=\N{SUPERSCRIPT TWO}", "expected ascii or mixed"),
        ("max_model_len=\N{ARABIC-INDIC DIGIT FOUR}", "expected a whole number"),
    ],
)
def test_what_is_wrong_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"fake: .*{message}"):
        open_checkpoint(f"fake:{text}")


def test_a_step_takes_its_own_time_and_that_of_rows_and_tokens() -> None:
    assert FakeOptions().seconds(256, 2048) == 0
    assert FakeOptions.parse("step_ms=5,row_us=20,token_us=3").seconds(10, 100) == pytest.approx(0.0055)


def test_there_is_a_spec_and_nothing_else() -> None:
    checkpoint = open_checkpoint("fake:max_model_len=77")
    assert isinstance(checkpoint, FakeCheckpoint)
    assert (checkpoint.name, checkpoint.directory) == ("fake:max_model_len=77", None)
    assert (checkpoint.spec.max_position, checkpoint.spec.num_parameters()) == (77, 0)
    checkpoint.release("embed")
    with pytest.raises(CheckpointError, match="fake:max_model_len=77 has no weights; 'embed' was asked for"):
        checkpoint.tensor("embed")


def test_the_memory_plan_knows_its_size_before_it_is_loaded() -> None:
    figures = ModelFigures.of_checkpoint(FakeCheckpoint(), EngineConfig(), "fake")
    assert (figures.weights, figures.kv_bytes_per_token) == (0, fake.KV_BYTES_PER_TOKEN)


def test_pieces_are_distinct_and_longer_than_a_byte() -> None:
    assert len(set(fake.PIECES)) == len(fake.PIECES)
    assert min(map(len, fake.PIECES)) > 1
    assert not any(byte in piece for piece in fake.PIECES for byte in b"[]"), "an answer never spells a fault"
    assert all(piece.isascii() and piece.decode().strip() for piece in fake.PIECES[: fake.NUM_ASCII])
    assert all(piece.decode() for piece in fake.PIECES[: fake.NUM_WHOLE])


def test_a_head_and_any_tail_are_one_character() -> None:
    head = fake.PIECES[fake.HEAD_ID - fake.FIRST_PIECE]
    tails = [fake.PIECES[fake.FIRST_TAIL - fake.FIRST_PIECE + i] for i in range(len(fake.TAILS))]
    assert (head, tuple(tails)) == (fake.HEAD, fake.TAILS)
    assert len({(head + tail).decode() for tail in tails}) == len(tails)
    assert fake.FIRST_TAIL + len(tails) == fake.END_OF_TEXT
