"""What the fake model answers, defined by recomputation from the tokens alone: no cache, no blocks, no arrays.

For tokens t(0) .. t(p), modulo 2**64:

    s(p) = s(p - 1) + key(t(p), p)              what a slot of the cache holds; s(-1) = 0
    D(p) = sum over q <= p of weight(q) s(q)    what a row reads back through its block table

A slot depends on everything before it, as keys and values do, and D on every slot of the row, as attention does. At
temperature 0 the next token is a function of D alone, above it of D and the draw's seed, whatever the temperature.
top_p, top_k, min_p, penalties and biases change nothing, but a bias of -100 or less bans its token, and the next one
that is allowed takes its place. A draw with a mask is one among the tokens that mask and bans leave, with a liking for
those that bring a text to its end (`masked_token`), and as much a function of D and the seed.

An answer is the pieces at a row's end (`kvik/checkpoint/fake.py`), and what stands before it is its prompt. How many
pieces there are before the end token is a function of s at the prompt's last token, and of the seed in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from kvik.checkpoint import fake
from kvik.checkpoint.fake import FakeOptions
from kvik.request import MASK64
from kvik.runners.fake.hashing import key_of, mix, weight_of
from kvik.text.byte_tokenizer import byte_tokenizer
from kvik.text.tokenizer import Tokenizer

BANNED = -100.0
"""A bias of this or less bans a token."""
LENGTH, CERTAINTY, MASKED = 0x6C656E677468, 0x63657274, 0x6D61736B
"""Keep what is drawn from one state for several ends apart."""
DECAY = 0.99
"""Of probability, from each token below the likeliest to the next."""
END_IDS = frozenset((fake.IM_END, fake.END_OF_TEXT))
CLOSING: tuple[int, ...] = (fake.IM_END, fake.END_OF_TEXT, *b'"}]')
"""What ends a text under a mask, or a part of it: the first of these that is allowed."""
CLOSES_ONE_IN = 4


@dataclass(frozen=True)
class Context:
    """All that the next token depends on."""

    digest: int = 0
    """D of the last token."""
    last: int = -1
    answered: int = 0
    """Pieces at the end of the row."""
    root_state: int = 0
    """s of the last token that is no piece."""


def drawing_key(seed: int | None) -> int:
    """What a seed adds to a draw; None is temperature 0."""
    return 0 if seed is None else mix(seed & MASK64)


def answer_length(context: Context, key: int, options: FakeOptions) -> int:
    """Pieces of the answer before its end token."""
    low, high = options.length
    return low + mix(context.root_state ^ key ^ LENGTH) % (high - low + 1)


def next_token(context: Context, key: int, options: FakeOptions, banned: AbstractSet[int] = frozenset()) -> int:
    """The token drawn with this key; -1 if all are banned."""
    length = answer_length(context, key, options)
    if context.last == fake.HEAD_ID:
        first, count = fake.FIRST_TAIL, len(fake.TAILS)
    elif options.text == "ascii":
        first, count = fake.FIRST_PIECE, fake.NUM_ASCII
    else:
        # The head of an emoji stands behind the whole pieces, and is never an answer's last.
        first, count = fake.FIRST_PIECE, fake.NUM_WHOLE + (context.answered + 1 < length)
    start = mix(context.digest ^ key) % count
    if context.answered >= length and fake.IM_END not in banned:
        return fake.IM_END
    candidates = [first + (start + turn) % count for turn in range(count)] if banned else [first + start]
    return next((token for token in (*candidates, *range(fake.VOCAB_SIZE)) if token not in banned), -1)


def masked_token(context: Context, key: int, allowed: Sequence[int]) -> int:
    """The token drawn with this key among those that are allowed, in order of their ids; -1 if there are none. One time
    in four, or where nothing else is left, it is one that closes something, so that every JSON comes to its end.
    """
    closing = [token for token in CLOSING if token in allowed]
    others = [token for token in allowed if token not in closing]
    turns, start = divmod(mix(context.digest ^ key ^ MASKED), CLOSES_ONE_IN)
    if closing and (start == 0 or not others):
        return closing[0]
    return others[turns % len(others)] if others else -1


def certainty(context: Context) -> float:
    """The probability of the likeliest token, the one drawn at temperature 0 without bans: 0.5 to 0.9."""
    return 0.5 + mix(context.digest ^ CERTAINTY) % 400 / 1000


def logprob(context: Context, token: int, options: FakeOptions) -> float:
    """Log-probability of any token: the likeliest is followed by the ids after it, in a ring, each less likely."""
    top, likeliest = next_token(context, 0, options), certainty(context)
    rank = (token - top) % fake.VOCAB_SIZE
    if rank == 0:
        return math.log(likeliest)
    share = (1 - DECAY) / (1 - DECAY ** (fake.VOCAB_SIZE - 1))
    return math.log((1 - likeliest) * share) + (rank - 1) * math.log(DECAY)


class Reader:
    """Takes in tokens one after another."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self._position = self._state = 0
        self.context = Context()
        for token in tokens:
            self.push(token)

    def push(self, token: int) -> None:
        """The next token of the row."""
        was = self.context
        self._state = (self._state + key_of(token, self._position)) & MASK64
        digest = (was.digest + weight_of(self._position) * self._state) & MASK64
        self._position += 1
        if fake.FIRST_PIECE <= token < fake.END_OF_TEXT:
            self.context = Context(digest, token, was.answered + 1, was.root_state)
        else:
            self.context = Context(digest, token, 0, self._state)


def fake_answer(
    prompt_ids: Sequence[int],
    count: int,
    *,
    seed: int | None = None,
    min_tokens: int = 0,
    stop_ids: AbstractSet[int] = END_IDS,
    banned: AbstractSet[int] = frozenset(),
    options: FakeOptions | None = None,
) -> list[int]:
    """The tokens that must come out for a prompt: `count` of them, or fewer if one of `stop_ids` ends the answer, which
    is then the last. With ignore_eos, stop_ids is empty.

    seed: None for temperature 0; otherwise the choice's own, `choice_seed(seed, index)`. min_tokens: before so many
    tokens stop_ids are banned.
    """
    options = options or FakeOptions()
    reader, key = Reader(prompt_ids), drawing_key(seed)
    answer: list[int] = []
    while len(answer) < count:
        forbidden = banned | stop_ids if len(answer) < min_tokens else banned
        answer.append(next_token(reader.context, key, options, forbidden))
        reader.push(answer[-1])
        if answer[-1] in stop_ids:
            break
    return answer


def fake_logprob(context_ids: Sequence[int], token: int, options: FakeOptions | None = None) -> float:
    """Log-probability of a token after these."""
    return logprob(Reader(context_ids).context, token, options or FakeOptions())


def fake_tokenizer() -> Tokenizer:
    """The fake model's tokenizer: text goes in as bytes and comes out as pieces."""
    return byte_tokenizer(fake.PIECES)
