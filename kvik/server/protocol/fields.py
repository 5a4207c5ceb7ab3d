"""The fields that requests for text have in common, as tables: how each is read and what it is when it is not given.

Three kinds of fields. Those honoured have a reader and a default, and null means the default. Those that would change
the answer and are not honoured may only ask for what happens anyway; otherwise they are refused by name. Those that
only advise are checked for their type and change nothing. Whatever is in no table is ignored, and its name collected.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from kvik.errors import InvalidRequestError
from kvik.request import SamplingParams
from kvik.server.protocol import structure
from kvik.server.protocol.errors import bad_request, from_exception, shown
from kvik.server.protocol.readers import (
    INT64,
    MAX_TOKEN_ID,
    Reader,
    an_object,
    flag,
    number,
    one_of,
    optional,
    required,
    strings,
    text,
    token_ids,
    whole,
)
from kvik.server.protocol.terms import Terms

MAX_TOKENS = 2**31 - 1
MAX_BIASES = 1024
MAX_MODEL_CHARS = 256
MAX_IGNORED = 16
_TOKEN_ID = re.compile(r"[0-9]{1,10}")


def _logit_bias(value: Any, param: str) -> dict[int, float]:
    if len(an_object(value, param)) > MAX_BIASES:
        raise bad_request(f"{param} has {len(value)} entries; expected at most {MAX_BIASES}", param)
    wrong = next((key for key in value if not _TOKEN_ID.fullmatch(key) or int(key) > MAX_TOKEN_ID), None)
    if wrong is not None:
        raise bad_request(f"{param} has the key {shown(wrong)}; expected token ids", param)
    bias = number(-100, 100)
    return {int(key): bias(amount, param) for key, amount in value.items()}


Table = Mapping[str, tuple[Reader, Any]]

SAMPLING: Table = {
    "n": (whole(1, 128), 1),
    "temperature": (number(0, 2), 1.0),
    "top_p": (number(0, 1, above=True), 1.0),
    "top_k": (whole(-1, MAX_TOKENS), 0),
    "min_p": (number(0, 1), 0.0),
    "repetition_penalty": (number(0.001, 1000), 1.0),
    "presence_penalty": (number(-2, 2), 0.0),
    "frequency_penalty": (number(-2, 2), 0.0),
    "seed": (whole(-INT64, INT64 - 1), None),
    "stop": (strings(1, 4, 1024), ()),
    "stop_token_ids": (token_ids(256), ()),
    "min_tokens": (whole(0, MAX_TOKENS), 0),
    "ignore_eos": (flag, False),
    "logit_bias": (_logit_bias, {}),
    "deadline_s": (number(0.001, 86_400), None),
}
"""By the names of SamplingParams, which are those of the API."""

PRIORITY = whole(-100, 100)
"""Lower is served first."""

ONLY: Mapping[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "echo": (False,),
    "add_special_tokens": (False,),
    "use_beam_search": (False,),
    "skip_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "truncate_prompt_tokens": (),
    "prompt_logprobs": (),
    "prompt_embeds": (),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "logits_processors": ([],),
    "structured_outputs": (),
    "guided_whitespace_pattern": (),
    "regex": (),
    "ebnf": (),
    "json_schema": (),
    "grammar": (),
    "cache_salt": (),
    "documents": ([],),
    "chat_template": (),
    "audio": (),
    "modalities": (["text"],),
    "functions": ([],),
    "function_call": ("none",),
    "web_search_options": (),
    "moderation": (),
}
"""Fields that are not honoured, and the values that ask for nothing."""

ADVISORY: Mapping[str, Reader] = {
    "user": text(1024),
    "safety_identifier": text(1024),
    "prompt_cache_key": text(1024),
    "prompt_cache_retention": text(64),
    "prompt_cache_options": an_object,
    "service_tier": text(64),
    "metadata": an_object,
    "store": flag,
    "verbosity": one_of("low", "medium", "high"),
    "prediction": an_object,
}


def read_model(body: dict[str, Any]) -> str:
    """The name of the model asked for; whether it is served is looked up elsewhere."""
    name: str = required(body, "model", text(MAX_MODEL_CHARS, empty=False))
    return name


def refuse_unsupported(body: dict[str, Any], honoured: Collection[str]) -> None:
    """Raise ApiError for a field that would change the answer and that this endpoint does not honour."""
    for name, allowed in ONLY.items():
        value = body.get(name)
        asks = value is not None and not any(value == only and type(value) is type(only) for only in allowed)
        if asks and name not in honoured:
            raise bad_request(f"{name} is not supported here; leave it out", name)
    best_of = optional(body, "best_of", whole(0, 128))
    if best_of is not None and best_of != (body.get("n") or 1):
        raise bad_request(f"best_of is {best_of}; expected the same as n, or nothing", "best_of")


def read_sampling(body: dict[str, Any], terms: Terms, **settled: Any) -> SamplingParams:
    """How tokens are drawn. `settled` are the parameters that each endpoint reads in its own way."""
    defaults = terms.sampling_defaults
    read = {name: optional(body, name, reader, defaults.get(name, d)) for name, (reader, d) in SAMPLING.items()}
    if read["n"] > 1 and read["temperature"] == 0:
        why = "temperature 0" if body.get("temperature") is not None else "temperature 0, this model's default"
        raise bad_request(f"n is {read['n']} with {why}; expected 1, since all choices would be equal", "n")
    for name in ("logit_bias", "stop_token_ids"):
        beyond = max(read[name], default=0)
        if beyond >= terms.vocab_size:
            raise bad_request(f"{name} has token id {beyond}; the model has {terms.vocab_size}", name)
    try:
        return SamplingParams(**read, **settled)
    except InvalidRequestError as error:
        raise from_exception(error) from None


def read_stream(body: dict[str, Any]) -> tuple[bool, bool]:
    """Whether to stream, and whether usage ends the stream."""
    stream = optional(body, "stream", flag, False)
    options = optional(body, "stream_options", an_object)
    if options is None:
        return stream, False
    if not stream:
        raise bad_request("stream_options is given without stream; expected stream to be true", "stream_options")
    optional(options, "include_obfuscation", flag, path="stream_options.")
    return stream, optional(options, "include_usage", flag, False, "stream_options.")


def ignored_fields(body: dict[str, Any], own: Collection[str]) -> tuple[str, ...]:
    """Check what only advises, and name what nobody knows, a few names for a log."""
    for name, reader in ADVISORY.items():
        optional(body, name, reader)
    known = {*SAMPLING, *ONLY, *ADVISORY, *structure.FIELDS, *own, "model", "n", "best_of", "stream", "stream_options"}
    return tuple(shown(name) for name in sorted(body.keys() - known)[:MAX_IGNORED])
