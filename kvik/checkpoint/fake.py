"""The fake model on the shelf, `fake:` with parameters: no weights, a small vocabulary, a pace that is set.

    fake:                                   answers of 1 to 200 tokens as fast as it can
    fake:step_ms=5,token_us=20,length=64    every step takes 5 ms and 20 us a token; answers of 64 tokens

Its vocabulary is 256 bytes, which text is encoded to, then pieces of one or more characters, which answers are made of
and no text is encoded to, then special tokens. What it answers is written in `kvik/runners/fake/`; this file knows
nothing of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

from kvik.checkpoint.checkpoint import Tensor
from kvik.checkpoint.files import shown
from kvik.checkpoint.spec import DecoderSpec, RopeSpec
from kvik.errors import CheckpointError

PREFIX = "fake:"
MAX_MODEL_LEN = 2**20
MAX_LENGTH = 2**31 - 1

_SYLLABLES = [consonant + vowel for consonant in "bdfghklmnprstvwz" for vowel in "aeiou"]
_ENDS = ["na,", "to,", "li.", "su.", "ra!\n"]
_WIDE = ["né", " où", " Öl", "ß", "日本", "語", " да", "שלום", "e\u0301", "👩\u200d🚀", " →", "€"]
ASCII_PIECES = tuple(text.encode() for text in [*_SYLLABLES, *(f" {each}" for each in _SYLLABLES), *_ENDS])
WIDE_PIECES = tuple(text.encode() for text in _WIDE)
"""Characters of several bytes, combined ones and right-to-left ones among them."""
HEAD = b"\xf0\x9f"
"""The first half of an emoji; one of the tails follows."""
TAILS = tuple(bytes([0x98, last]) for last in range(0x80, 0x90))
PIECES: tuple[bytes, ...] = (*ASCII_PIECES, *WIDE_PIECES, HEAD, *TAILS)

FIRST_PIECE = 256
NUM_ASCII = len(ASCII_PIECES)
NUM_WHOLE = NUM_ASCII + len(WIDE_PIECES)
"""Pieces that are whole characters; they come first."""
HEAD_ID = FIRST_PIECE + NUM_WHOLE
FIRST_TAIL = HEAD_ID + 1
END_OF_TEXT, IM_START, IM_END = range(FIRST_PIECE + len(PIECES), FIRST_PIECE + len(PIECES) + 3)
VOCAB_SIZE = IM_END + 1
KV_BYTES_PER_TOKEN = 24


@dataclass(frozen=True)
class FakeOptions:
    """The parameters of a fake model, by the names they have after `fake:`."""

    step_ms: float = 0.0
    """Milliseconds that a step takes at least."""
    row_us: float = 0.0
    """Microseconds more for every row of the step."""
    token_us: float = 0.0
    """Microseconds more for every token that the step computes."""
    max_model_len: int = 4096
    length: tuple[int, int] = (1, 200)
    """Fewest and most tokens of an answer before the one that ends it; written A-B, or N for N-N."""
    text: str = "mixed"
    """ascii, or mixed: now and then characters of several bytes, some of them cut in two."""

    @classmethod
    def parse(cls, text: str) -> FakeOptions:
        """From `name=value,name=value`. Raises CheckpointError naming the parameter, its value, what was expected."""
        given: dict[str, Any] = {}
        for part in text.split(",") if text else []:
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if name not in _READERS or not equals:
                known = ", ".join(field.name for field in fields(cls))
                raise CheckpointError(f"fake: has no parameter {shown(part)}; expected name=value, names are {known}")
            if name in given:
                raise CheckpointError(f"fake: has {name} twice; expected it once")
            given[name] = _READERS[name](name, value)
        return cls(**given)

    def seconds(self, rows: int, tokens: int) -> float:
        """How long a step with so many rows and tokens takes at least."""
        return (self.step_ms * 1e3 + self.row_us * rows + self.token_us * tokens) * 1e-6


def _refuse(name: str, value: str, expected: str) -> CheckpointError:
    return CheckpointError(f"fake: has {name}={shown(value)}; expected {expected}")


def _read_time(name: str, value: str) -> float:
    limit = 60_000 if name == "step_ms" else 1_000_000
    unit = "milliseconds" if name == "step_ms" else "microseconds"
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value) is None or float(value) > limit:
        raise _refuse(name, value, f"a number of {unit} from 0 to {limit}")
    return float(value)


def _read_max_model_len(name: str, value: str) -> int:
    if re.fullmatch(r"[0-9]{1,9}", value) is None or not 2 <= int(value) <= MAX_MODEL_LEN:
        raise _refuse(name, value, f"a whole number from 2 to {MAX_MODEL_LEN}")
    return int(value)


def _read_length(name: str, value: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", value)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if not low <= high <= MAX_LENGTH:
        raise _refuse(name, value, "a number of tokens, or two of them such as 1-200, the smaller one first")
    return low, high


def _read_text(name: str, value: str) -> str:
    if value not in ("ascii", "mixed"):
        raise _refuse(name, value, "ascii or mixed")
    return value


_READERS = {
    "step_ms": _read_time,
    "row_us": _read_time,
    "token_us": _read_time,
    "max_model_len": _read_max_model_len,
    "length": _read_length,
    "text": _read_text,
}


def fake_spec(max_model_len: int) -> DecoderSpec:
    """A decoder without weights: its matrices have a side of 0. One layer with a head of 3 values, whose float32 key
    and value are the 24 bytes that a token takes in the cache.
    """
    return DecoderSpec(
        family="fake",
        vocab_size=VOCAB_SIZE,
        hidden_size=0,
        intermediate_size=0,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=KV_BYTES_PER_TOKEN // 8,
        rms_norm_eps=1e-6,
        rope=RopeSpec(),
        max_position=max_model_len,
        dtype="f32",
        tied_head=True,
        eos_ids=(IM_END, END_OF_TEXT),
    )


class FakeCheckpoint:
    """A fake model. Satisfies the `Checkpoint` protocol; there is no weight to read."""

    def __init__(self, model: str = PREFIX) -> None:
        """`model` is `fake:` and parameters. Raises CheckpointError for one that is unknown or has a bad value."""
        self._name = model
        self.options = FakeOptions.parse(model.removeprefix(PREFIX))
        self._spec = fake_spec(self.options.max_model_len)

    @property
    def name(self) -> str:
        """As it was given, parameters included."""
        return self._name

    @property
    def spec(self) -> DecoderSpec:
        """A decoder without weights."""
        return self._spec

    @property
    def directory(self) -> None:
        """None: the tokenizer is made in memory."""
        return

    def tensor(self, name: str) -> Tensor:
        """Raises CheckpointError."""
        raise CheckpointError(f"{self._name} has no weights; {shown(name)} was asked for")

    def release(self, name: str) -> None:
        """Nothing to give back."""
