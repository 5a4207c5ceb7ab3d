"""What users pass as prompts, made into token ids.

A prompt is a str, a list of token ids, or a dict with `prompt` or `prompt_token_ids`. Whether the ids fit the model is
not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvik.engine.admission import shown
from kvik.errors import InvalidRequestError
from kvik.request import SamplingParams
from kvik.text.tokenizer import Tokenizer

EXPECTED = "expected a str, a list of token ids, or a dict with `prompt` or `prompt_token_ids`"


@dataclass(frozen=True)
class Prompt:
    """One prompt: its token ids, and its text if it was given as text."""

    token_ids: Any
    text: str | None = None


def as_prompts(prompts: Any) -> list[Any]:
    """The prompts of a call, one or many. A list whose first item is no str, list or dict is one list of token ids."""
    if isinstance(prompts, (str, dict)) or not isinstance(prompts, (list, tuple)):
        return [prompts]
    is_many = not prompts or isinstance(prompts[0], (str, dict, list, tuple)) or hasattr(prompts[0], "tolist")
    return list(prompts) if is_many else [prompts]


def as_conversations(messages: Any) -> list[Any]:
    """The conversations of a call: one list of messages, or a list of such lists."""
    is_many = isinstance(messages, (list, tuple)) and bool(messages) and isinstance(messages[0], (list, tuple))
    return list(messages) if is_many else [messages]


def as_params(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    """Sampling parameters for `count` prompts: one for all, or one each. Raises InvalidRequestError."""
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if not isinstance(params, (list, tuple)) or not all(isinstance(each, SamplingParams) for each in params):
        raise InvalidRequestError(
            f"sampling_params is {shown(params)}; expected a SamplingParams or a list of them", param="sampling_params"
        )
    if len(params) != count:
        raise InvalidRequestError(
            f"sampling_params has {len(params)} items; expected one for each of the {count} prompts",
            param="sampling_params",
        )
    return list(params)


def encode_prompt(prompt: Any, tokenizer: Tokenizer | None) -> Prompt:
    """Token ids of one prompt; special tokens are added to text as the tokenizer says. Raises InvalidRequestError."""
    if isinstance(prompt, dict):
        prompt = _from_dict(prompt)
    if not isinstance(prompt, str):
        if not isinstance(prompt, (list, tuple)) and not hasattr(prompt, "tolist"):
            raise InvalidRequestError(f"prompt is {shown(prompt)}; {EXPECTED}", param="prompt")
        return Prompt(prompt)
    if tokenizer is None:
        raise InvalidRequestError(
            f"prompt is {shown(prompt)}; expected token ids, because this model has no tokenizer", param="prompt"
        )
    return Prompt(tokenizer.encode(prompt), prompt)


def _from_dict(prompt: dict[str, Any]) -> Any:
    present = [name for name in ("prompt", "prompt_token_ids") if prompt.get(name) is not None]
    unknown = sorted(map(str, set(prompt) - {"prompt", "prompt_token_ids"}))
    if unknown or len(present) != 1:
        raise InvalidRequestError(
            f"prompt is a dict with the keys {sorted(map(str, prompt))}; expected `prompt` or `prompt_token_ids`",
            param="prompt",
        )
    return prompt[present[0]]
