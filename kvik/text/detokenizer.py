"""Detokenizer: an answer's text as its tokens come.

Never shows half a character or what may be the beginning of a stop string. The law: all pushes and the finish, one
after another, are `tokenizer.decode` of all ids, cut before the stop string that starts earliest. Runs for every
token of every stream, so a push without stop strings is little more than one dict access. Knows nothing of requests
or of when an answer ends.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvik.text.stop import StopSearch
from kvik.text.tokenizer import Tokenizer


class Detokenizer:
    """The text of one answer. Where several stop strings match, see `StopSearch` for which one wins."""

    __slots__ = ("_parts", "_search", "_stream")

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), skip_special_tokens: bool = True) -> None:
        self._stream = tokenizer.stream(skip_special_tokens)
        self._search = StopSearch(stop) if stop else None
        self._parts: list[str] = []

    def push(self, token_ids: Sequence[int]) -> str:
        """Take in the next tokens; return the text that has become certain. After a stop string: nothing."""
        text = self._stream.push(token_ids)
        if text and self._search is not None:
            text = self._search.push(text)
        if text:
            self._parts.append(text)
        return text

    def finish(self) -> str:
        """The answer has ended: the text still held back, an incomplete character as U+FFFD."""
        text = self._stream.finish()
        if self._search is not None:
            text = self._search.push(text)
            if self._search.matched is None:
                text += self._search.finish()
        if text:
            self._parts.append(text)
        return text

    @property
    def text(self) -> str:
        """All text given out so far."""
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text, once it is certain; the text is cut before it."""
        return self._search.matched if self._search is not None else None
