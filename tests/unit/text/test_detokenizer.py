"""Streaming text: never half a character, never the beginning of a stop string, in the end exactly `decode`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as RawTokenizer

from kvik.text.detokenizer import Detokenizer
from kvik.text.pieces import DecoderLayout
from kvik.text.streams import ByteFallbackStream, ByteLevelStream, WindowStream
from kvik.text.tokenizer import Tokenizer

Write = Callable[..., Path]
TEXT = "Hei! 🧑‍🚀 é 你好 مرحبا <|im_end|>\n\n\tdone"


def stream(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    return [*(detokenizer.push([token_id]) for token_id in ids), detokenizer.finish()]


def test_the_fastest_right_way_is_chosen(qwen3: Tokenizer, llama: tuple[Tokenizer, dict[str, Any]]) -> None:
    assert isinstance(qwen3.stream(), ByteLevelStream)
    assert isinstance(llama[0].stream(), ByteFallbackStream)


def test_golden_answers_token_by_token(llama: tuple[Tokenizer, dict[str, Any]]) -> None:
    tokenizer, golden = llama
    for case in golden["greedy"]:
        ids = case["prompt_ids"] + case["greedy_ids"]
        assert "".join(stream(Detokenizer(tokenizer), ids)) == case["text"]
        answer = case["greedy_ids"]
        assert "".join(stream(Detokenizer(tokenizer), answer)) == tokenizer.decode(answer)


def test_leading_space_is_that_of_the_answer_alone(llama: tuple[Tokenizer, dict[str, Any]]) -> None:
    tokenizer = llama[0]
    ids = tokenizer.encode("  there it is", add_special_tokens=False)
    assert "".join(stream(Detokenizer(tokenizer), ids)) == tokenizer.decode(ids) == "  there it is"
    ids = tokenizer.encode("there", add_special_tokens=False)
    pieces = stream(Detokenizer(tokenizer), [2, *ids])
    assert "".join(pieces) == tokenizer.decode([2, *ids]) == "there"


def test_characters_come_whole(qwen3: Tokenizer) -> None:
    pieces = stream(Detokenizer(qwen3), qwen3.encode(TEXT))
    assert "".join(pieces) == TEXT
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_incomplete_character_at_the_end_is_a_replacement(qwen3: Tokenizer) -> None:
    ids = qwen3.encode("ok 🦙")
    detokenizer = Detokenizer(qwen3)
    assert detokenizer.push(ids[:-1]) == "ok "
    assert detokenizer.finish() == "\ufffd"
    assert detokenizer.text == qwen3.decode(ids[:-1])


def test_a_bad_byte_spoils_its_run_in_byte_fallback(llama: tuple[Tokenizer, dict[str, Any]]) -> None:
    tokenizer = llama[0]
    run = [3 + byte for byte in "你".encode()]
    letter = tokenizer.encode("a", add_special_tokens=False)[-1]
    for ids in ([*run, letter], [*run, 3 + 0xFF, letter], [3 + 0xFF], [*run, *run[:2]], [*run, 1, *run]):
        assert "".join(stream(Detokenizer(tokenizer), ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("skip", [True, False])
def test_special_tokens_are_skipped_or_shown(qwen3: Tokenizer, skip: bool) -> None:
    ids = [151644, *qwen3.encode("a🦙"), 151645, 151667]
    assert "".join(stream(Detokenizer(qwen3, (), skip), ids)) == qwen3.decode(ids, skip)


def test_a_skipped_token_inside_a_character_changes_nothing(qwen3: Tokenizer) -> None:
    [*head, last] = qwen3.encode("🦙")
    ids = [*head, 151645, 151900, last]
    assert "".join(stream(Detokenizer(qwen3), ids)) == qwen3.decode(ids) == "🦙"


def test_stop_string_across_tokens_cuts_the_text(qwen3: Tokenizer) -> None:
    detokenizer = Detokenizer(qwen3, ("\n\nUser", "ser:"))
    pieces = [detokenizer.push([token_id]) for token_id in qwen3.encode("Fine.\n\nUser: more")]
    assert "".join(pieces) == detokenizer.text == "Fine."
    assert detokenizer.stop_string == "\n\nUser"
    assert detokenizer.finish() == ""


def test_a_stop_string_that_does_not_come_true_is_shown_at_the_end(qwen3: Tokenizer) -> None:
    detokenizer = Detokenizer(qwen3, ("END",))
    assert detokenizer.push(qwen3.encode("The EN")) == "The "
    assert detokenizer.text == "The "
    assert detokenizer.finish() == "EN"
    assert (detokenizer.text, detokenizer.stop_string) == ("The EN", None)


def test_a_stop_string_completed_by_the_last_character_is_found(qwen3: Tokenizer) -> None:
    detokenizer = Detokenizer(qwen3, ("\ufffd",))
    detokenizer.push(qwen3.encode("x 🦙")[:-1])
    assert (detokenizer.finish(), detokenizer.stop_string) == ("", "\ufffd")


def test_empty_answer(qwen3: Tokenizer) -> None:
    detokenizer = Detokenizer(qwen3, ("x",))
    assert (detokenizer.push([]), detokenizer.finish(), detokenizer.text) == ("", "", "")


def test_added_token_in_plain_spelling_is_its_own_text(write_tokenizer: Write, make_byte_level: Any) -> None:
    raw = make_byte_level([AddedToken("two words é", normalized=False), AddedToken("é", normalized=False)])
    tokenizer = Tokenizer.from_directory(write_tokenizer(raw))
    for ids in ([256], [257], [257, 256, 257]):
        assert "".join(stream(Detokenizer(tokenizer), ids)) == tokenizer.decode(ids)


DECODERS = {
    "none": None,
    "metaspace": decoders.Metaspace(),
    "wordpiece": decoders.WordPiece(),
    "fused": decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()]),
    "plain fallback": decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
}


@pytest.mark.parametrize("name", DECODERS)
def test_other_decoders_go_through_the_window(write_tokenizer: Write, name: str) -> None:
    words = ["▁one", "▁two", "##s", "▁", "x", "é", "<0xC3>", "<0xA9>", "<0xFF>"]
    raw = RawTokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="x"))
    if DECODERS[name] is not None:
        raw.decoder = DECODERS[name]
    raw.add_tokens([AddedToken("</s>", special=True, normalized=False)])
    tokenizer = Tokenizer.from_directory(write_tokenizer(raw))
    assert isinstance(tokenizer.stream(), WindowStream) == (name != "plain fallback")
    for ids in ([0, 1, 2, 3, 0], [9, 0, 9, 1], [3, 3, 0, 3], [0, 6, 7, 8, 0], [6, 7, 0], [9, 3, 9, 0], [6, 9, 8, 0]):
        assert "".join(stream(Detokenizer(tokenizer), ids)) == tokenizer.decode(ids)
        window = tokenizer.window_stream()
        assert "".join([*(window.push([i]) for i in ids), window.finish()]) == tokenizer.decode(ids)


TRAILING = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 1)])


@pytest.mark.parametrize(
    "decoder",
    [None, b"null", b'{"type":"CTC"}', b'{"type":"Sequence","decoders":[]}', TRAILING.__getstate__()],
)
def test_layouts_without_a_table(decoder: bytes | None) -> None:
    assert DecoderLayout.read(decoder).kind == "general"


def test_tables_are_shared_between_answers(qwen3: Tokenizer) -> None:
    first, second = qwen3.stream(), qwen3.stream()
    assert isinstance(first, ByteLevelStream)
    assert isinstance(second, ByteLevelStream)
    assert first._pieces is second._pieces
