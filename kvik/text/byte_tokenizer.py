"""A tokenizer made in memory: a text's tokens are its UTF-8 bytes, with ChatML around the turns of a conversation.

    ids 0 .. 255                the bytes, each under its own value
    256 .. 256 + P - 1          pieces: any bytes, such as whole words; no text is encoded to them, but they decode
    256 + P .. 256 + P + 2      <|endoftext|> <|im_start|> <|im_end|>

Built from the same parts as one that is read from files, so that everything said of a `Tokenizer` holds. It knows
nothing of which model uses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer

from kvik.text.chat_template import ChatTemplate
from kvik.text.files import TokenizerFiles
from kvik.text.pieces import byte_alphabet
from kvik.text.tokenizer import Tokenizer

END_OF_TEXT, IM_START, IM_END = SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CHAT_TEMPLATE = """\
{%- macro text(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- elif content is iterable -%}
        {%- for part in content -%}
            {{- part.text if part is mapping else part -}}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- if tools -%}
    {{- '<|im_start|>system\\nTools, one to a line:\\n' -}}
    {%- for tool in tools -%}
        {{- (tool | tojson) + '\\n' -}}
    {%- endfor -%}
    {{- 'Call one with {"name": ..., "arguments": ...} between <tool_call> and </tool_call>.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {{- text(message.content) -}}
    {%- for call in message.tool_calls or [] -%}
        {%- set function = call.function or call -%}
        {%- set arguments = function.arguments -%}
        {{- '\\n<tool_call>\\n{"name": ' + (function.name | tojson) + ', "arguments": ' -}}
        {{- arguments if arguments is string else (arguments | tojson) -}}
        {{- '}\\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def byte_tokenizer(pieces: Sequence[bytes] = ()) -> Tokenizer:
    """A tokenizer of bytes and these pieces, which are distinct and longer than a byte. <|im_end|> and <|endoftext|>
    end an answer; nothing is put around a plain text.
    """
    files = TokenizerFiles(
        directory=Path("the byte tokenizer"),
        tokenizer_config={"eos_token": IM_END, "pad_token": END_OF_TEXT},
        special_tokens_map={},
        generation_config={
            "eos_token_id": [256 + len(pieces) + SPECIAL_TOKENS.index(t) for t in (IM_END, END_OF_TEXT)]
        },
        config={},
    )
    return Tokenizer(_byte_level(pieces), files, ChatTemplate(CHAT_TEMPLATE, files.special_tokens()))


def _byte_level(pieces: Sequence[bytes]) -> RawTokenizer:
    """A byte-level vocabulary in which nothing ever merges."""
    spelling = {byte: char for char, byte in byte_alphabet().items()}
    tokens = [*(bytes([byte]) for byte in range(256)), *pieces]
    vocabulary = {"".join(spelling[byte] for byte in token): token_id for token_id, token in enumerate(tokens)}
    raw = RawTokenizer(models.BPE(vocabulary, [], cache_capacity=0))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS])
    return raw
