"""What clients ask: prompts of about so many tokens, answers of at most so many, as requests ready to be sent.

A prompt is text, words drawn by a seed, or token ids where a model has no text. How many tokens a word takes is asked
of the server first. No two prompts begin alike, so that none lives off what another left in a cache, unless a shared
beginning is asked for. This file knows nothing of connections or of clocks.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kvik.bench.serve.target import Target

TEXT = (
    "river stone market winter garden paper engine window orange silver mountain letter bridge summer kitchen forest "
    "doctor pencil island morning yellow basket thunder harbor copper meadow candle station village teacher ribbon "
    "ocean planet hammer tunnel violin pepper castle mirror saddle"
)
WORDS = tuple(TEXT.split(" "))
PROBE_WORDS = (40, 160)
TOKENS_PER_WORD = 1.5
"""Where the server does not say."""


@dataclass(frozen=True)
class Form:
    """How requests are spelled."""

    model: str
    chat: bool = False
    stream: bool = True
    ignore_eos: bool = False
    temperature: float = 0.0
    top_token: int | None = None
    """Prompts are token ids from 0 to this one; None: prompts are text."""
    shared_words: int = 0
    """Words that all prompts begin with; token ids with `top_token`."""
    seed: int = 0
    logprobs: bool = False

    @property
    def path(self) -> str:
        """After the API's root."""
        return "/chat/completions" if self.chat else "/completions"

    def body(self, prompt: str | Sequence[int], output_len: int) -> dict[str, Any]:
        """The body of one request."""
        asked: Any = {"messages": [{"role": "user", "content": prompt}]} if self.chat else {"prompt": prompt}
        more: dict[str, Any] = {"ignore_eos": True} if self.ignore_eos else {}
        if self.stream:
            more |= {"stream": True, "stream_options": {"include_usage": True}}
        if self.logprobs:
            more |= {"logprobs": True} if self.chat else {"logprobs": 0}
        return {"model": self.model, "max_tokens": output_len, "temperature": self.temperature, **asked, **more}


@dataclass(frozen=True)
class Spelling:
    """Tokens of a text of words: `per_word` each, and `fixed` more, such as a chat template's."""

    per_word: float = TOKENS_PER_WORD
    fixed: float = 0.0

    @classmethod
    def of_probes(cls, short: int | None, long: int | None) -> Spelling:
        """From the tokens that texts of PROBE_WORDS took; a guess where they are not known."""
        few, many = PROBE_WORDS
        if short is None or long is None or long <= short:
            return cls()
        per_word = (long - short) / (many - few)
        return cls(per_word, max(0.0, short - per_word * few))

    def words(self, tokens: int) -> int:
        """How many words take about so many tokens; at least 1."""
        return max(1, round((tokens - self.fixed) / self.per_word))


@dataclass(frozen=True)
class Ask:
    """One request."""

    index: int
    offset_s: float | None
    """When it is to be sent, after the start; None: when a client is free."""
    input_len: int
    """Tokens, about."""
    output_len: int
    data: bytes = field(repr=False)


def make_prompt(form: Form, spelling: Spelling, index: int, input_len: int) -> str | list[int]:
    """The prompt of one request; of the same form, index and length always the same."""
    rng = random.Random(f"{form.seed}/{index}")
    if form.top_token is not None:
        shared = random.Random(form.seed)
        ids = [shared.randint(0, form.top_token) for _ in range(min(form.shared_words, max(input_len - 1, 0)))]
        return ids + [rng.randint(0, form.top_token) for _ in range(max(1, input_len - len(ids)))]
    words = spelling.words(input_len)
    shared_words = random.Random(form.seed).choices(WORDS, k=min(form.shared_words, words - 1))
    return " ".join([*shared_words, *rng.choices(WORDS, k=words - len(shared_words))])


def make_ask(
    target: Target, form: Form, spelling: Spelling, index: int, offset_s: float | None, lens: tuple[int, int]
) -> Ask:
    """One request, ready to be sent. `lens`: tokens in and out."""
    body = form.body(make_prompt(form, spelling, index, lens[0]), lens[1])
    return Ask(index, offset_s, lens[0], lens[1], target.post(form.path, body))


def probe_prompts(form: Form) -> list[str]:
    """Texts of PROBE_WORDS words, to see how many tokens they take."""
    rng = random.Random(f"{form.seed}/probe")
    return [" ".join(rng.choices(WORDS, k=count)) for count in PROBE_WORDS]
