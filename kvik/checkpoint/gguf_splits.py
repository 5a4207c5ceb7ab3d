"""How texts are cut before byte-pair encoding: what each name of `tokenizer.ggml.pre` stands for.

llama.cpp knows these rules by name only; here they are as the `tokenizers` library takes them: patterns applied one
after another, each isolating what it matches. Models of the Qwen family also normalize (NFC), which the name implies.
This file knows nothing of files or vocabularies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_TEKKEN = (
    rf"{_BEFORE}[{_UPPER}]*[{_LOWER}]+|{_BEFORE}[{_UPPER}]+[{_LOWER}]*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGIT = r"\p{N}"


@dataclass(frozen=True)
class Split:
    """One way to cut texts."""

    patterns: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False
    """A piece that is a token as a whole is that token."""
    add_bos: bool = False
    """Where the file does not say."""


_QWEN = (rf"{_WORDS}|{DIGIT}|{_REST}",)
_LLAMA = (rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}",)
_STARCODER = Split((DIGIT, _GPT2))

SPLITS = {
    "qwen2": Split(_QWEN, nfc=True),
    "deepseek-r1-qwen": Split(_QWEN),
    "llama-bpe": Split(_LLAMA, ignore_merges=True, add_bos=True),
    "llama3": Split(_LLAMA, ignore_merges=True, add_bos=True),
    "llama-v3": Split(_LLAMA, ignore_merges=True, add_bos=True),
    "smaug-bpe": Split(_LLAMA),
    "tekken": Split((_TEKKEN,), ignore_merges=True, add_bos=True),
    "gpt-2": Split((_GPT2,)),
    "starcoder": _STARCODER,
    "smollm": _STARCODER,
    "refact": _STARCODER,
    "default": Split((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
}
"""By `tokenizer.ggml.pre`; of two names for one rule the first is written."""


def normalizer_of(split: Split) -> dict[str, Any] | None:
    """The `normalizer` of a tokenizer.json."""
    return {"type": "NFC"} if split.nfc else None


def pre_tokenizer_of(split: Split) -> dict[str, Any]:
    """The `pre_tokenizer` of a tokenizer.json."""
    steps: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in split.patterns
    ]
    steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False})
    return {"type": "Sequence", "pretokenizers": steps}


def split_name(tokenizer: dict[str, Any]) -> str | None:
    """The name of the rule that a byte-level tokenizer.json follows; None if GGUF has none for it."""
    patterns = _patterns(tokenizer.get("pre_tokenizer"))
    normalizer = tokenizer.get("normalizer")
    if patterns is None or normalizer not in (None, {"type": "NFC"}):
        return None
    ignores = bool(tokenizer.get("model", {}).get("ignore_merges"))
    for name, split in SPLITS.items():
        if (split.patterns, split.nfc, split.ignore_merges) == (patterns, normalizer is not None, ignores):
            return name
    return None


def _patterns(section: Any) -> tuple[str, ...] | None:
    """The patterns of a pre_tokenizer that ends in bytes; None for one that does anything else."""
    if not isinstance(section, dict):
        return None
    steps = section.get("pretokenizers", []) if section.get("type") == "Sequence" else [section]
    found = [_pattern(step) for step in steps]
    if not found or any(pattern is None for pattern in found) or steps[-1].get("type") != "ByteLevel":
        return None
    return tuple(pattern for pattern in found if pattern)


def _pattern(step: Any) -> str | None:
    """The pattern of one step, "" for bytes without one, None for a step that is not of this kind."""
    if not isinstance(step, dict):
        return None
    if step.get("type") == "ByteLevel" and not step.get("add_prefix_space"):
        return _GPT2 if step.get("use_regex", True) else ""
    if step.get("type") == "Digits" and step.get("individual_digits"):
        return DIGIT
    plain = step.get("type") == "Split" and step.get("behavior") == "Isolated" and not step.get("invert")
    pattern = step.get("pattern") if plain else None
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    return regex if isinstance(regex, str) and regex else None
