"""Models by hub id, `org/name` or `org/name@revision`, downloaded with huggingface_hub into its own cache.

The config comes first, so that a model Kvik does not do is refused before gigabytes travel. huggingface_hub is
imported when it is needed and not before. This file knows nothing of what is in the files.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from kvik.checkpoint.files import shown
from kvik.errors import CheckpointError

FILES = (
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("tokenizer*", "special_tokens_map.json", "chat_template*"),
)
"""What a model needs of a repository."""
OTHER_FILES = ("*/*", "consolidated*")
"""What matches FILES and is not needed: subfolders and Mistral's second copy of its weights."""
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_HUB_ID = re.compile(rf"({_NAME}/{_NAME})(?:@([A-Za-z0-9][A-Za-z0-9._/-]*))?")


def is_hub_id(model: str) -> bool:
    """Whether this is spelled `org/name` or `org/name@revision`."""
    match = _HUB_ID.fullmatch(model)
    return bool(match) and ".." not in model and "--" not in model.partition("@")[0]


def download(model: str, check: Callable[[Path], object]) -> Path:
    """The local directory of a hub model, downloaded if it is not in the cache, with a progress bar.

    `check` is called with the directory when only its config is there; what it raises ends the download. Raises
    CheckpointError for a bad id, a model that is not there, or no connection.
    """
    if not is_hub_id(model):
        raise CheckpointError(f"{shown(model)} is not a hub id; expected org/name or org/name@revision")
    repo, _, revision = model.partition("@")
    check(_snapshot(repo, revision or None, ("config.json",)))
    return _snapshot(repo, revision or None, FILES)


def _snapshot(repo: str, revision: str | None, files: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            repo, revision=revision, allow_patterns=list(files), ignore_patterns=list(OTHER_FILES)
        )
    except Exception as error:
        # Its errors come from several libraries and change between versions; all of them mean: not to be had.
        raise CheckpointError(f"{repo} cannot be had from the hub: {_reason(error, revision)}") from error
    return Path(found)


_REASONS = {
    "GatedRepoError": "its owner gives access on request; ask on its page, then log in with `hf auth login`",
    "RepositoryNotFoundError": "no such repository, or it is private",
    "RevisionNotFoundError": "no such revision",
    "OfflineModeIsEnabled": "offline mode is on and it is not in the cache",
    "LocalEntryNotFoundError": "no connection, and it is not in the cache",
}


def _reason(error: Exception, revision: str | None) -> str:
    for kind in type(error).__mro__:
        if kind.__name__ in _REASONS:
            reason = _REASONS[kind.__name__]
            return f"{reason} ({revision})" if revision and "revision" in reason else reason
    first_line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line}"
