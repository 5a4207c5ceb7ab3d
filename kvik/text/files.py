"""The small JSON files beside a tokenizer.json: which tokens begin and end a text, and the chat templates.

Hugging Face spreads these over tokenizer_config.json, special_tokens_map.json, generation_config.json, config.json and
*.jinja files; each may be missing, none may be corrupt. Knows nothing of how text is encoded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvik.errors import CheckpointError

MAX_BYTES = 64 * 2**20


def read_text(path: Path) -> str | None:
    """A text file's contents; None if there is none. Raises CheckpointError naming the file."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes; expected at most {MAX_BYTES}")
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file. Raises CheckpointError naming the file."""
    text = read_text(path)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}; expected a JSON object")
    return value


def _spelling(token: Any) -> str | None:
    """A token is written as its text or as an object with its text as `content`."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _ids(value: Any, path: Path, field: str) -> list[int]:
    """Token ids written as one number, a list, or null. Raises CheckpointError."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    for token_id in ids:
        if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < 2**31:
            raise CheckpointError(f"{path} has {field} {value!r}; expected token ids")
    return ids


@dataclass(frozen=True)
class TokenizerFiles:
    """What the files of one directory say."""

    directory: Path
    tokenizer_config: dict[str, Any]
    special_tokens_map: dict[str, Any]
    generation_config: dict[str, Any]
    config: dict[str, Any]

    @classmethod
    def read(cls, directory: Path) -> TokenizerFiles:
        """Read what is there. Raises CheckpointError naming the file at fault."""
        names = ("tokenizer_config", "special_tokens_map", "generation_config", "config")
        return cls(directory, *(read_json(directory / f"{name}.json") for name in names))

    def special_tokens(self) -> dict[str, Any]:
        """Special tokens by role (`bos_token`, ..) as templates see them; tokenizer_config.json has the last word."""
        tokens: dict[str, Any] = {}
        for source in (self.special_tokens_map, self.tokenizer_config):
            for role, token in source.items():
                if role.endswith("_token") and (spelling := _spelling(token)) is not None:
                    tokens[role] = spelling
                elif role in ("additional_special_tokens", "extra_special_tokens") and isinstance(token, list):
                    tokens[role] = [spelling for item in token if (spelling := _spelling(item)) is not None]
        return tokens

    def ids(self, file: str, field: str) -> list[int]:
        """Token ids named in generation_config or config."""
        return _ids(getattr(self, file).get(field), self.directory / f"{file}.json", field)

    def chat_templates(self) -> dict[str, str]:
        """Template sources by name; files of their own come before tokenizer_config.json. Raises CheckpointError."""
        sources = self._declared_templates()
        for path in sorted((self.directory / "additional_chat_templates").glob("*.jinja")):
            sources[path.stem] = read_text(path) or ""
        single = read_text(self.directory / "chat_template.jinja")
        return sources if single is None else sources | {"default": single}

    def _declared_templates(self) -> dict[str, str]:
        """tokenizer_config.json holds one template or a list of named ones."""
        declared = self.tokenizer_config.get("chat_template")
        if declared is None or isinstance(declared, str):
            return {} if declared is None else {"default": declared}
        sources = {}
        for entry in declared if isinstance(declared, list) else [declared]:
            name, source = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
            if not isinstance(name, str) or not isinstance(source, str):
                path = self.directory / "tokenizer_config.json"
                raise CheckpointError(f"{path} has a chat_template that is neither a string nor a list of named ones")
            sources[name] = source
        return sources
