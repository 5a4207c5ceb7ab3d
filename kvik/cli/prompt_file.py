"""Prompt files: plain text with one prompt a line, or JSON lines. This file knows nothing of models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kvik.cli.session import read_text
from kvik.errors import InvalidRequestError

EXPECTED = "expected an object with `prompt` or `prompt_token_ids`"


def read_prompts(path: Path) -> list[Any]:
    """The prompts of a file, in order; empty lines are skipped.

    JSON lines if the name ends in .jsonl or .json, or if the first line is a JSON object; otherwise every line is a
    prompt. Raises InvalidRequestError naming file and line.
    """
    lines = [(number, line) for number, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]
    if not lines:
        raise InvalidRequestError(f"{path} holds no prompt", param="input")
    if path.suffix in (".jsonl", ".json") or _is_object(lines[0][1]):
        return [_parse(path, number, line) for number, line in lines]
    return [line for _, line in lines]


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InvalidRequestError(f"{path}, line {number} is not JSON: {error}; {EXPECTED}", param="input") from error
    if not isinstance(value, dict) or not value.keys() & {"prompt", "prompt_token_ids"}:
        raise InvalidRequestError(f"{path}, line {number}: {EXPECTED}", param="input")
    return value
