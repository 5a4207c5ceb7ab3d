"""The tokenizer in a GGUF file's metadata, as the files that would lie beside a model in Hugging Face layout.

Two kinds of vocabulary are read: byte-level BPE (`gpt2`: tokens and merges) and SentencePiece (`llama`: tokens and
scores, where a pair merges whose joined piece has the higher score). Both become the JSON of a tokenizer.json, which
is what the `tokenizers` library takes; a file that brings that JSON itself is believed. What is asked for and not done
is refused by name. This file knows nothing of how text is encoded.
"""

from __future__ import annotations

from typing import Any

from kvik.checkpoint.families.fields import Fields
from kvik.checkpoint.files import parse_object, shown
from kvik.checkpoint.gguf_splits import SPLITS, normalizer_of, pre_tokenizer_of
from kvik.errors import CheckpointError, UnsupportedModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Of `ggml.token_type`."""
ENDINGS = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>")
"""Control tokens that end an answer wherever they occur: a file names one of them, models use more."""
SPACE = "▁"
MAX_PIECE = 1024
"""Characters of a SentencePiece token; all its halves are looked up."""
_LIST = "a list with one entry for each token"


def tokenizer_files(file: str, metadata: dict[str, Any], eos_ids: tuple[int, ...]) -> dict[str, Any] | None:
    """`tokenizer`, `tokenizer_config`, `generation_config` (JSON each) and `chat_templates` (by name); None for a file
    without a tokenizer. `metadata` are lists, strings and numbers by their keys without `tokenizer.`.

    Raises CheckpointError, UnsupportedModelError naming file and key.
    """
    fields = Fields(file, metadata, "tokenizer.")
    model = fields.get("ggml.model")
    if model in (None, "none", "no_vocab"):
        return None
    if model not in ("gpt2", "llama"):
        raise fields.unsupported("ggml.model", "gpt2, llama")
    tokens = _tokens(fields)
    types = _types(fields, len(tokens))
    special = {
        role: fields.whole_or_none(f"ggml.{name}_token_id", 0, len(tokens) - 1, None) for role, name in ROLES.items()
    }
    given = fields.get("huggingface.json")
    if given is not None:
        described = parse_object(str(given).encode(), f"{file}: tokenizer.huggingface.json")
    else:
        described = _described(fields, str(model), tokens, types, special)
    return {
        "tokenizer": described,
        "tokenizer_config": {f"{role}_token": tokens[i] for role, i in special.items() if i is not None},
        "generation_config": {"bos_token_id": special["bos"], "eos_token_id": list(eos_ids)},
        "chat_templates": _templates(fields),
    }


ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
"""Special tokens as tokenizer_config.json names them, and as GGUF does."""


def _tokens(fields: Fields) -> list[str]:
    tokens = fields.strings("ggml.tokens")
    if not tokens:
        raise fields.wrong("ggml.tokens", "a list of strings")
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if ids[token] != i)
        raise CheckpointError(f"{fields.file}: tokenizer.ggml.tokens has {shown(twice)} twice; expected it once")
    return list(tokens)


def _types(fields: Fields, count: int) -> list[int]:
    types = fields.get("ggml.token_type")
    if types is None:
        return [NORMAL] * count
    if not isinstance(types, list) or len(types) != count or not all(type(kind) is int for kind in types):
        raise fields.wrong("ggml.token_type", _LIST)
    return types


def _templates(fields: Fields) -> dict[str, str]:
    """The main template is `chat_template`, named ones are `chat_template.NAME`."""
    found = {}
    for key, source in fields.values.items():
        if key == "chat_template" or key.startswith("chat_template."):
            if not isinstance(source, str):
                raise fields.wrong(key, "a template")
            found[key.partition(".")[2] or "default"] = source
    return found


def _described(
    fields: Fields, model: str, tokens: list[str], types: list[int], special: dict[str, int | None]
) -> dict[str, Any]:
    """The tokenizer.json."""
    for name in ("ggml.remove_extra_whitespaces", "ggml.precompiled_charsmap"):
        if fields.get(name) not in (None, False, []):
            raise fields.unsupported(name, "texts as they are")
    parts = _byte_level(fields, tokens) if model == "gpt2" else _sentence_piece(fields, tokens, types)
    vocab = {token: token_id for token_id, token in enumerate(tokens[: _used(types)])}
    unknown = special["unk"] if model == "llama" else None
    parts["model"] |= {"type": "BPE", "vocab": vocab, "unk_token": None if unknown is None else tokens[unknown]}
    return {
        "version": "1.0",
        "added_tokens": _added(tokens, types, model),
        "post_processor": _post_processor(fields, tokens, special, bool(parts.pop("add_bos"))),
        **parts,
    }


def _used(types: list[int]) -> int:
    """How many tokens there are, those left out that only fill the embedding."""
    count = len(types)
    while count and types[count - 1] == UNUSED:
        count -= 1
    return count


def _added(tokens: list[str], types: list[int], model: str) -> list[dict[str, Any]]:
    """Tokens that are found in a text before it is cut: control tokens and those that a user defined."""
    kinds = {CONTROL: True, USER_DEFINED: False} | ({UNKNOWN: True} if model == "llama" else {})
    return [
        {
            "id": token_id,
            "content": token,
            "special": kinds[kind],
            "normalized": model == "llama" and SPACE in token,
            **dict.fromkeys(("single_word", "lstrip", "rstrip"), False),
        }
        for token_id, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in kinds and token
    ]


def _byte_level(fields: Fields, tokens: list[str]) -> dict[str, Any]:
    name = fields.get("ggml.pre") if "ggml.pre" in fields else "default"
    if name not in SPLITS:
        raise fields.unsupported("ggml.pre", ", ".join(SPLITS))
    if fields.flag("ggml.add_space_prefix", False):
        raise fields.unsupported("ggml.add_space_prefix", "false")
    split = SPLITS[str(name)]
    return {
        "normalizer": normalizer_of(split),
        "pre_tokenizer": pre_tokenizer_of(split),
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {"merges": _merges(fields, tokens), "ignore_merges": split.ignore_merges},
        "add_bos": split.add_bos,
    }


def _merges(fields: Fields, tokens: list[str]) -> list[tuple[str, str]]:
    """Pairs in order; both tokens and the joined one must be there."""
    lines = fields.strings("ggml.merges")
    if lines is None:
        raise fields.wrong("ggml.merges", "a list of strings")
    known, merges = set(tokens), []
    for line in lines:
        at = line.find(" ", 1)
        left, right = line[:at], line[at + 1 :]
        if at < 0 or left not in known or right not in known or left + right not in known:
            raise CheckpointError(
                f"{fields.file}: tokenizer.ggml.merges has {shown(line)}; expected two tokens whose union is one"
            )
        merges.append((left, right))
    return merges


def _sentence_piece(fields: Fields, tokens: list[str], types: list[int]) -> dict[str, Any]:
    prefix = fields.flag("ggml.add_space_prefix", True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    steps = [{"type": "Prepend", "prepend": SPACE}, replace] if prefix else [replace]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "merges": merges_by_score(tokens, types, _scores(fields, tokens)),
            "byte_fallback": True,
            "fuse_unk": True,
        },
        "add_bos": True,
    }


def _scores(fields: Fields, tokens: list[str]) -> list[float]:
    if (longest := max(map(len, tokens))) > MAX_PIECE:
        raise UnsupportedModelError(
            f"{fields.file}: tokenizer.ggml.tokens has one of {longest} characters; supported: up to {MAX_PIECE}"
        )
    scores, count = fields.get("ggml.scores"), len(tokens)
    finite = isinstance(scores, list) and all(isinstance(score, float) and score == score for score in scores)
    if not isinstance(scores, list) or len(scores) != count or not finite:
        raise fields.wrong("ggml.scores", _LIST)
    return scores


def merges_by_score(tokens: list[str], types: list[int], scores: list[float]) -> list[tuple[str, str]]:
    """Every way to join two ordinary tokens to a third, those with the higher score first, and of one score those with
    the lower ids. Takes time with the square of a token's length.
    """
    ids = {token: i for i, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind == NORMAL}
    found: list[tuple[float, int, int, int]] = []
    for token, token_id in ids.items():
        for at in range(1, len(token)):
            left, right = ids.get(token[:at]), ids.get(token[at:])
            if left is not None and right is not None:
                found.append((-scores[token_id], token_id, left, right))
    return [(tokens[left], tokens[right]) for _, _, left, right in sorted(found)]


def _post_processor(
    fields: Fields, tokens: list[str], special: dict[str, int | None], add_bos: bool
) -> dict[str, Any] | None:
    """What is put around every text: the token that begins one, the token that ends one, or nothing."""
    before = special["bos"] if fields.flag("ggml.add_bos_token", add_bos) else None
    after = special["eos"] if fields.flag("ggml.add_eos_token", False) else None
    if before is None and after is None:
        return None

    def around(sequence: str, type_id: int) -> list[dict[str, Any]]:
        text = {"Sequence": {"id": sequence, "type_id": type_id}}
        wrapped = [
            None if i is None else {"SpecialToken": {"id": tokens[i], "type_id": type_id}} for i in (before, after)
        ]
        return [part for part in (wrapped[0], text, wrapped[1]) if part is not None]

    used = {tokens[i]: i for i in (before, after) if i is not None}
    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]} for token, i in used.items()},
    }
