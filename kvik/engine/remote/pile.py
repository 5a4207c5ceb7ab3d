"""Updates of one choice that nobody has taken yet, merged as they come and kept small.

Text and tokens are merged without end. Log-probabilities are kept as plain numbers, a tenth of what they are as
objects, and given out a few tokens at a time, because each token of them becomes kilobytes of a reply. Knows nothing of
who reads.
"""

from __future__ import annotations

import io
from array import array
from collections import deque
from collections.abc import Iterable

from kvik.engine.remote.frames import Update
from kvik.request import Logprob, TokenLogprobs

PIECE_TOKENS = 16
"""Tokens with log-probabilities that are given out at a time."""
TOKEN_BYTES = 8 + 28
"""Of a token id in a list, most of which are objects of their own."""
SEGMENT_BYTES = 1024


class PackedLogprobs:
    """Log-probabilities of tokens in a row, as numbers: for each token itself, then its likeliest ones."""

    __slots__ = ("_counts", "_ids", "_values")

    def __init__(self) -> None:
        self._counts, self._ids, self._values = array("I"), array("q"), array("d")

    def __len__(self) -> int:
        return len(self._counts)

    @property
    def num_bytes(self) -> int:
        """In memory."""
        return sum(each.itemsize * len(each) for each in (self._counts, self._ids, self._values))

    def add(self, entries: Iterable[TokenLogprobs]) -> None:
        """Some more at the end."""
        for entry in entries:
            self._counts.append(len(entry.top))
            self._ids.append(entry.token_id)
            self._values.append(entry.logprob)
            self._ids.extend([each.token_id for each in entry.top])
            self._values.extend([each.logprob for each in entry.top])

    def unpacked(self) -> list[TokenLogprobs]:
        """As they were."""
        made, at = [], 0
        for count in self._counts:
            end = at + 1 + count
            top = tuple(map(Logprob, self._ids[at + 1 : end], self._values[at + 1 : end]))
            made.append(TokenLogprobs(self._ids[at], self._values[at], top))
            at = end
        return made


class _Segment:
    """What is given out at a time."""

    __slots__ = ("_last", "_logprobs", "_prompt_logprobs", "_text", "_token_ids", "num_bytes")

    def __init__(self, first: Update) -> None:
        self._text = io.StringIO()
        self._token_ids: list[int] = []
        self._logprobs = PackedLogprobs()
        self._prompt_logprobs = first.prompt_logprobs
        self.num_bytes = SEGMENT_BYTES
        self.add(first)

    @property
    def is_full(self) -> bool:
        return len(self._logprobs) >= PIECE_TOKENS

    def add(self, update: Update) -> None:
        before = self._logprobs.num_bytes
        self._text.write(update.text)
        self._token_ids += update.token_ids
        self._logprobs.add(update.logprobs or ())
        self._last = update if update.logprobs is None else _without_logprobs(update)
        self.num_bytes += 4 * len(update.text) + TOKEN_BYTES * len(update.token_ids)
        self.num_bytes += self._logprobs.num_bytes - before

    def merged(self) -> Update:
        last = self._last
        return Update(
            last.request_id,
            last.index,
            self._text.getvalue(),
            self._token_ids,
            None if last.logprobs is None else self._logprobs.unpacked(),
            last.finish_reason,
            last.stop_reason,
            last.num_cached_tokens,
            self._prompt_logprobs,
        )


class Pile:
    """Two updates or more."""

    __slots__ = ("_segments",)

    def __init__(self, first: Update, second: Update) -> None:
        self._segments = deque([_Segment(first)])
        self.add(second)

    def __bool__(self) -> bool:
        return bool(self._segments)

    @property
    def num_bytes(self) -> int:
        """In memory, about; what there is of the prompt's log-probabilities is not counted, for it does not grow."""
        return sum(segment.num_bytes for segment in self._segments)

    def add(self, update: Update) -> None:
        """The next update."""
        if self._segments[-1].is_full:
            self._segments.append(_Segment(update))
        else:
            self._segments[-1].add(update)

    def take(self, *, whole: bool = False) -> Update:
        """The beginning of what there is, or all of it. IndexError if there is nothing."""
        if not whole:
            return self._segments.popleft().merged()
        parts = [segment.merged() for segment in self._segments]
        self._segments.clear()
        return _joined(parts) if len(parts) > 1 else parts[0]


def _without_logprobs(update: Update) -> Update:
    """What else is in an update, and that there were some."""
    return Update(
        update.request_id,
        update.index,
        "",
        [],
        [],
        update.finish_reason,
        update.stop_reason,
        update.num_cached_tokens,
    )


def _joined(parts: list[Update]) -> Update:
    first, last = parts[0], parts[-1]
    return Update(
        last.request_id,
        last.index,
        "".join(part.text for part in parts),
        [token for part in parts for token in part.token_ids],
        None if last.logprobs is None else [entry for part in parts for entry in part.logprobs or ()],
        last.finish_reason,
        last.stop_reason,
        last.num_cached_tokens,
        first.prompt_logprobs,
    )
