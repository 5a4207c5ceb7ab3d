"""Tokenizer: text to token ids and back, and conversations to token ids.

A wrapper of the `tokenizers` library that settles what it leaves open: special tokens spelled in a user's text stay
plain text, everywhere; the ids that end an answer come from whichever of a checkpoint's files names them. Knows
nothing of models, requests or limits of length.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, normalizers
from tokenizers import Tokenizer as RawTokenizer

from kvik.errors import CheckpointError, InvalidRequestError, TemplateError
from kvik.text.chat_template import ChatTemplate
from kvik.text.files import TokenizerFiles
from kvik.text.marking import DEFAULT_MARKER, MarkingRule, choose_marker, copied, escaped, strings_of
from kvik.text.pieces import DecoderLayout, PieceTable, is_byte_token
from kvik.text.sampling_defaults import sampling_defaults
from kvik.text.streams import ByteFallbackStream, ByteLevelStream, TokenStream, WindowStream


def _load(path: Path) -> RawTokenizer:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; expected the tokenizer of a Hugging Face model")
    try:
        raw = RawTokenizer.from_file(str(path))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in the library is no Exception
        raise CheckpointError(f"{path} cannot be read as a tokenizer: {error}") from error
    raw.no_truncation()
    raw.no_padding()
    return raw


def _found_before_normalization(token: AddedToken) -> AddedToken:
    same = {"single_word": token.single_word, "lstrip": token.lstrip, "rstrip": token.rstrip}
    return AddedToken(token.content, special=True, normalized=False, **same)


def _twin(raw: RawTokenizer, marker: str | None = None) -> RawTokenizer:
    """A second tokenizer over the same vocabulary in memory, which costs next to nothing.

    Without a marker: special tokens spelled in a text are plain text. With one: they are special tokens, and the
    marker vanishes after they are found. Only tokens that are matched before normalization are found before it, so
    all special ones are declared so.
    """
    twin = RawTokenizer(raw.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor"):
        if (value := getattr(raw, part)) is not None:
            setattr(twin, part, value)
    added = [token for _, token in sorted(raw.get_added_tokens_decoder().items())]
    if marker is None:
        twin.encode_special_tokens = True
    else:
        removal = normalizers.Replace(marker, "")
        twin.normalizer = normalizers.Sequence([removal, raw.normalizer]) if raw.normalizer else removal
        added = [_found_before_normalization(token) if token.special else token for token in added]
    twin.add_tokens(added)
    return twin


class Tokenizer:
    """The tokenizer of one model, with its chat template if it has one. Safe to share between threads."""

    def __init__(self, raw: RawTokenizer, files: TokenizerFiles, template: ChatTemplate | None) -> None:
        self._raw = raw
        self._files = files
        self._template = template
        self._plain = _twin(raw)
        self._marked = _twin(raw, DEFAULT_MARKER)
        added = raw.get_added_tokens_decoder()
        self._special = {token.content: token_id for token_id, token in added.items() if token.special}
        late = any(token.special and token.normalized for token in added.values())
        self._normalizer = raw.normalizer if late else None
        """Only where special tokens are matched after it."""
        self._spellings = self._special_pattern()
        self._ordinary = [token.content for token in added.values() if not token.special]
        self._rules: dict[frozenset[str], MarkingRule] = {}
        decoder = raw.decoder
        self._layout = DecoderLayout.read(decoder.__getstate__() if decoder is not None else None)
        self._pieces = [self._table(frozenset()), self._table(frozenset(self._special))]
        self.bos_id: int | None = next(iter(self._ids("bos_token", ("generation_config", "config"))), None)
        """The token that begins a text, if the model has one."""
        eos = [*files.ids("generation_config", "eos_token_id"), *self._ids("eos_token", ("config",))]
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys(eos))
        """The tokens that end an answer: generation_config.json's, then tokenizer_config.json's, then config.json's."""
        where = str(files.directory / "generation_config.json")
        self.sampling_defaults: Mapping[str, float] = sampling_defaults(files.generation_config, where)
        """What the model's makers recommend, by the names of SamplingParams; nothing where they say nothing."""

    @classmethod
    def from_directory(cls, path: str | Path) -> Tokenizer:
        """The tokenizer of a model in Hugging Face layout. Raises CheckpointError naming the file at fault."""
        directory = Path(path)
        raw = _load(directory / "tokenizer.json")
        files = TokenizerFiles.read(directory)
        sources = files.chat_templates()
        return cls(raw, files, ChatTemplate(sources, files.special_tokens()) if sources else None)

    def with_chat_template(self, source: str) -> Tokenizer:
        """The same tokenizer with another chat template, given as jinja source."""
        return Tokenizer(self._raw, self._files, ChatTemplate(source, self._files.special_tokens()))

    def _table(self, skipped: frozenset[str]) -> PieceTable:
        return PieceTable(self._raw.id_to_token, self._layout.converter(), skipped)

    def _special_pattern(self) -> re.Pattern[str]:
        """Any special token, the longest first where several begin alike."""
        spellings = set(self._special)
        if self._normalizer is not None:
            spellings |= {self._normalizer.normalize_str(spelling) for spelling in spellings}
        return re.compile("|".join(re.escape(text) for text in sorted(spellings, key=len, reverse=True)) or r"(?!)")

    def _ids(self, role: str, fallbacks: tuple[str, ...]) -> list[int]:
        spelling = self._files.special_tokens().get(role)
        token_id = None if spelling is None else self._raw.token_to_id(spelling)
        named = [] if token_id is None else [token_id]
        return named + [i for file in fallbacks for i in self._files.ids(file, f"{role}_id")]

    @property
    def vocab_size(self) -> int:
        """Tokens, added ones included. A model's own vocabulary may be padded beyond it."""
        return int(self._raw.get_vocab_size(with_added_tokens=True))

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens that are no text, such as those that end an answer."""
        return frozenset(self._special.values())

    @property
    def has_exact_bytes(self) -> bool:
        """Whether `token_bytes` of tokens, joined, are the text of them all; not so for a rare decoder."""
        return self._layout.kind != "general"

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. The tokens a model wants around every text (BOS) are added on request; special tokens
        spelled in the text are plain text. Raises InvalidRequestError for what is no text.
        """
        return self._encode(self._plain, text, add_special_tokens)

    @staticmethod
    def _encode(raw: RawTokenizer, text: str, add_special_tokens: bool = False) -> list[int]:
        """One text as a batch of one: that way the library lets other threads run meanwhile."""
        try:
            batch = [text] if isinstance(text, str) else None
            ids: list[int] = raw.encode_batch(batch, add_special_tokens=add_special_tokens)[0].ids
        except TypeError:
            wrong = "has half of a surrogate pair" if isinstance(text, str) else f"is a {type(text).__name__}"
            raise InvalidRequestError(f"the text {wrong}; expected Unicode text", param="prompt") from None
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; ids outside the vocabulary add nothing. Raises InvalidRequestError."""
        try:
            text: str = self._raw.decode(ids, skip_special_tokens=skip_special_tokens)
        except (OverflowError, TypeError) as error:
            raise InvalidRequestError(f"token ids cannot be decoded: {error}", param="ids") from None
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one token adds to a text, special ones as they are spelled; nothing for an unknown id."""
        if self._layout.kind == "general":
            return self.decode([token_id], skip_special_tokens=False).encode()
        piece = self._pieces[False][token_id]
        return piece if isinstance(piece, bytes) else piece.encode()

    def token_text(self, token_id: int) -> str:
        """`token_bytes` as text; part of a character is U+FFFD."""
        return self.token_bytes(token_id).decode(errors="replace")

    def stream(self, skip_special_tokens: bool = True) -> TokenStream:
        """A new stream from token ids to text, by the fastest way that is right for this tokenizer's decoder."""
        pieces = self._pieces[skip_special_tokens]
        if self._layout.kind == "byte_level":
            return ByteLevelStream(pieces)
        if self._layout.kind == "byte_fallback":
            return ByteFallbackStream(pieces, self._layout.strip)
        return self.window_stream(skip_special_tokens)

    def window_stream(self, skip_special_tokens: bool = True) -> TokenStream:
        """The slow way that works for any decoder: the twin of the fast ones."""

        def is_byte(token_id: int) -> bool | None:
            token = self._raw.id_to_token(token_id)
            if token is None or (skip_special_tokens and token in self._special):
                return None
            return is_byte_token(token)

        return WindowStream(lambda ids: self.decode(ids, skip_special_tokens), is_byte)

    def render_chat(
        self, messages: Any, tools: Any = None, add_generation_prompt: bool = True, **template_variables: Any
    ) -> str:
        """The text of a conversation. Raises TemplateError, InvalidRequestError."""
        given = {"messages": messages, "tools": tools, **template_variables}
        data = {name: copied(value, name, str) for name, value in given.items()}
        return self._chat_template().render(add_generation_prompt=add_generation_prompt, **data)

    def encode_chat(
        self, messages: Any, tools: Any = None, add_generation_prompt: bool = True, **template_variables: Any
    ) -> list[int]:
        """Token ids of a conversation: special tokens that the template writes are special, those spelled in messages,
        tools and variables are plain text. Otherwise the ids are those of `render_chat`'s text.

        Raises TemplateError, InvalidRequestError.
        """
        text = self.render_chat(messages, tools, add_generation_prompt, **template_variables)
        given = {"messages": messages, "tools": tools, **template_variables}
        rule = self._rule(self._chat_template().literals(tools))
        if not any(rule.applies_to(string) for string in strings_of(given)):
            return self._encode(self._raw, text)
        marker = choose_marker([*strings_of(given), *self._chat_template().sources.values()])
        marked = self._render_marked(given, rule, marker, add_generation_prompt)
        # Markers lengthen strings, which a template may measure: they are for texts that need them only.
        if self._spelled(marked) == self._spelled(text):
            return self._encode(self._raw, text)
        return self._encode(self._marked if marker == DEFAULT_MARKER else _twin(self._raw, marker), marked)

    def _render_marked(self, given: dict[str, Any], rule: MarkingRule, marker: str, prompt: bool) -> str:
        data = {name: copied(value, name, lambda text: rule.mark(text, marker)) for name, value in given.items()}
        text = self._chat_template().render(add_generation_prompt=prompt, **data)
        return text.replace(escaped(marker), marker)

    def _spelled(self, text: str) -> list[str]:
        """The special tokens spelled in a text, in order, seen as the tokenizer would see them."""
        if self._normalizer is not None:
            text = self._normalizer.normalize_str(text)
        return self._spellings.findall(text)

    def _rule(self, literals: frozenset[str]) -> MarkingRule:
        if literals not in self._rules:
            self._rules[literals] = MarkingRule(self._special, self._ordinary, literals)
        return self._rules[literals]

    def _chat_template(self) -> ChatTemplate:
        if self._template is None:
            raise TemplateError(f"{self._files.directory} has no chat template; give the prompt as text instead")
        return self._template
