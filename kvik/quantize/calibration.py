"""Calibration text: which text, and how it becomes sequences of tokens of one length.

Special tokens that are spelled in a calibration text are special tokens, since a model should be calibrated on what it
will be asked, chat marks included. A text that comes with Kvik serves where none is named: conversations from the
training side of the model in the box, with marks that vanish for models that have others. This file knows nothing of
layers or methods.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from kvik.errors import ConfigError
from kvik.step import Int32, as_int32
from kvik.text.tokenizer import Tokenizer

SHIPPED = Path(__file__).parents[1] / "box" / "calibration.txt"
"""Written by tools/box/calibration.py."""
FEWEST = 4
"""Sequences without which there is nothing to calibrate on."""
_MARKS = re.compile(r"<\|im_start\|>|<\|im_end\|>|<\|endoftext\|>")


def read_calibration(path: Path | None) -> str:
    """The text of a file, UTF-8, or the one that comes with Kvik. Raises ConfigError."""
    chosen = path or SHIPPED
    try:
        return chosen.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"calib {chosen} is not UTF-8 text: byte {error.start} is {error.reason}") from error
    except OSError as error:
        raise ConfigError(f"calib {chosen} cannot be read: {error.strerror}") from error


def encode_calibration(tokenizer: Tokenizer, text: str, *, shipped: bool) -> list[int]:
    """Token ids of a text, without what the tokenizer puts before every text. Marks in the text that comes with Kvik
    that this tokenizer does not know are left out.
    """
    special = {tokenizer.token_text(token_id): token_id for token_id in tokenizer.special_ids}
    if shipped:
        text = _MARKS.sub(lambda mark: mark[0] if mark[0] in special else "", text)
    if not special:
        return tokenizer.encode(text, add_special_tokens=False)
    spelled = re.compile("(" + "|".join(map(re.escape, sorted(special, key=len, reverse=True))) + ")")
    ids: list[int] = []
    for piece in spelled.split(text):
        ids += [special[piece]] if piece in special else tokenizer.encode(piece, add_special_tokens=False)
    return ids


def cut_sequences(ids: list[int], head: list[int], count: int, length: int, seed: int) -> Int32:
    """At most `count` sequences [n, length] that do not overlap, each beginning with `head`; of a longer text, some
    that the seed picks. Raises ConfigError if the text is too short.
    """
    size = length - len(head)
    present = len(ids) // size if size > 0 else 0
    if present < FEWEST:
        raise ConfigError(
            f"the calibration text has {len(ids)} tokens; expected at least {FEWEST * max(size, 1)}, "
            f"{FEWEST} sequences of {length}"
        )
    picked = np.arange(present)
    if present > count:
        picked = np.sort(np.random.default_rng(seed).choice(present, count, replace=False))
    return as_int32([[*head, *ids[at * size : (at + 1) * size]] for at in picked.tolist()])
