"""The tokenizer of a Hugging Face directory as GGUF's metadata: the inverse of `gguf_vocab.py`.

llama.cpp cuts texts by rules that it knows by name. A tokenizer that follows none of them can still be written under
the name of the nearest, if the caller says which: its whole tokenizer.json then goes along, in the place that GGUF has
for it, and readers that take it lose nothing. This file knows nothing of how text is encoded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kvik.checkpoint.files import open_regular, read_json, shown
from kvik.checkpoint.gguf_splits import SPLITS, split_name
from kvik.checkpoint.gguf_vocab import (
    BYTE,
    CONTROL,
    ENDINGS,
    NORMAL,
    ROLES,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    merges_by_score,
)
from kvik.checkpoint.spec import DecoderSpec
from kvik.errors import CheckpointError, UnsupportedModelError

_FLAGS = ("lstrip", "rstrip", "single_word")
_UNREACHED = -1e9
"""Score of a token that no merge makes."""


def read_vocabulary(directory: Path, spec: DecoderSpec, pre: str | None = None) -> dict[str, Any]:
    """The `tokenizer.*` metadata of a directory. `pre` names a rule of llama.cpp for a tokenizer that has none.

    Raises CheckpointError, UnsupportedModelError for a tokenizer that GGUF cannot say.
    """
    path = directory / "tokenizer.json"
    described, config = read_json(path), _json_or_empty(directory / "tokenizer_config.json")
    try:
        metadata = _metadata(path, described, config, spec, pre) | _templates(directory, config)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is no tokenizer as the tokenizers library writes them: {error!r}") from error
    return {f"tokenizer.{key}": value for key, value in metadata.items()}


def _metadata(
    path: Path, described: dict[str, Any], config: dict[str, Any], spec: DecoderSpec, pre: str | None
) -> dict[str, Any]:
    """All but the chat templates, without `tokenizer.`."""
    model = described.get("model")
    if (
        not isinstance(model, dict)
        or model.get("type") not in (None, "BPE")
        or not isinstance(model.get("vocab"), dict)
    ):
        raise UnsupportedModelError(f"{path}: model is no BPE, which is not supported in GGUF; supported: BPE")
    tokens, types = _tokens(path, described, spec.vocab_size)
    merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model.get("merges", [])]
    bytes_apart = bool(model.get("byte_fallback"))
    own = _sentence_piece(tokens, types, merges) if bytes_apart else {"ggml.merges": [" ".join(m) for m in merges]}
    exact = _is_sentence_piece(described, own, tokens, types, merges) if bytes_apart else split_name(described)
    metadata = {
        "ggml.model": "llama" if bytes_apart else "gpt2",
        "ggml.pre": _rule(path, exact, pre, bytes_apart),
        "ggml.tokens": tokens,
        "ggml.token_type": types,
        **own,
        **_special(config, spec, tokens, types),
    }
    plain = _add_around(metadata, described, tokens) and not _has_flags(described)
    if bytes_apart:
        metadata["ggml.add_space_prefix"] = "Prepend" in json.dumps(described.get("normalizer"))
    if not exact or not plain:
        metadata["huggingface.json"] = json.dumps(described, ensure_ascii=False)
    return metadata


def special_ids(spec: DecoderSpec) -> dict[str, int]:
    """The `tokenizer.*` metadata of a model without a tokenizer: which tokens begin and end a text. Raises
    UnsupportedModelError for more than three that end one.
    """
    if len(spec.eos_ids) > 3:
        raise UnsupportedModelError(f"eos_token_id is {list(spec.eos_ids)}; supported in GGUF: three, and known names")
    roles = dict(zip(("eos", "eot", "eom"), spec.eos_ids, strict=False))
    roles |= {} if spec.bos_id is None else {"bos": spec.bos_id}
    return {f"tokenizer.ggml.{name}_token_id": token_id for name, token_id in roles.items()}


def _json_or_empty(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _tokens(path: Path, described: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Spelling and kind of each id; ids that nothing has fill the embedding."""
    byte_fallback = bool(described["model"].get("byte_fallback"))
    unknown = described["model"].get("unk_token")
    found: dict[int, tuple[str, int]] = {}
    for token, token_id in described["model"]["vocab"].items():
        is_byte = byte_fallback and len(token) == 6 and token.startswith("<0x")
        found[token_id] = token, BYTE if is_byte else NORMAL
    for added in described.get("added_tokens") or []:
        is_unknown = byte_fallback and added["content"] == unknown
        found[added["id"]] = (
            added["content"],
            (UNKNOWN if is_unknown else CONTROL if added.get("special") else USER_DEFINED),
        )
    if found and not 0 <= min(found) <= max(found) < rows:
        raise CheckpointError(f"{path} has token id {max(found)}; expected 0 to {rows - 1}, the rows of the embedding")
    filled = [found.get(i, (f"[PAD{i}]", UNUSED)) for i in range(rows)]
    return [token for token, _ in filled], [kind for _, kind in filled]


def _sentence_piece(tokens: list[str], types: list[int], merges: list[Any]) -> dict[str, Any]:
    """Scores such that the pair that merges first has the highest."""
    rank = {left + right: -float(i) for i, (left, right) in reversed(list(enumerate(merges)))}
    scores = [rank.get(token, _UNREACHED) if kind == NORMAL else 0.0 for token, kind in zip(tokens, types, strict=True)]
    return {"ggml.scores": scores}


def _is_sentence_piece(
    described: dict[str, Any], own: dict[str, Any], tokens: list[str], types: list[int], merges: list[Any]
) -> str | None:
    """A name if readers that have the scores alone cut and merge as this tokenizer does, None otherwise."""
    steps = described.get("normalizer") or {}
    plain = [step.get("type") for step in steps.get("normalizers", [steps])] in (["Prepend", "Replace"], ["Replace"])
    same = merges_by_score(tokens, types, own["ggml.scores"]) == merges
    return "default" if plain and described.get("pre_tokenizer") is None and same else None


def _rule(path: Path, exact: str | None, pre: str | None, bytes_apart: bool) -> str:
    if pre is not None and pre not in SPLITS:
        raise CheckpointError(f"pre is {shown(pre)}; expected one of {', '.join(SPLITS)}")
    if exact is None and pre is None:
        what = "normalizes and merges" if bytes_apart else "cuts texts"
        raise UnsupportedModelError(
            f"{path} {what} in a way that GGUF has no name for; name the nearest with `pre` to write it with its "
            f"tokenizer.json: {', '.join(SPLITS)}"
        )
    return exact or str(pre)


def _has_flags(described: dict[str, Any]) -> bool:
    """Whether added tokens reach around themselves in ways that GGUF does not say."""
    return any(added.get(flag) for added in described.get("added_tokens") or [] for flag in _FLAGS)


def _special(config: dict[str, Any], spec: DecoderSpec, tokens: list[str], types: list[int]) -> dict[str, Any]:
    """Ids by role. End tokens beyond the first that readers do not know by their names are eot and eom."""
    ids = {token: i for i, token in enumerate(tokens)}
    roles = {}
    for role, name in ROLES.items():
        token = config.get(f"{role}_token")
        spelled = token.get("content") if isinstance(token, dict) else token
        if isinstance(spelled, str) and spelled in ids:
            roles[name] = ids[spelled]
    if spec.bos_id is not None:
        roles.setdefault("bos", spec.bos_id)
    if UNKNOWN in types:
        roles["unknown"] = types.index(UNKNOWN)
    if spec.eos_ids:
        roles["eos"] = spec.eos_ids[0]
    more = [i for i in spec.eos_ids[1:] if types[i] != CONTROL or tokens[i] not in ENDINGS]
    if len(more) > 2:
        raise UnsupportedModelError(f"eos_token_id is {list(spec.eos_ids)}; supported in GGUF: three, and known names")
    roles |= dict(zip(("eot", "eom"), more, strict=False))
    return {f"ggml.{name}_token_id": token_id for name, token_id in roles.items()}


def _add_around(metadata: dict[str, Any], described: dict[str, Any], tokens: list[str]) -> bool:
    """Add whether a token is put before and behind every text; returns whether that says it all."""
    section = described.get("post_processor") or {}
    steps = section.get("processors", [section])
    single: list[Any] = next((step["single"] for step in steps if step.get("type") == "TemplateProcessing"), [])
    said = [part for part in single if "Sequence" in part]
    for role, part in (("bos", single[:1]), ("eos", single[-1:])):
        found = [tokens.index(each["SpecialToken"]["id"]) for each in part if "SpecialToken" in each]
        metadata[f"ggml.add_{role}_token"] = bool(found)
        if found and metadata.setdefault(f"ggml.{role}_token_id", found[0]) == found[0]:
            said += part
    return len(said) == len(single)


def _templates(directory: Path, config: dict[str, Any]) -> dict[str, str]:
    """The chat templates, as tokenizer_config.json or chat_template.jinja have them."""
    declared = config.get("chat_template")
    found: dict[str, str] = {"default": declared} if isinstance(declared, str) else {}
    for entry in declared if isinstance(declared, list) else []:
        found[str(entry["name"])] = str(entry["template"])
    single = directory / "chat_template.jinja"
    if single.exists():
        with open_regular(single) as file:
            found["default"] = file.read().decode("utf-8")
    return {("chat_template" if name == "default" else f"chat_template.{name}"): text for name, text in found.items()}
