"""The text of an answer as a continuation of its prompt: what the answer's tokens add to the prompt's text.

Decoding an answer by itself would lose the space before its first word with tokenizers that strip the beginning of a
text. This file knows nothing of how tokens become text.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvik.text.detokenizer import Detokenizer
from kvik.text.tokenizer import Tokenizer

CONTEXT = 16
"""Prompt tokens that the first answer token is read after."""


class Continuation(Detokenizer):
    """A detokenizer that has read the end of the prompt and given nothing out; stop strings start after it."""

    __slots__ = ()

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], stop: Sequence[str] = ()) -> None:
        super().__init__(tokenizer, stop)
        self._stream.push(prompt_token_ids[-CONTEXT:])
        # Bytes that are still held belong to the prompt's last character.
        self._stream.finish()
