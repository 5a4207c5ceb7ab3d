"""Grammars: which unfinished texts must follow one, and what that means for the step at hand.

    plan = grammars.masked(plan)                  before the model: the tokens each text may go on with
    grammars.advance(moved)                       after commit: texts that nothing can be added to

A text follows its newest token only when its next mask is asked for: the two touch the same memory, which the model
pushes out of the cache at every step. Its place in its grammar depends on its own tokens alone, so it survives
preemption and plans that are taken back: a mask is made again, nothing is followed twice. What a grammar gets wrong is
an error of its request and of no other. This file knows nothing of how the model computes or of how requests end.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from kvik.checkpoint.spec import DecoderSpec
from kvik.errors import InvalidRequestError
from kvik.request import Request
from kvik.step import SamplePlan, StepPlan, StepResult, UInt32, as_int32
from kvik.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from kvik.text.matcher import GrammarVocabulary, Matcher

Faults = dict[int, Exception]
"""What went wrong, by the key of the choice that it went wrong for."""


class _Text:
    """One choice: its matcher, and the tokens that end it, as words and bits of a mask."""

    __slots__ = ("ends", "key", "length", "matcher", "plain_ends")

    def __init__(
        self, key: int, matcher: Matcher, length: int, ends: list[tuple[int, int]], plain_ends: list[tuple[int, int]]
    ) -> None:
        self.key = key
        self.matcher = matcher
        self.length = length
        """Tokens of the sequence that are behind the matcher: all, or all but the newest."""
        self.ends = ends
        self.plain_ends = plain_ends
        """Of those, the ones that are also text, which a grammar may take for it."""

    def copy(self, key: int) -> _Text:
        """Another choice with the same beginning."""
        return _Text(key, self.matcher.copy(), self.length, self.ends, self.plain_ends)

    def follow(self, length: int, token: int) -> None:
        """The sequence has this length, and this token is its last. Raises what is wrong with it."""
        if self.length < length:
            self.matcher.advance((token,))
            self.length = length


class Grammars:
    """The unfinished texts with a grammar, by key. Only `compile` and `prepare` may be called from other threads."""

    def __init__(self, tokenizer: Tokenizer | None, spec: DecoderSpec) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = spec.vocab_size
        self._end_ids = spec.eos_ids
        self._known: GrammarVocabulary | None = None
        self._lock = threading.Lock()
        self._texts: dict[int, _Text] = {}
        self._endless: set[int] = set()
        """Keys of those that have no token to end with."""
        self._index_list: list[int] = []
        self._index = as_int32([])
        """The masks of the draws of the step before, which are mostly those of this one."""

    def __len__(self) -> int:
        return len(self._texts)

    def prepare(self) -> None:
        """Do what the first request with a grammar would have to wait for. Raises InvalidRequestError."""
        self._vocabulary().prepare()

    def compile(self, grammar: str) -> Matcher:
        """A matcher for `open`. Raises InvalidRequestError if the grammar, or the model's tokenizer, cannot be used."""
        return self._vocabulary().compile(grammar)

    def open(self, request: Request, matcher: Matcher) -> None:
        """A request has been accepted whose choices begin where this matcher is."""
        plain = request.stop_ids - self._vocabulary().special_ids
        text = _Text(request.key, matcher, request.num_prompt_tokens, _bits(request.stop_ids), _bits(plain))
        self._enter(text)

    def _enter(self, text: _Text) -> None:
        self._texts[text.key] = text
        if not text.ends:
            self._endless.add(text.key)

    def close(self, keys: Iterable[int]) -> None:
        """These choices have ended. Idempotent."""
        for key in keys:
            self._texts.pop(key, None)
            self._endless.discard(key)

    def masked(self, plan: StepPlan) -> tuple[StepPlan, Faults]:
        """The plan with a mask for every draw of a text with a grammar. What is drawn for those at fault is void."""
        if not self._texts or not len(plan.sample):
            return plan, {}
        index, drawn = self._gather(plan)
        if not drawn:
            return plan, {}
        masks = np.empty((len(drawn), self._vocabulary().num_words), np.uint32)
        faults = self._fill(masks, drawn)
        if index != self._index_list:
            self._index_list, self._index = index, as_int32(index)
            self._index.flags.writeable = False  # plans of several steps may share it
        return plan.with_masks(self._index, masks), faults

    def _gather(self, plan: StepPlan) -> tuple[list[int], list[tuple[_Text, int, int]]]:
        """The mask of each draw; and for each mask in order its text, and the length and last token of its sequence.

        Draws of one row are the choices of a request that is about to fork: they are at the same place, and those after
        the first begin here.
        """
        index: list[int] = []
        drawn: list[tuple[_Text, int, int]] = []
        first, last_row = None, -1
        sample, tokens, starts = plan.sample, plan.token_ids.tolist(), plan.query_start_loc.tolist()
        for key, row, length in zip(sample.keys.tolist(), sample.rows.tolist(), sample.positions.tolist(), strict=True):
            if row != last_row:
                first, last_row = self._texts.get(key), row
                if first is not None:
                    drawn.append((first, length, tokens[starts[row + 1] - 1]))
            elif first is not None:
                self._enter(first.copy(key))
            index.append(-1 if first is None else len(drawn) - 1)
        return index, drawn

    def _fill(self, masks: UInt32, drawn: list[tuple[_Text, int, int]]) -> Faults:
        """Bring each text up to its last token and make its mask. Once the model has run, all that a step touches has
        left the cache: what costs here is how much is touched, more than how often.
        """
        faults: Faults = {}
        address, stride = masks.__array_interface__["data"][0], masks.strides[0]
        end_word, end_bit = self._vocab_size // 32, 1 << self._vocab_size % 32
        for row, (text, length, token) in enumerate(drawn):
            try:
                text.follow(length, token)
                text.matcher.fill(address)
                if masks.item(row, end_word) & end_bit:
                    _settle(masks[row], text, text.matcher.confirm_end(address))
                elif text.plain_ends:
                    _settle(masks[row], text, may_end=False)
            except Exception as error:
                faults[text.key] = error
            address += stride
        return faults

    def advance(self, moved: Iterable[Request]) -> tuple[Faults, list[int]]:
        """The scheduler has committed a step: follow the new tokens of texts that have no token to end with. Returns
        what went wrong, and the keys of those that are complete.
        """
        faults: Faults = {}
        complete: list[int] = []
        for request in moved if self._endless else ():
            if request.key not in self._endless or request.finish_reason is not None:
                continue
            text = self._texts[request.key]
            try:
                text.follow(len(request.tokens), request.tokens[-1])
            except Exception as error:
                faults[request.key] = error
            else:
                if text.matcher.finished:
                    complete.append(request.key)
        return faults, complete

    def explain(self, plan: StepPlan, result: StepResult) -> Faults:
        """Why draws failed, as far as their masks are the reason: nothing that they allow may be drawn."""
        sample = plan.sample
        if not len(sample.masks) or True not in result.failed.tolist():
            return {}
        return {
            int(sample.keys[draw]): InvalidRequestError(
                f"nothing can follow token {sample.positions[draw] - 1}: the grammar allows only what min_tokens or "
                "logit_bias forbid",
                param="grammar",
            )
            for draw in np.flatnonzero(result.failed).tolist()
            if sample.mask_index[draw] >= 0 and not _leaves_any(sample, draw, self._vocab_size)
        }

    def _vocabulary(self) -> GrammarVocabulary:
        if self._known is not None:
            return self._known
        if self._tokenizer is None:
            raise InvalidRequestError("grammar is set; this model has no tokenizer to spell it with", param="grammar")
        with self._lock:
            if self._known is None:
                from kvik.text.matcher import GrammarVocabulary  # most never need it, and it takes its time

                self._known = GrammarVocabulary(self._tokenizer, self._vocab_size, self._end_ids)
            return self._known


def _bits(token_ids: Iterable[int]) -> list[tuple[int, int]]:
    """Words of a mask and the bits in them."""
    words: dict[int, int] = {}
    for token_id in token_ids:
        words[token_id // 32] = words.get(token_id // 32, 0) | 1 << token_id % 32
    return list(words.items())


def _settle(mask: UInt32, text: _Text, may_end: bool) -> None:
    """Allow the tokens that end a text, or forbid those that could also go on with it."""
    if may_end:
        for word, bit in text.ends:
            mask[word] |= np.uint32(bit)
    else:
        for word, bit in text.plain_ends:
            mask[word] &= ~np.uint32(bit)


def _leaves_any(sample: SamplePlan, draw: int, vocab_size: int) -> bool:
    """Whether a draw's mask holds a token that is not banned."""
    words = np.ascontiguousarray(sample.masks[sample.mask_index[draw]]).astype("<u4")
    left = np.unpackbits(words.view(np.uint8), bitorder="little")[:vocab_size]
    span = slice(sample.bias_start[draw], sample.bias_start[draw + 1])
    banned = sample.bias_tokens[span][sample.bias_values[span] == -np.inf]
    left[banned[banned < len(left)]] = 0
    return bool(left.any())
