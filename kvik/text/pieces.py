"""What each token id adds to a decoded text, for the two decoders nearly every model uses.

*Byte level* (GPT-2, Llama 3, Qwen): a token is a run of bytes, the text is their UTF-8, and bytes that are not UTF-8
become U+FFFD. *Byte fallback* (SentencePiece as in Llama 2, Mistral, Gemma): a token is text, but `<0xE4>` is one
byte; a run of such bytes is text if all of it is UTF-8 and otherwise one U+FFFD for each byte.

A PieceTable holds one entry for each token id that has been seen, shared by everything that decodes with a tokenizer.
Any other decoder has no table. Knows nothing of streams or stop strings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Piece = str | bytes
"""str: whole characters. bytes: part of a character. "" is a token that is not there (skipped, unknown); b"" is one
that is there and has no text."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the others, in order, from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def is_byte_token(token: str) -> bool:
    """Whether a token of a byte-fallback vocabulary stands for one byte."""
    return _BYTE_TOKEN.fullmatch(token) is not None


@dataclass(frozen=True)
class DecoderLayout:
    """How a tokenizer.json decodes, as far as a table can say it."""

    kind: str
    """byte_level, byte_fallback or general (no table)."""
    replacements: tuple[tuple[str, str], ...] = ()
    """byte_fallback: applied to each token's text, in order."""
    strip: tuple[str, int] = ("", 0)
    """byte_fallback: this character is removed from the beginning of the text, at most so many times."""

    @classmethod
    def read(cls, decoder: bytes | None) -> DecoderLayout:
        """From the `decoder` section of a tokenizer.json."""
        section = json.loads(decoder) if decoder else None
        if not isinstance(section, dict):
            return cls("general")
        steps = section.get("decoders", []) if section.get("type") == "Sequence" else [section]
        if [step.get("type") for step in steps] == ["ByteLevel"]:
            return cls("byte_level")
        return cls._fallback(list(steps)) or cls("general")

    @classmethod
    def _fallback(cls, steps: list[dict[str, Any]]) -> DecoderLayout | None:
        replacements = []
        while steps and steps[0].get("type") == "Replace" and steps[0]["pattern"].get("String"):
            step = steps.pop(0)
            replacements.append((step["pattern"]["String"], step["content"]))
        kinds = [step.get("type") for step in steps]
        if kinds == ["ByteFallback", "Fuse"]:
            return cls("byte_fallback", tuple(replacements))
        if kinds == ["ByteFallback", "Fuse", "Strip"] and not steps[2]["stop"] and len(steps[2]["content"]) == 1:
            return cls("byte_fallback", tuple(replacements), (steps[2]["content"], steps[2]["start"]))
        return None

    def converter(self) -> Callable[[str], Piece]:
        """From a token as the vocabulary spells it to its piece."""
        return self._byte_level() if self.kind == "byte_level" else self._byte_fallback

    @staticmethod
    def _byte_level() -> Callable[[str], Piece]:
        alphabet = byte_alphabet()

        def convert(token: str) -> Piece:
            try:
                raw = bytes(alphabet[char] for char in token)
            except KeyError:  # an added token in plain spelling
                raw = token.encode()
            try:
                return raw.decode()
            except UnicodeDecodeError:
                return raw

        return convert

    def _byte_fallback(self, token: str) -> Piece:
        for old, new in self.replacements:
            token = token.replace(old, new)
        match = _BYTE_TOKEN.fullmatch(token)
        return bytes([int(match[1], 16)]) if match else token or b""


class PieceTable(dict[int, Piece]):
    """Piece by token id, filled on first use. Looking up a known id costs one dict access."""

    def __init__(
        self, token: Callable[[int], str | None], convert: Callable[[str], Piece], skipped: frozenset[str]
    ) -> None:
        super().__init__()
        self._token = token
        self._convert = convert
        self._skipped = skipped

    def __missing__(self, token_id: int) -> Piece:
        token = self._token(token_id)
        piece = "" if token is None or token in self._skipped else self._convert(token)
        if token is not None:
            self[token_id] = piece
        return piece
