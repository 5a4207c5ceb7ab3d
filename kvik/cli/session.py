"""What generate, chat and eval share: a loaded model, streamed outputs, files read with clear errors.

This file knows nothing of flags and prints nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
        name = llm.engine.config.model.model
        raise InvalidRequestError(
            f"model {name} has no tokenizer; expected one that reads and writes text", param="model"
        )
    return llm.tokenizer


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
