"""Log-probabilities in the two shapes of the API, and which tokens they are given for.

They are given for the tokens of the text: not for the token that ended the answer, nor for those that spell a stop
string. A chat has a list of entries with exact bytes; a completion has four lists beside each other. JSON knows no
infinity, so nothing is below -9999.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from kvik.engine.remote.frames import Update
from kvik.request import TokenLogprobs
from kvik.server.protocol.reasoning import TokenBytes

FLOOR = -9999.0


def finite(logprob: float) -> float:
    """A log-probability that JSON can say: from -9999 to 0."""
    return min(logprob, 0.0) if logprob > FLOOR else FLOOR


class TextTokens:
    """The entries of one choice, as soon as it is certain that they belong to its text."""

    def __init__(self, stop: Sequence[str], token_bytes: TokenBytes) -> None:
        self._token_bytes = token_bytes
        self._reach = max((len(each.encode()) for each in stop), default=1) - 1
        """Bytes at the end of what is known that may still turn out to begin a stop string."""
        self._held: list[TokenLogprobs] = []

    def push(self, update: Update) -> list[TokenLogprobs]:
        """The entries that the next update makes certain; with the last one, all that are left."""
        held = [*self._held, *(update.logprobs or ())]
        if update.finish_reason is None:
            count = self._certain(held)
        else:
            count = self._end(held, update)
        self._held = held[count:] if update.finish_reason is None else []
        return held[:count]

    def _certain(self, held: list[TokenLogprobs]) -> int:
        count, bytes_after = len(held), 0
        while count and bytes_after < self._reach:
            count -= 1
            bytes_after += len(self._token_bytes(held[count].token_id))
        return count

    def _end(self, held: list[TokenLogprobs], update: Update) -> int:
        if update.finish_reason != "stop" or update.stop_reason is None:
            return len(held)
        if isinstance(update.stop_reason, int):
            return len(held) - (held[-1:] != [] and held[-1].token_id == update.stop_reason)
        pieces = [self._token_bytes(entry.token_id) for entry in held]
        place = b"".join(pieces).find(update.stop_reason.encode())
        count, before = 0, 0
        while count < len(held) and (place < 0 or before < place):
            before += len(pieces[count])
            count += 1
        return count


def chat_entries(entries: Iterable[TokenLogprobs], token_bytes: TokenBytes) -> dict[str, Any]:
    """The `logprobs` of a chat choice."""
    content = [
        _entry(each.token_id, each.logprob, token_bytes)
        | {"top_logprobs": [_entry(top.token_id, top.logprob, token_bytes) for top in each.top]}
        for each in entries
    ]
    return {"content": content, "refusal": None}


def _entry(token_id: int, logprob: float, token_bytes: TokenBytes) -> dict[str, Any]:
    raw = token_bytes(token_id)
    return {"token": raw.decode(errors="replace"), "logprob": finite(logprob), "bytes": list(raw)}


def token_name(raw: bytes) -> str:
    """A token as a completion names it: its text, or `bytes:` and its bytes if it is part of a character."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


class CompletionLogprobs:
    """The `logprobs` of one completion choice; `text_offset` counts characters from the beginning of its text."""

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def prompt(
        self, token_ids: Sequence[int], entries: Sequence[TokenLogprobs | None], text: str
    ) -> dict[str, list[Any]]:
        """The part for an echoed prompt. Where its tokens say more than its text (the token that begins a text, a
        space before the first word), that much is taken to stand before it.
        """
        known = [entry or TokenLogprobs(token_id, 0.0) for token_id, entry in zip(token_ids, entries, strict=True)]
        part = self.answer(known)
        for index, entry in enumerate(entries):
            if entry is None:
                part["token_logprobs"][index] = part["top_logprobs"][index] = None
        before = self._offset - len(text)
        part["text_offset"] = [max(0, offset - before) for offset in part["text_offset"]]
        self._offset = len(text)
        return part

    def answer(self, entries: Sequence[TokenLogprobs]) -> dict[str, list[Any]]:
        """The part for the next tokens of the text."""
        part: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for entry in entries:
            raw = self._token_bytes(entry.token_id)
            name = token_name(raw)
            part["tokens"].append(name)
            part["token_logprobs"].append(finite(entry.logprob))
            part["top_logprobs"].append(self._top(entry, name))
            part["text_offset"].append(self._offset)
            self._offset += len(self._decoder.decode(raw))
        return part

    def _top(self, entry: TokenLogprobs, name: str) -> dict[str, float]:
        """Likeliest first; of tokens that are spelled alike the likeliest. The token itself is always among them."""
        top: dict[str, float] = {}
        for each in entry.top:
            top.setdefault(token_name(self._token_bytes(each.token_id)), finite(each.logprob))
        top.setdefault(name, finite(entry.logprob))
        return top
