"""What generate, chat and eval share: a loaded model, streamed outputs, files read with clear errors.

This file prints nothing; of flags it knows only which were left alone, since a model may have defaults of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from kvik.errors import InvalidRequestError

if TYPE_CHECKING:
    from kvik import LLM
    from kvik.request import RequestOutput, SamplingParams
    from kvik.text.tokenizer import Tokenizer


@contextmanager
def open_llm(engine: dict[str, Any]) -> Iterator[LLM]:
    """A loaded model, freed at the end."""
    from kvik import LLM

    with LLM(**engine) as llm:
        yield llm


def require_tokenizer(llm: LLM) -> Tokenizer:
    """The model's tokenizer. Raises InvalidRequestError for a model without text."""
    if llm.tokenizer is None:
        raise InvalidRequestError(
            f"model {llm.engine.memory.model} has no tokenizer; expected one that reads and writes text", param="model"
        )
    return llm.tokenizer


def require_chat_template(llm: LLM, instead: str) -> Tokenizer:
    """The model's tokenizer. Raises InvalidRequestError for one without a chat template, saying what to do instead."""
    tokenizer = require_tokenizer(llm)
    if not tokenizer.has_chat_template:
        raise InvalidRequestError(f"model {llm.engine.memory.model} has no chat template; {instead}", param="model")
    return tokenizer


def suited(params: SamplingParams, llm: LLM) -> SamplingParams:
    """The parameters of this command line, and for flags that were left alone what the model's generation_config.json
    says; the model in the box, whose answers are right or wrong, asks for temperature 0 there.
    """
    source = click.get_current_context().get_parameter_source
    defaults: Mapping[str, Any] = llm.tokenizer.sampling_defaults if llm.tokenizer else {}
    left_alone = {name: value for name, value in defaults.items() if source(name) is ParameterSource.DEFAULT}
    return replace(params, **left_alone)


def stream(llm: LLM, prompt: Any, params: SamplingParams) -> Iterator[RequestOutput]:
    """One request, given out every time it moved, with all it has so far. Raises what made it fail.

    Whoever leaves early closes the model, which aborts what is unfinished.
    """
    llm.add_request(prompt, params)
    while llm.has_unfinished():
        for output in llm.step():
            yield output
            if output.error is not None:
                raise output.error


def read_text(path: Path) -> str:
    """A text file, UTF-8. Raises InvalidRequestError naming the file."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{path} is not UTF-8 text: byte {error.start} is {error.reason}") from error
    except OSError as error:
        raise InvalidRequestError(f"{path} cannot be read: {error.strerror}") from error
