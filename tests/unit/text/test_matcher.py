"""Masks of many vocabularies, and matchers that copy, end, go wrong and start over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer

from kvik.checkpoint.box import BOX
from kvik.errors import InvalidRequestError
from kvik.text import grammar
from kvik.text import matcher as matcher_file
from kvik.text.byte_tokenizer import byte_tokenizer
from kvik.text.matcher import MAX_SHARED_GRAMMARS, GrammarVocabulary, Matcher
from kvik.text.tokenizer import Tokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "tags": {"type": "array", "items": {"enum": ["ü", "😀"]}},
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
}


def allowed(vocabulary: GrammarVocabulary, matcher: Matcher) -> tuple[set[int], bool]:
    """The tokens that may come next, and whether the text may end."""
    row = vocabulary.new_row()
    row[:] = 0xA5A5A5A5  # whatever was there before is gone
    may_end = matcher.mask_into(row)
    bits = np.unpackbits(row.astype("<u4").view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits[: vocabulary.vocab_size]).tolist()), may_end


def random_text(vocabulary: GrammarVocabulary, matcher: Matcher, rng: np.random.Generator, longest: int) -> list[int]:
    """Tokens drawn from the masks until the text ends; empty if it does not."""
    tokens: list[int] = []
    while len(tokens) < longest:
        may_come, may_end = allowed(vocabulary, matcher)
        if may_end and (not may_come or rng.random() < 0.2):
            return tokens
        assert may_come
        tokens.append(int(rng.choice(sorted(may_come))))
        matcher.advance(tokens[-1:])
    return []


@pytest.fixture
def real(request: pytest.FixtureRequest) -> tuple[Tokenizer, int]:
    name, size = request.param
    path = Path("../shared/data") / name
    if not path.is_dir():
        pytest.skip(f"{path} is not here")
    return Tokenizer.from_directory(path), size


REAL = [("models/stories260K/hf", 520), ("models/babyllama-tok361/hf", 361), ("tokenizers/qwen3", 151_936)]


@pytest.mark.parametrize("real", REAL, indirect=True, ids=lambda value: value[0].split("/")[1])
def test_random_draws_from_the_masks_of_real_vocabularies_spell_valid_json(real: tuple[Tokenizer, int]) -> None:
    tokenizer, vocab_size = real
    vocabulary = GrammarVocabulary(tokenizer, vocab_size, tokenizer.eos_ids)
    made, ended = grammar.json_schema(PERSON), 0
    for seed in range(8):
        tokens = random_text(vocabulary, vocabulary.compile(made), np.random.default_rng(seed), 200)
        assert not vocabulary.special_ids & set(tokens)
        assert all(token < tokenizer.vocab_size for token in tokens)
        if tokens:
            ended += 1
            value = json.loads(b"".join(tokenizer.token_bytes(token) for token in tokens))
            assert len(value["name"]) <= 6
            assert set(value["tags"]) <= {"ü", "😀"}
    assert ended >= 4


@pytest.mark.parametrize("real", REAL[:2], indirect=True, ids=lambda value: value[0].split("/")[1])
def test_text_that_must_come_is_not_spelled_with_a_space_before_it(real: tuple[Tokenizer, int]) -> None:
    """These tokenizers put a space before whatever they encode."""
    tokenizer, vocab_size = real
    vocabulary = GrammarVocabulary(tokenizer, vocab_size, tokenizer.eos_ids)
    matcher = vocabulary.compile(grammar.choice(["Lily said"]))
    tokens = random_text(vocabulary, matcher, np.random.default_rng(0), 20)
    assert b"".join(map(tokenizer.token_bytes, tokens)) == b"Lily said"
    assert tokenizer.encode("\nLily said", add_special_tokens=False)[-len(tokens) :] == tokens


def test_slices_change_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strings near their longest, where the sets of short tokens still hold and those of long ones do not."""
    tokenizer = Tokenizer.from_directory(BOX)
    sliced = GrammarVocabulary(tokenizer, 4096, tokenizer.eos_ids)
    sliced.prepare()
    monkeypatch.setattr(matcher_file, "SLICES", ())
    plain = GrammarVocabulary(tokenizer, 4096, tokenizer.eos_ids)
    made = grammar.json_schema({"type": "array", "items": {"type": "string", "maxLength": 23}, "maxItems": 3})
    one, other = sliced.compile(made), plain.compile(made)
    sizes = set()
    for token in tokenizer.encode('["one line of some words", "a b", "characters ü"]', add_special_tokens=False):
        found = allowed(sliced, one)
        assert found == allowed(plain, other)
        assert token in found[0]
        sizes.add(len(found[0]))
        one.advance([token])
        other.advance([token])
    assert len(sizes) > 10
    assert allowed(sliced, one) == allowed(plain, other) == (set(), True)


def raw_tokenizer(vocab: dict[str, int], write: Callable[..., Path], added: list[AddedToken]) -> Tokenizer:
    raw = RawTokenizer(models.BPE(vocab, [], byte_fallback=True))
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    raw.add_tokens(added)
    return Tokenizer.from_directory(write(raw))


def test_special_padded_and_empty_ids_are_in_no_text_and_equal_tokens_are_all_there(
    write_tokenizer: Callable[..., Path],
) -> None:
    vocab = {"a": 0, "<0x61>": 1, "ab": 2, "<0xC3>": 3, "<0xBC>": 4, "b": 5}
    special, plain = AddedToken("<s>", special=True), AddedToken("<tool>", special=False)
    tokenizer = raw_tokenizer(vocab, write_tokenizer, [special, plain])
    vocabulary = GrammarVocabulary(tokenizer, 40, end_ids=[5])
    matcher = vocabulary.compile(grammar.regex("(?s:.*)"))
    assert allowed(vocabulary, matcher) == ({0, 1, 2, 3, 7}, True)
    matcher.advance([3])
    assert allowed(vocabulary, matcher) == ({4}, False)
    assert tokenizer.token_bytes(7) == b"<tool>"


def test_a_vocabulary_that_cannot_spell_the_grammar_says_so(write_tokenizer: Callable[..., Path]) -> None:
    tokenizer = raw_tokenizer({"a": 0, "b": 1}, write_tokenizer, [])
    vocabulary = GrammarVocabulary(tokenizer, 2)
    with pytest.raises(InvalidRequestError, match=r"after 0 tokens: no token begins the text b'zz'"):
        vocabulary.compile(grammar.choice(["zz"])).mask_into(vocabulary.new_row())
    matcher = vocabulary.compile(grammar.regex("a|[xyz]b"))
    assert allowed(vocabulary, matcher) == ({0}, False)


def test_a_decoder_whose_tokens_have_no_bytes_of_their_own_is_refused(write_tokenizer: Callable[..., Path]) -> None:
    raw = RawTokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    with pytest.raises(InvalidRequestError, match="byte-level"):
        GrammarVocabulary(Tokenizer.from_directory(write_tokenizer(raw)), 3)


@pytest.fixture(scope="module")
def vocabulary() -> GrammarVocabulary:
    return GrammarVocabulary(byte_tokenizer(), 259, [256, 257, 258])


@pytest.mark.parametrize("vocab_size", [259, 260, 287, 288, 289, 320])
def test_the_bit_for_the_end_fits_behind_any_vocabulary(vocab_size: int) -> None:
    vocabulary = GrammarVocabulary(byte_tokenizer(), vocab_size)
    matcher = vocabulary.compile(grammar.regex("a?"))
    assert vocabulary.num_words * 32 > vocab_size
    assert allowed(vocabulary, matcher) == ({ord("a")}, True)
    matcher.advance(b"a")
    assert allowed(vocabulary, matcher) == (set(), True)


def test_a_text_is_finished_when_nothing_can_be_added(vocabulary: GrammarVocabulary) -> None:
    matcher = vocabulary.compile(grammar.choice(["ab", "abc"]))
    assert not matcher.finished
    matcher.advance(b"ab")
    assert not matcher.finished
    assert allowed(vocabulary, matcher) == ({ord("c")}, True)
    matcher.advance(b"c")
    assert matcher.finished
    assert matcher.num_tokens == 3


def test_copies_go_their_own_ways(vocabulary: GrammarVocabulary) -> None:
    first = vocabulary.compile(grammar.regex("x(a*b|c*d)"))
    first.advance(b"x")
    second = first.copy()
    first.advance(b"aa")
    second.advance(b"c")
    third = second.copy()
    third.advance(b"d")
    assert allowed(vocabulary, first) == ({ord("a"), ord("b")}, False)
    assert allowed(vocabulary, second) == ({ord("c"), ord("d")}, False)
    assert third.finished
    assert (first.num_tokens, second.num_tokens, third.num_tokens) == (3, 2, 3)


def test_a_token_outside_the_mask_is_an_error_of_that_text_alone(vocabulary: GrammarVocabulary) -> None:
    made = grammar.regex("[ab]+")
    good, bad = vocabulary.compile(made), vocabulary.compile(made)
    good.advance(b"ab")
    with pytest.raises(InvalidRequestError, match="after 1 tokens"):
        bad.advance(b"x")
    assert not bad.finished
    good.advance(b"ba")
    assert allowed(vocabulary, good) == ({ord("a"), ord("b")}, True)
    assert allowed(vocabulary, vocabulary.compile(made)) == ({ord("a"), ord("b")}, False)


class Broken:
    """An inner matcher in which something shared has gone wrong."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def unsafe_compute_mask_ptr(self, address: int, size: int) -> None:
        self._inner.consume_token(0)
        self._inner.unsafe_compute_mask_ptr(address, size)

    def consume_token(self, token: int) -> bool:
        return bool(self._inner.consume_token(0))

    def is_error(self) -> bool:
        return bool(self._inner.is_error())


@pytest.mark.parametrize("where", ["mask", "advance"])
def test_what_goes_wrong_in_shared_state_is_worked_out_again_alone(vocabulary: GrammarVocabulary, where: str) -> None:
    matcher = vocabulary.compile(grammar.regex("ab[cd]+"))
    matcher.advance(b"abc")
    matcher._inner = Broken(matcher._inner)  # type: ignore[assignment]
    if where == "advance":
        matcher.advance(b"d")
    assert allowed(vocabulary, matcher) == ({ord("c"), ord("d")}, True)
    matcher.advance(b"cdc")
    assert allowed(vocabulary, matcher) == ({ord("c"), ord("d")}, True)
    other = matcher.copy()
    matcher._inner = Broken(matcher._inner)  # type: ignore[assignment]
    assert allowed(vocabulary, matcher) == allowed(vocabulary, other) == ({ord("c"), ord("d")}, True)


def test_after_an_error_nothing_is_shared_with_texts_to_come(vocabulary: GrammarVocabulary) -> None:
    made = grammar.regex("ab+")
    matcher = vocabulary.compile(made)
    assert made in vocabulary._shared
    with pytest.raises(InvalidRequestError):
        matcher.advance(b"b")
    assert made not in vocabulary._shared
    with pytest.raises(InvalidRequestError):
        matcher.mask_into(vocabulary.new_row())


def test_compiled_grammars_are_kept_up_to_a_number(vocabulary: GrammarVocabulary) -> None:
    for i in range(MAX_SHARED_GRAMMARS + 5):
        vocabulary.compile(grammar.regex(f"a{{{i + 1}}}"))
    assert len(vocabulary._shared) == MAX_SHARED_GRAMMARS
    with pytest.raises(InvalidRequestError):
        vocabulary.compile("start: nothing")
    assert len(vocabulary._shared) == MAX_SHARED_GRAMMARS


def test_threads_may_compile_at_once() -> None:
    vocabulary = GrammarVocabulary(byte_tokenizer(), 259)
    found: list[tuple[set[int], bool]] = []
    made = [grammar.regex(f"{letter}+") for letter in "abcd"]

    def work(which: str) -> None:
        found.append(allowed(vocabulary, vocabulary.compile(which)))

    threads = [Thread(target=work, args=(which,)) for which in made * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(min(tokens) for tokens, _ in found) == sorted([*b"abcd"] * 3)
