"""A request for a completion, from a JSON object to a checked `CompletionCall`.

A prompt is text or token ids, and there may be many. `max_tokens` may be 0, which with `echo` and `logprobs` scores
the prompt: the engine draws at least one token, so the call asks it for one and says that it is to be dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvik.engine.admission import no_room
from kvik.request import SamplingParams
from kvik.server.protocol.errors import CONTEXT_LENGTH, bad_request
from kvik.server.protocol.fields import (
    MAX_TOKENS,
    PRIORITY,
    ignored_fields,
    read_model,
    read_sampling,
    read_stream,
    refuse_unsupported,
)
from kvik.server.protocol.readers import are_token_ids, expected, flag, listed, optional, required, whole
from kvik.server.protocol.structure import Structure, read_structure
from kvik.server.protocol.terms import Terms, too_long

OWN = ("prompt", "max_tokens", "logprobs", "priority")
HONOURED = ("echo", "add_special_tokens")
MAX_PROMPTS = 1024
MAX_TOP = 5
DEFAULT_MAX_TOKENS = 16

Prompt = str | list[int]


@dataclass(frozen=True)
class CompletionCall:
    """One request for completions: `params.n` choices of every prompt, numbered prompt by prompt."""

    model: str
    prompts: list[Prompt]
    params: SamplingParams
    scoring: bool = False
    """The one token that is generated is not part of the answer and is not counted."""
    echo: bool = False
    add_special_tokens: bool = True
    """Whether text prompts get the tokens that a model wants around every text."""
    structure: Structure | None = None
    stream: bool = False
    include_usage: bool = False
    priority: int = 0
    ignored: tuple[str, ...] = ()

    @property
    def param_names(self) -> dict[str, str]:
        """What the engine's parameters are called in this call."""
        return {"grammar": self.structure.param} if self.structure else {}


def read_completion(body: dict[str, Any], terms: Terms) -> CompletionCall:
    """The call in a body. Raises ApiError."""
    model = read_model(body)
    prompts = _read_prompts(body, terms)
    refuse_unsupported(body, HONOURED)
    echo = optional(body, "echo", flag, False)
    max_tokens = optional(body, "max_tokens", whole(0, MAX_TOKENS), DEFAULT_MAX_TOKENS)
    logprobs = optional(body, "logprobs", whole(0, MAX_TOP))
    settled = {
        "max_tokens": max(1, max_tokens),
        "logprobs": logprobs,
        "prompt_logprobs": logprobs if echo else None,
    }
    params = read_sampling(body, terms, **settled)
    _check_choices(len(prompts), params.n, terms)
    stream, include_usage = read_stream(body)
    return CompletionCall(
        model=model,
        prompts=prompts,
        params=params,
        scoring=max_tokens == 0,
        echo=echo,
        add_special_tokens=optional(body, "add_special_tokens", flag, True),
        structure=read_structure(body),
        stream=stream,
        include_usage=include_usage,
        priority=optional(body, "priority", PRIORITY, 0),
        ignored=ignored_fields(body, OWN),
    )


def _check_choices(num_prompts: int, n: int, terms: Terms) -> None:
    if num_prompts * n > terms.max_choices:
        raise bad_request(f"{num_prompts} prompts with n {n} are {num_prompts * n} choices; expected at most "
                          f"{terms.max_choices}", "n")  # fmt: skip


def _read_prompts(body: dict[str, Any], terms: Terms) -> list[Prompt]:
    prompts: list[Prompt] = required(body, "prompt", _prompts)
    chars = sum(len(prompt) for prompt in prompts if isinstance(prompt, str))
    if chars > terms.max_text_chars:
        raise too_long("prompt has", chars, terms, "prompt")
    for prompt in prompts:
        if isinstance(prompt, list):
            _check_ids(prompt, terms)
    return prompts


def _check_ids(prompt: list[int], terms: Terms) -> None:
    if len(prompt) >= terms.max_model_len:
        raise bad_request(no_room(len(prompt), terms.max_model_len), "prompt", CONTEXT_LENGTH)
    if not are_token_ids(prompt, terms.vocab_size):
        wrong = next(item for item in prompt if not are_token_ids([item], terms.vocab_size))
        raise expected(wrong, "prompt", f"token ids, whole numbers from 0 to {terms.vocab_size - 1}")


def _prompts(value: Any, param: str) -> list[Prompt]:
    """One prompt or many; a list that does not begin with a string or a list is one prompt of token ids."""
    if isinstance(value, str):
        return [_prompt(value, param)]
    if not isinstance(value, list):
        raise expected(value, param, "a string, token ids, or a list of either")
    if not value or not isinstance(value[0], (str, list)):
        return [_prompt(value, param)]
    listed(value, param, 1, MAX_PROMPTS, "prompts")
    if len({type(prompt) for prompt in value}) > 1:
        raise bad_request("prompt mixes text and token ids; expected one kind", param)
    return [_prompt(prompt, param) for prompt in value]


def _prompt(value: Any, param: str) -> Prompt:
    if not value:
        raise bad_request("prompt is empty; expected at least 1 token", param)
    prompt: Prompt = value
    return prompt
