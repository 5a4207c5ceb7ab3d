"""The tokenizer of the model in the box: byte-level BPE learned from the generated text, and the files that hold it.

Digits are split one by one, so that numbers can be computed with. `encode_document` is how a conversation becomes
tokens for training: the same tokens that the chat template gives. This file knows nothing of the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tools.box.world.mixture import document
from tools.box.world.turn import Conversation

END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END_OF_TEXT, START, END)
VOCABULARY = 4096
DOCUMENTS = 40_000
SPLIT = r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""A digit; a word or marks with a space before; spaces."""

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


@dataclass(frozen=True)
class Encoded:
    """A document in tokens. `weights[i]` is how much the prediction of token i counts; 0 for what users say."""

    ids: list[int]
    weights: list[float]
    task: str


def texts(seed: int, count: int) -> Iterator[str]:
    """What the tokenizer learns from: training documents only."""
    for number in range(count):
        for turn in document(seed, number, 512).turns:
            yield turn.question
            yield turn.answer


def learn(seed: int = 0, count: int = DOCUMENTS, size: int = VOCABULARY) -> Tokenizer:
    """A new tokenizer from so many training documents; the same every time."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(seed, count), trainer)
    return tokenizer


def write(tokenizer: Tokenizer, directory: Path, context: int = 2048) -> None:
    """tokenizer.json, tokenizer_config.json and generation_config.json, as transformers and vLLM read them."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    added = {
        str(tokenizer.token_to_id(token)): {"content": token, "special": True, "normalized": False}
        | dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
        for token in SPECIAL
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": added,
        "bos_token": None,
        "eos_token": END,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "chat_template": CHAT_TEMPLATE,
    }
    write_json(directory / "tokenizer_config.json", config)
    ends = [tokenizer.token_to_id(END), tokenizer.token_to_id(END_OF_TEXT)]
    pad = tokenizer.token_to_id(END_OF_TEXT)
    write_json(directory / "generation_config.json", {"eos_token_id": ends, "pad_token_id": pad, "do_sample": False})


def write_json(path: Path, value: object) -> None:
    """Indented, with a line break at the end."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def encode_document(tokenizer: Tokenizer, conversation: Conversation) -> Encoded:
    """Tokens of a conversation with the weight of each: answers and what ends them count, questions do not."""
    task = conversation.turns[0].task if len(conversation.turns) == 1 else "several"
    if conversation.plain:
        turn = conversation.turns[0]
        return _joined(tokenizer, [(turn.question + "\n", 0.0), (turn.answer + END_OF_TEXT, turn.weight)], "plain")
    parts: list[tuple[str, float]] = []
    if conversation.system:
        parts.append((f"{START}system\n{conversation.system}{END}\n", 0.0))
    for turn in conversation.turns:
        parts.append((f"{START}user\n{turn.question}{END}\n{START}assistant\n", 0.0))
        parts.append((turn.answer + END, turn.weight))
        parts.append(("\n", 0.0))
    return _joined(tokenizer, parts[:-1], task)


def _joined(tokenizer: Tokenizer, parts: list[tuple[str, float]], task: str) -> Encoded:
    ids: list[int] = []
    weights: list[float] = []
    for encoding, (_, weight) in zip(
        tokenizer.encode_batch([text for text, _ in parts], add_special_tokens=False), parts, strict=True
    ):
        ids += encoding.ids
        weights += [weight] * len(encoding.ids)
    return Encoded(ids, weights, task)
