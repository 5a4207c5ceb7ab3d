"""Admission: holds a request against the model before anything is allocated, and makes its scheduler record.

What only the request itself can get wrong is checked by SamplingParams; here is what depends on the model: token ids
inside the vocabulary, a prompt that leaves room for an answer, and the seed of requests that bring none. This file
knows nothing of text, of blocks or of other requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvik.errors import ContextLengthError, InvalidRequestError
from kvik.request import MASK64, Request, SamplingParams


def splitmix64(state: int) -> int:
    """The output of SplitMix64 for this state (Steele, Lea, Flood 2014): scatters neighbouring numbers over 64 bits."""
    z = (state + 0x9E3779B97F4A7C15) & MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
    return z ^ (z >> 31)


class Admission:
    """Checks requests for one model. `max_model_len` is the longest prompt plus answer, in tokens."""

    def __init__(self, vocab_size: int, max_model_len: int, eos_ids: Sequence[int], seed: int) -> None:
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._eos_ids = frozenset(token for token in eos_ids if 0 <= token < vocab_size)
        self._seed = seed

    def request(
        self, key: int, arrival: int, token_ids: Any, params: SamplingParams, *, priority: int = 0, salt: bytes = b""
    ) -> Request:
        """The scheduler's record of a request. Raises InvalidRequestError, ContextLengthError."""
        tokens = self._prompt(token_ids)
        self._check_tokens("stop_token_ids", params.stop_token_ids)
        self._check_tokens("logit_bias", params.logit_bias)
        self._check_room(len(tokens), params)
        answer = self._max_model_len if params.max_tokens is None else params.max_tokens
        return Request(
            key=key,
            tokens=tokens,
            num_prompt_tokens=len(tokens),
            params=params,
            max_total_tokens=min(len(tokens) + answer, self._max_model_len),
            stop_ids=frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._eos_ids),
            seed=self._seed_of(params, arrival),
            priority=priority,
            arrival=arrival,
            salt=salt,
        )

    def _prompt(self, token_ids: Any) -> list[int]:
        """A list of our own. The types are looked at as a set, so that a long prompt costs little."""
        if hasattr(token_ids, "tolist"):
            token_ids = token_ids.tolist()
        if not isinstance(token_ids, (list, tuple)):
            raise InvalidRequestError(
                f"prompt_token_ids is {shown(token_ids)}; expected a list of token ids", param="prompt"
            )
        if not token_ids:
            raise InvalidRequestError("the prompt is empty; expected at least 1 token", param="prompt")
        if len(token_ids) >= self._max_model_len:
            raise ContextLengthError(no_room(len(token_ids), self._max_model_len), param="prompt")
        if set(map(type, token_ids)) != {int} or min(token_ids) < 0 or max(token_ids) >= self._vocab_size:
            self._refuse_token("prompt", next(t for t in token_ids if not self._is_token(t)))
        return list(token_ids)

    def _is_token(self, token: Any) -> bool:
        return type(token) is int and 0 <= token < self._vocab_size

    def _check_tokens(self, param: str, tokens: Any) -> None:
        for token in tokens:
            if not self._is_token(token):
                self._refuse_token(param, token)

    def _refuse_token(self, param: str, token: Any) -> None:
        raise InvalidRequestError(
            f"{param} holds token id {shown(token)}; expected whole numbers from 0 to {self._vocab_size - 1}, the "
            f"model's vocabulary",
            param=param,
        )

    def _check_room(self, num_prompt_tokens: int, params: SamplingParams) -> None:
        room = self._max_model_len - num_prompt_tokens
        if params.min_tokens > room:
            raise ContextLengthError(
                f"min_tokens is {params.min_tokens} after a prompt of {num_prompt_tokens} tokens; expected at most "
                f"{room}, what max_model_len of {self._max_model_len} leaves",
                param="min_tokens",
            )

    def _seed_of(self, params: SamplingParams, arrival: int) -> int:
        if params.seed is not None:
            return params.seed & MASK64
        return splitmix64(splitmix64(self._seed) ^ arrival)


def no_room(num_tokens: int, max_model_len: int) -> str:
    """That a prompt is too long. Programs that speak OpenAI's API know it by the first words, so these are OpenAI's."""
    return (
        f"This model's maximum context length is {max_model_len} tokens, its max_model_len; the prompt has "
        f"{num_tokens} tokens; expected at most {max_model_len - 1}, to leave room for an answer"
    )


def shown(value: Any) -> str:
    """A value for a message, never longer than a line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
