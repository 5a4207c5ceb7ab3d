"""Asks: random requests, how their client behaves, and what must come back to the last character.

What must come back is computed from the tokens of the prompt by the fake model's definition; detokenizing, stop
strings and counting are done here once more in the most obvious way. Every prompt holds a number of its own, so
an answer that belongs to another request is a wrong one. Knows nothing of HTTP.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from kvik.checkpoint import fake
from kvik.checkpoint.fake import FakeOptions
from kvik.request import MASK64, choice_seed
from kvik.runners.fake import fake_answer
from kvik.runners.fake.oracle import END_IDS

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MODEL = "fake"
LENGTHS = (1, 60)
"""Of the answers of the model that is asked."""
SHARED = [("a beginning that several have in common, " * 9)[: 30 * n] for n in range(5)]
STOPS = ["na,", "ba", " du", "zo", "li. ", "né", "日本", "\n", "e\u0301 b", "ra!"]


@dataclass(frozen=True)
class Expected:
    """One choice."""

    text: str
    finish_reason: str
    num_tokens: int
    """The one that ended it included."""
    uncut: str
    """What it would be without stop strings."""


@dataclass(frozen=True)
class Ask:
    """A request and its client."""

    path: str
    body: dict[str, Any]
    prompts: Sequence[Sequence[int]]
    """Token ids, as the model must see them."""
    leaves_after: int | None = None
    """Events, if it streams, or else milliseconds, after which the client is gone; None: it stays."""
    resets: bool = False
    timeout_s: float | None = None
    """In x-request-timeout."""
    fault: str | None = None
    """raise or nan, if the prompt asks for it."""
    options: FakeOptions = field(default=FakeOptions(length=LENGTHS))

    @property
    def streams(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def num_prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))

    @cached_property
    def expected(self) -> list[Expected]:
        """Every choice, prompt by prompt, if nothing goes wrong."""
        return [self._choice(prompt, n) for prompt in self.prompts for n in range(self.body.get("n", 1))]

    def _choice(self, prompt: Sequence[int], index: int) -> Expected:
        seed = choice_seed(self.body.get("seed", 0) & MASK64, index)
        stop_ids = frozenset(self.body.get("stop_token_ids", ())) | (
            frozenset() if self.body.get("ignore_eos") else END_IDS
        )
        answer = fake_answer(
            prompt,
            self.body["max_tokens"],
            seed=seed if self.body["temperature"] else None,
            min_tokens=self.body.get("min_tokens", 0),
            stop_ids=stop_ids,
            options=self.options,
        )
        return cut(answer, stop_ids, self.body.get("stop", ()))


def cut(answer: Sequence[int], stop_ids: frozenset[int], stops: Sequence[str]) -> Expected:
    """An answer as its reader must see it: before the earliest stop string, or whole without its stop token."""
    stopped = answer[-1] in stop_ids
    shown = answer[:-1] if stopped else answer
    for count in range(1, len(shown) + 1) if stops else ():
        text = spell(shown[:count]).rstrip("\ufffd")
        found = [place for place in map(text.find, stops) if place >= 0]
        if found and not may_begin_before(min(found), text, stops):
            return Expected(text[: min(found)], "stop", count, spell(shown))
        if found and count == len(shown):
            return Expected(text[: min(found)], "stop", len(answer), spell(shown))
    text = spell(shown)
    return Expected(text, "stop" if stopped else "length", len(answer), text)


def may_begin_before(place: int, text: str, stops: Sequence[str]) -> bool:
    """Whether the end of a text may still become a stop string that starts before this place, and so wins."""
    return any(stop.startswith(text[start:]) for start in range(place) for stop in stops)


def spell(token_ids: Sequence[int]) -> str:
    """The text of pieces; half a character is U+FFFD. Special tokens are not shown."""
    data = b"".join(
        fake.PIECES[token - fake.FIRST_PIECE] if token >= fake.FIRST_PIECE else bytes([token])
        for token in token_ids
        if token < fake.END_OF_TEXT
    )
    return data.decode("utf-8", "replace")


def chat_ids(text: str) -> list[int]:
    """What the model sees of a conversation of one turn: ChatML."""
    turn = [fake.IM_START, *b"user\n", *text.encode(), fake.IM_END, *b"\n"]
    return [*turn, fake.IM_START, *b"assistant\n"]


def make_ask(text: str, *, chat: bool = False, **fields: Any) -> Ask:
    """A greedy request of one choice, unless the fields say otherwise; `client_...` fields are the client's."""
    client = {name.removeprefix("client_"): fields.pop(name) for name in list(fields) if name.startswith("client_")}
    body: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 40} | fields
    if chat:
        return Ask(CHAT, body | {"messages": [{"role": "user", "content": text}]}, [chat_ids(text)], **client)
    return Ask(COMPLETIONS, body | {"prompt": text}, [list(text.encode())], **client)


def random_ask(rng: random.Random, number: int, faults: bool = True) -> Ask:
    """Any kind of request, from any kind of client. With `faults` some ask the model to fail."""
    fate = rng.choices(["stay", "leave", "late", "fault"], [80, 14, 3, 3 if faults else 0])[0]
    fault = rng.choice(["raise", "nan"]) if fate == "fault" else None
    text = f"{rng.choice(SHARED)}number {number}" + (f" [[{fault}@{rng.choice([1, 2, 9])}]]" if fault else "")
    streams = rng.random() < 0.75
    ask = make_ask(
        text,
        chat=rng.random() < 0.5,
        **_fields(rng, streams),
        client_leaves_after=rng.randrange(12) if fate == "leave" else None,
        client_resets=rng.random() < 0.5,
        client_timeout_s=rng.choice([0.001, 0.02, 0.1]) if fate == "late" else None,
        client_fault=fault,
    )
    if ask.path == COMPLETIONS and not fault and rng.random() < 0.2:
        return _with_several_prompts(ask, rng)
    return ask


def _fields(rng: random.Random, streams: bool) -> dict[str, Any]:
    n, max_tokens = rng.choice([1, 1, 1, 2, 3]), rng.randint(1, 60)
    fields: dict[str, Any] = {"max_tokens": max_tokens, "n": n, "stream": streams}
    if n > 1 or rng.random() < 0.5:
        fields |= {"temperature": rng.choice([0.3, 1.0, 2.0]), "seed": rng.randrange(-(2**63), 2**63)}
    if rng.random() < 0.3:
        fields["stop"] = rng.sample(STOPS, rng.randint(1, 4))
    if rng.random() < 0.1:
        fields["stop_token_ids"] = rng.sample(range(fake.FIRST_PIECE, fake.END_OF_TEXT), 10)
    if rng.random() < 0.1:
        fields["min_tokens"] = rng.randint(0, max_tokens)
    if rng.random() < 0.1:
        fields["ignore_eos"] = True
    if streams and rng.random() < 0.5:
        fields["stream_options"] = {"include_usage": True}
    return fields


def _with_several_prompts(ask: Ask, rng: random.Random) -> Ask:
    """The same with two to four prompts, half of the time as token ids."""
    texts = [f"{ask.body['prompt']} part {part}" for part in range(rng.randint(2, 4))]
    prompts = [list(text.encode()) for text in texts]
    body = ask.body | {"prompt": prompts if rng.random() < 0.5 else texts}
    return Ask(ask.path, body, prompts, ask.leaves_after, ask.resets, ask.timeout_s)
