"""What a user asks for and what comes back: SamplingParams, Request, RequestOutput.

`Request` is the scheduler's record of one sequence of tokens. A request for n choices starts as one `Request`;
when its prompt is computed it forks into n that share every KV block. This file knows nothing of text, blocks or
devices.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from typing import Any

from kvik.errors import InvalidRequestError

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_GRAMMAR_CHARS = 2**18
MASK64 = (1 << 64) - 1


def _number(name: str, value: Any, low: float, high: float, expected: str) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or math.isnan(value) or not low <= value <= high:
        raise InvalidRequestError(f"{name} is {value!r}; expected {expected}", param=name)


def _whole(name: str, value: Any, low: int, high: int, expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequestError(f"{name} is {value!r}; expected {expected}", param=name)


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn and when to stop.

    The logits of a position pass through these steps, in this order: grammar, logit_bias, repetition_penalty,
    presence_penalty and frequency_penalty, temperature, min_p, top_k, top_p; then one token is drawn.
    Temperature 0 is greedy: the largest logit after bias and penalties, the lowest id among equals.

    Raises InvalidRequestError naming the field, its value and the range.
    """

    n: int = 1
    """Choices to generate; they share the computed prompt."""
    temperature: float = 1.0
    """0 is greedy; larger flattens the distribution. 0..100."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches this. (0, 1]."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 or -1 keeps all."""
    min_p: float = 0.0
    """Drop tokens less likely than this fraction of the likeliest. 0..1."""
    repetition_penalty: float = 1.0
    """Divides positive, multiplies negative logits of tokens seen in prompt or answer (CTRL, section 4.1). > 0."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token already in the answer. -2..2."""
    frequency_penalty: float = 0.0
    """Subtracted once per occurrence in the answer. -2..2."""
    seed: int | None = None
    """Same request and seed, same bytes. None: derived from the engine's seed and the order of arrival."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer; the earliest one wins, and it is not part of the text."""
    stop_token_ids: tuple[int, ...] = ()
    """Further token ids that end the answer, beside the model's own."""
    max_tokens: int | None = 16
    """Most tokens to generate; None: as many as the context holds."""
    min_tokens: int = 0
    """Stop tokens cannot be drawn before this many tokens."""
    ignore_eos: bool = False
    """Do not stop at the model's own end tokens."""
    logprobs: int | None = None
    """Log-probabilities of the drawn token and this many most likely ones (of the model's own distribution)."""
    prompt_logprobs: int | None = None
    """The same for every prompt token but the first."""
    logit_bias: dict[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids. -100..100."""
    deadline_s: float | None = None
    """Seconds after arrival at which the request ends with what it has."""
    grammar: str | None = None
    """A grammar that the text of every choice must follow, as kvik.text.grammar makes it. The answer can end only where
    the grammar may; at most 262,144 characters."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", self._as_tuple("stop", self.stop, str))
        object.__setattr__(self, "stop_token_ids", self._as_tuple("stop_token_ids", self.stop_token_ids, int))
        _whole("n", self.n, 1, 128, "a whole number from 1 to 128")
        _number("temperature", self.temperature, 0.0, 100.0, "a number from 0 to 100")
        _number("top_p", self.top_p, 1e-9, 1.0, "a number above 0 and at most 1")
        _whole("top_k", self.top_k, -1, 2**31 - 1, "a whole number of at least -1 (0 and -1 keep all)")
        _number("min_p", self.min_p, 0.0, 1.0, "a number from 0 to 1")
        _number("repetition_penalty", self.repetition_penalty, 1e-3, 1e3, "a number from 0.001 to 1000")
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0, "a number from -2 to 2")
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0, "a number from -2 to 2")
        if self.seed is not None:
            _whole("seed", self.seed, -(2**63), 2**64 - 1, "a 64-bit whole number")
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, 1, 2**31 - 1, "a whole number of at least 1")
        _whole("min_tokens", self.min_tokens, 0, 2**31 - 1, "a whole number of at least 0")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens is {self.min_tokens}; expected at most max_tokens, which is {self.max_tokens}",
                param="min_tokens",
            )
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 0, MAX_LOGPROBS, f"a whole number from 0 to {MAX_LOGPROBS}")
        if self.deadline_s is not None:
            _number("deadline_s", self.deadline_s, 1e-3, 1e9, "a number of seconds above 0")
        self._check_stop()
        self._check_bias()
        self._check_grammar()

    @staticmethod
    def _as_tuple(name: str, value: Any, kind: type) -> tuple[Any, ...]:
        if value is None:
            return ()
        if isinstance(value, kind) and not isinstance(value, bool):
            return (value,)
        if not isinstance(value, (list, tuple)):
            raise InvalidRequestError(f"{name} is {value!r}; expected a {kind.__name__} or a list of them", param=name)
        return tuple(value)

    def _check_stop(self) -> None:
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequestError(
                f"stop has {len(self.stop)} strings; expected at most {MAX_STOP_STRINGS}", param="stop"
            )
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise InvalidRequestError(f"stop contains {text!r}; expected non-empty strings", param="stop")
        for token in self.stop_token_ids:
            _whole("stop_token_ids", token, 0, 2**31 - 1, "token ids")

    def _check_bias(self) -> None:
        if not isinstance(self.logit_bias, dict):
            raise InvalidRequestError(
                f"logit_bias is {self.logit_bias!r}; expected a dict from token id to bias", param="logit_bias"
            )
        for token, bias in self.logit_bias.items():
            _whole("logit_bias", token, 0, 2**31 - 1, "token ids as keys")
            _number("logit_bias", bias, -100.0, 100.0, "values from -100 to 100")

    def _check_grammar(self) -> None:
        if self.grammar is None:
            return
        if not isinstance(self.grammar, str):
            raise InvalidRequestError(
                f"grammar is a {type(self.grammar).__name__}; expected a string made by kvik.text.grammar",
                param="grammar",
            )
        if not 0 < len(self.grammar) <= MAX_GRAMMAR_CHARS:
            raise InvalidRequestError(
                f"grammar has {len(self.grammar)} characters; expected 1 to {MAX_GRAMMAR_CHARS}", param="grammar"
            )

    @property
    def greedy(self) -> bool:
        """Whether the largest logit is taken instead of a draw."""
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        """Whether drawing a token needs the tokens before it."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


class FinishReason(str, enum.Enum):
    """Why a request ended; the value is what users see."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    DEADLINE = "deadline"
    ERROR = "error"

    def __str__(self) -> str:
        return self.value


class RequestState(enum.Enum):
    """Where a request is in its life. Preempted requests are WAITING again."""

    WAITING = 0
    RUNNING = 1
    FINISHED = 2


@dataclass(frozen=True)
class Logprob:
    """One token with its log-probability under the model's own distribution (natural logarithm)."""

    token_id: int
    logprob: float


@dataclass(frozen=True)
class TokenLogprobs:
    """The log-probability of a token that was drawn or given, and of the most likely ones, likeliest first."""

    token_id: int
    logprob: float
    top: tuple[Logprob, ...] = ()


@dataclass(eq=False)
class Request:
    """One sequence of tokens on its way through the engine. Identity is `key`, unique in an engine's life.

    Invariants: 0 <= num_computed_tokens <= len(tokens); tokens[:num_prompt_tokens] is the prompt.
    """

    key: int
    tokens: list[int]
    """Prompt, then answer. Append only."""
    num_prompt_tokens: int
    params: SamplingParams
    max_total_tokens: int
    """The request ends with LENGTH when len(tokens) reaches this."""
    stop_ids: frozenset[int] = frozenset()
    """Token ids that end the answer: the model's own (unless ignore_eos) and the request's."""
    seed: int = 0
    """64-bit seed of this choice; a token is drawn from (seed, its position)."""
    priority: int = 0
    """Lower is served first; equal priorities in order of arrival."""
    arrival: int = 0
    """Order of arrival, a counter; choices of one request share it."""
    salt: bytes = b""
    """Prefix blocks are shared only between requests of equal salt."""
    choice: int = 0
    """Which of the n choices this is; 0 is the one that computes the prompt."""
    parent: int | None = None
    """Key of the choice this one was forked from."""

    state: RequestState = RequestState.WAITING
    num_computed_tokens: int = 0
    """Tokens whose keys and values are in the cache."""
    num_cached_tokens: int = 0
    """Of the prompt, the tokens found in the prefix cache when it was first admitted."""
    num_preemptions: int = 0
    finish_reason: FinishReason | None = None
    stop_token: int | None = None
    """The token id that ended the answer, if one did; it is the last of `tokens`."""
    error: str | None = None
    block_table: list[int] = field(default_factory=list)
    """KV blocks in order of position. Belongs to the scheduler."""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    """One per answer token, if asked for."""
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    """One per prompt token, None for the first, if asked for."""

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_output_tokens(self) -> int:
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def output_token_ids(self) -> list[int]:
        return self.tokens[self.num_prompt_tokens :]

    @property
    def is_finished(self) -> bool:
        return self.state is RequestState.FINISHED


def choice_seed(seed: int, choice: int) -> int:
    """The 64-bit seed of one choice of a request; choice 0 keeps the request's own (splitmix64's increment)."""
    return (seed + choice * 0x9E3779B97F4A7C15) & MASK64


@dataclass(frozen=True)
class CompletionOutput:
    """One choice of a finished or running request."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    """The stop string or token id that ended the answer, if one did."""
    logprobs: list[TokenLogprobs] | None = None


@dataclass(frozen=True)
class RequestOutput:
    """The answer to one request: its choices, in order."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = True
    num_cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    error: Exception | None = None
    """Why this request could not be served; its choices are then empty or partial."""
