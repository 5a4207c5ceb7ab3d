"""Matchers: where a text stands in its grammar, and so which token may come next.

A `GrammarVocabulary` says what each token id of one model adds to a text, and compiles grammars for it; a `Matcher`
follows one text, token by token. Texts with the same grammar share what was worked out about it, which is most of the
cost; when that goes wrong a matcher starts over on its own, so no text can spoil another. This file knows nothing of
models, requests or batches.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from kvik.errors import InvalidRequestError
from kvik.text.grammar import check, compiled, first_line
from kvik.text.tokenizer import Tokenizer

MAX_SHARED_GRAMMARS = 16
"""Compiled grammars that are kept for the next text that asks for the same."""
MAX_SPELLINGS = 4096
MAX_SPELLING_CHARS = 256
"""Texts whose tokens are kept, as the same ones must come again and again: names of properties, for example."""
_IN_STRING = r'[^"\\\x00-\x1F\x7F]'
SLICES = (
    r"[\x20\x0A\x0D\x09]+",
    *(f"{_IN_STRING}{{1,{most}}}" for most in (2, 4, 6, 8, 10, 15, 20)),
    f"{_IN_STRING}+",
)
"""Sets of tokens that a mask takes as a whole where all of them may come. Inside a JSON string with room for n more
characters those are the tokens that are surely not longer; only the rest is walked through one by one. They change what
a mask costs, never what is in it."""
Words = NDArray[np.uint32]


class GrammarVocabulary:
    """The tokens of a model as grammars see them. Safe to share between threads.

    `vocab_size` is the model's: ids that the tokenizer does not know, special tokens and `end_ids` are in no text.
    Raises InvalidRequestError if it cannot be said which bytes each token adds.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: Sequence[int] = ()) -> None:
        if not tokenizer.has_exact_bytes:
            raise InvalidRequestError(
                "grammar is set; it needs a byte-level or byte-fallback tokenizer, and this model's is neither",
                param="grammar",
            )
        self.vocab_size = vocab_size
        self.num_words = vocab_size // 32 + 1
        """32-bit words of a mask: one bit for each token, and one at `vocab_size` for the end of the text."""
        self.special_ids = frozenset(end_ids) | tokenizer.special_ids
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._tokens: LLTokenizer | None = None
        self._shared: OrderedDict[str, LLMatcher] = OrderedDict()

    def prepare(self) -> LLTokenizer:
        """Do what the first grammar would have to wait for: a second or so for a vocabulary of 150,000 tokens."""
        with self._lock:
            if self._tokens is None:
                view: Any = _TokenizerView(self._tokenizer, self.vocab_size, self.special_ids)
                self._tokens = LLTokenizer(view, slices=list(SLICES))
            return self._tokens

    def new_row(self) -> Words:
        """Room for a mask."""
        return np.zeros(self.num_words, np.uint32)

    def compile(self, grammar: str) -> Matcher:
        """A matcher at the beginning of a text. Raises InvalidRequestError."""
        with self._lock:
            root = self._shared.get(grammar)
            if root is not None:
                self._shared.move_to_end(grammar)
        if root is None:
            root = self.build(check(grammar))
            with self._lock:
                self._shared[grammar] = root
                while len(self._shared) > MAX_SHARED_GRAMMARS:
                    self._shared.popitem(last=False)
        return Matcher(self, grammar, root.deep_copy())

    def build(self, grammar: str) -> LLMatcher:
        """What a matcher is made of, shared with nobody. Raises InvalidRequestError."""
        return compiled(self.prepare(), grammar)

    def forget(self, grammar: str) -> None:
        """Share nothing of this grammar with texts to come."""
        with self._lock:
            self._shared.pop(grammar, None)


class Matcher:
    """One text and its grammar. One caller at a time."""

    __slots__ = ("_grammar", "_inner", "_is_shared", "_num_bytes", "_tokens", "_vocabulary")

    def __init__(self, vocabulary: GrammarVocabulary, grammar: str, inner: LLMatcher) -> None:
        self._vocabulary = vocabulary
        self._grammar = grammar
        self._inner = inner
        self._num_bytes = vocabulary.num_words * 4
        self._is_shared = True
        """Whether others may have changed what this one builds on."""
        self._tokens: list[int] = []

    def copy(self) -> Matcher:
        """Another text with the same beginning."""
        other = Matcher(self._vocabulary, self._grammar, self._inner.deep_copy())
        other._tokens = list(self._tokens)
        self._is_shared = True
        return other

    @property
    def num_tokens(self) -> int:
        """Tokens of the text so far."""
        return len(self._tokens)

    @property
    def finished(self) -> bool:
        """Whether the text is complete and nothing can be added."""
        return self._inner.is_stopped() and not self._inner.is_error()

    def mask_into(self, row: Words) -> bool:
        """Set the bit of every token that may come next in row [num_words], and no other; whether the text may end
        here, which is also the bit at `vocab_size`. Raises InvalidRequestError when the grammar is too much to follow.
        """
        address, size = row.ctypes.data, self._vocabulary.vocab_size
        self.fill(address)
        ends = bool(row[size // 32] >> np.uint32(size % 32) & 1)
        return ends and self.confirm_end(address)

    def fill(self, address: int) -> None:
        """The first half of `mask_into`, for words at an address: right, unless it says that the text may end here."""
        self._inner.unsafe_compute_mask_ptr(address, self._num_bytes)

    def confirm_end(self, address: int) -> bool:
        """The second half: an error, too, leaves a mask that lets the text end, so begin again if it was one."""
        if not self._inner.is_error():
            return True
        self._start_over()
        self.fill(address)
        self._check()
        return bool(self._inner.is_accepting())

    def advance(self, token_ids: Sequence[int]) -> None:
        """The text goes on with these tokens. Raises InvalidRequestError if it cannot, or no longer."""
        self._tokens += token_ids
        for token_id in token_ids:
            if not self._inner.consume_token(token_id):
                self._start_over()
                return

    def _start_over(self) -> None:
        """After an error: follow the text again from its beginning, building on nothing that is shared."""
        self._vocabulary.forget(self._grammar)
        if self._is_shared:
            self._inner, self._is_shared = self._vocabulary.build(self._grammar), False
            self._inner.consume_tokens(self._tokens)
        self._check()

    def _check(self) -> None:
        if self._inner.is_error():
            where = f"the grammar cannot be followed after {len(self._tokens)} tokens"
            raise InvalidRequestError(f"{where}: {first_line(self._inner.get_error())}", param="grammar")


class _TokenizerView:
    """A tokenizer as llguidance wants to see one: the bytes of each token, and how a text is spelled that must come."""

    is_tokenizer_wrapper = True
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    """None: a token of its own, after all others, stands for the end."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, special_ids: frozenset[int]) -> None:
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(vocab_size)]
        self.special_token_ids = sorted(token_id for token_id in special_ids if token_id < vocab_size)
        self._tokenizer = tokenizer
        self._by_bytes = {piece: token_id for token_id, piece in enumerate(self.tokens) if piece}
        for token_id in self.special_token_ids:
            self._by_bytes.pop(self.tokens[token_id], None)
        self._longest = max(map(len, self._by_bytes), default=0)
        self._line_break = tokenizer.encode("\n", add_special_tokens=False)
        self._spellings: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        """Tokens whose bytes are exactly this text, as the tokenizer would choose them in the middle of one."""
        known = self._spellings.get(text)
        if known is None:
            known = self._spelling(text)
            if len(text) <= MAX_SPELLING_CHARS and len(self._spellings) < MAX_SPELLINGS:
                self._spellings[text] = known
        return known

    def _spelling(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        if self._spells(ids, text):
            return ids
        # At the beginning of a text some tokenizers put a space of their own; after a line break they do not.
        ids = self._tokenizer.encode("\n" + text, add_special_tokens=False)
        start = len(self._line_break)
        if ids[:start] == self._line_break and self._spells(ids[start:], text):
            return ids[start:]
        return self._longest_first(text.encode())

    def _spells(self, ids: Sequence[int], text: str) -> bool:
        known = all(token_id < len(self.tokens) for token_id in ids)
        return known and b"".join(self.tokens[token_id] for token_id in ids) == text.encode()

    def _longest_first(self, text: bytes) -> list[int]:
        ids: list[int] = []
        place = 0
        while place < len(text):
            ends = range(min(len(text), place + self._longest), place, -1)
            end = next((end for end in ends if text[place:end] in self._by_bytes), None)
            if end is None:
                raise ValueError(f"no token begins the text {text[place : place + 20]!r}")
            ids.append(self._by_bytes[text[place:end]])
            place = end
        return ids
