"""Token ids to text, a few at a time: one class for each way of decoding.

Each holds back what a later token may change: part of a character, a run of byte tokens. What all pushes and the
finish give, one after another, is what decoding all ids at once gives. Knows nothing of stop strings.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol

from kvik.text.pieces import Piece, PieceTable

REPLACEMENT = "\ufffd"


class TokenStream(Protocol):
    """Text from token ids that arrive in order."""

    def push(self, token_ids: Sequence[int]) -> str:
        """What is certain after these."""

    def finish(self) -> str:
        """What was held back."""


class ByteLevelStream:
    """Byte-level tokens: an unfinished character waits for its other bytes."""

    __slots__ = ("_pending", "_pieces")

    def __init__(self, pieces: PieceTable) -> None:
        self._pieces = pieces
        self._pending = b""

    def push(self, token_ids: Sequence[int]) -> str:
        pieces, text = self._pieces, ""
        for token_id in token_ids:
            piece = pieces[token_id]
            text += piece if type(piece) is str and not self._pending else self._complete(piece)
        return text

    def _complete(self, piece: Piece) -> str:
        data = self._pending + (piece.encode() if isinstance(piece, str) else piece)
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._pending = data[used:]
        return text

    def finish(self) -> str:
        data, self._pending = self._pending, b""
        return data.decode(errors="replace")


class ByteFallbackStream:
    """Text tokens and single bytes: a run of bytes waits for its end, since one bad byte spoils all of it."""

    __slots__ = ("_char", "_pending", "_pieces", "_strip")

    def __init__(self, pieces: PieceTable, strip: tuple[str, int]) -> None:
        self._pieces = pieces
        self._char, self._strip = strip
        self._pending = bytearray()

    def push(self, token_ids: Sequence[int]) -> str:
        pieces, text = self._pieces, ""
        for token_id in token_ids:
            piece = pieces[token_id]
            if type(piece) is not str:
                text += self._add(piece)
            elif piece:
                text += self._flush() + piece if self._pending else piece
        return self._stripped(text) if self._strip and text else text

    def _add(self, piece: Piece) -> str:
        if not piece:
            return self._flush()
        self._pending += piece if isinstance(piece, bytes) else piece.encode()
        return ""

    def _flush(self) -> str:
        run, self._pending = self._pending, bytearray()
        try:
            return run.decode()
        except UnicodeDecodeError:
            return REPLACEMENT * len(run)

    def _stripped(self, text: str) -> str:
        """Remove what the decoder strips from the beginning of the whole text."""
        while self._strip and text.startswith(self._char):
            text, self._strip = text[1:], self._strip - 1
        if text:
            self._strip = 0
        return text

    def finish(self) -> str:
        return self._stripped(self._flush())


class WindowStream:
    """Any decoder, through decoding itself: the new text is what the newest tokens add to those just before them.

    Two decodes of a few tokens for each push. At the end all ids are decoded once, so that the law holds wherever
    the decoder does not take back text that was already certain.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], is_byte: Callable[[int], bool | None]) -> None:
        """`is_byte` says whether a token stands for one byte; None for a token that is skipped."""
        self._decode = decode
        self._is_byte = is_byte
        self._in_run = False
        """The last token that counts is a byte, so the next may change what it stands for."""
        self._ids: list[int] = []
        self._start = 0
        """Where the window of ids begins."""
        self._read = 0
        """Ids before this are given out already."""
        self._emitted: list[str] = []

    def push(self, token_ids: Sequence[int]) -> str:
        if not token_ids:
            return ""
        self._ids += token_ids
        for token_id in token_ids:
            is_byte = self._is_byte(token_id)
            self._in_run = self._in_run if is_byte is None else is_byte
        known = self._decode(self._ids[self._start : self._read])
        text = self._decode(self._ids[self._start :])
        # A token without text (a skipped one) must not become the window's first, which may lose its leading space.
        if text.endswith(REPLACEMENT) or text == known or not text.startswith(known) or self._in_run:
            return ""
        self._start, self._read = self._read, len(self._ids)
        self._emitted.append(text[len(known) :])
        return self._emitted[-1]

    def finish(self) -> str:
        emitted = "".join(self._emitted)
        text = self._decode(self._ids)
        if text.startswith(emitted):
            return text[len(emitted) :]
        known = self._decode(self._ids[self._start : self._read])
        rest = self._decode(self._ids[self._start :])
        return rest[len(known) :] if rest.startswith(known) else ""
