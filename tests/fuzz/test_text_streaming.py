"""Random text, random tokens, random cuts: what streams out is what decoding everything at once gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvik.text.detokenizer import Detokenizer
from kvik.text.stop import StopSearch
from kvik.text.tokenizer import Tokenizer

DATA = Path("../shared/data")
DIRECTORIES = [DATA / "tokenizers/qwen3", DATA / "models/stories260K/hf", DATA / "models/babyllama-tok361/hf"]
QUICK = settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(QUICK, max_examples=100_000)

SPELLINGS = ["<0xE4>", "<|im_end|>", "<|im_start|>", "<think>", "</think>", "<s>", "</s>", "<", "\ufdd0", "\\ufdd0"]
SCRIPTS = ["🧑‍🚀", "👩‍👩‍👧", "e\u0301", "한", "你好", "مرحبا", "שלום", "नमस्ते", "\u200d", "\ufeff", "\ufffd", "▁"]
AWKWARD = st.sampled_from([*SPELLINGS, *SCRIPTS, " ", "\n", "\r\n", "\t", "\x00"])
TEXTS = st.lists(st.one_of(AWKWARD, st.text(max_size=8)), max_size=12).map("".join)
CUTS = st.lists(st.integers(0, 5), max_size=40)


@pytest.fixture(scope="session", params=DIRECTORIES, ids=lambda path: path.parts[-2] + "/" + path.name)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if not request.param.is_dir():
        pytest.skip(f"{request.param} is not here")
    return Tokenizer.from_directory(request.param)


@pytest.fixture(scope="session")
def qwen3() -> Tokenizer:
    if not DIRECTORIES[0].is_dir():
        pytest.skip(f"{DIRECTORIES[0]} is not here")
    return Tokenizer.from_directory(DIRECTORIES[0])


def chunks(values: Any, cuts: list[int]) -> list[Any]:
    """Cut a sequence into pieces of the given lengths; the rest is the last piece."""
    pieces, start = [], 0
    for size in cuts:
        pieces.append(values[start : start + size])
        start += size
    return [*pieces, values[start:]]


def random_ids(data: st.DataObject, tokenizer: Tokenizer) -> list[int]:
    """Tokens of a text, or any tokens, with single bytes and specials among them."""
    size = tokenizer.vocab_size
    some = st.one_of(st.integers(0, 300), st.integers(0, size + 5), st.integers(max(0, size - 30), size))
    if data.draw(st.booleans()):
        return data.draw(st.lists(some, max_size=24))
    return tokenizer.encode(data.draw(TEXTS)) + data.draw(st.lists(some, max_size=3))


def cut_at_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The slow, obvious rule: earliest start, then shortest."""
    found = sorted((text.find(stop), len(stop), stop) for stop in stops if stop in text)
    return (text[: found[0][0]], found[0][2]) if found else (text, None)


def check_stream(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids, skip = random_ids(data, tokenizer), data.draw(st.booleans())
    whole = tokenizer.decode(ids, skip)
    streams = [tokenizer.stream(skip), tokenizer.window_stream(skip)]
    for stream in streams:
        pieces = [stream.push(part) for part in chunks(ids, data.draw(CUTS))]
        assert whole.startswith("".join(pieces))
        assert "".join([*pieces, stream.finish()]) == whole


def check_stops(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = random_ids(data, tokenizer)
    whole = tokenizer.decode(ids)
    spans = st.tuples(st.integers(0, len(whole)), st.integers(1, 6)).map(lambda s: whole[s[0] : s[0] + s[1]] or "x")
    stops = data.draw(st.lists(st.one_of(spans, st.text(min_size=1, max_size=3)), min_size=1, max_size=4))
    detokenizer = Detokenizer(tokenizer, stops)
    expected, matched = cut_at_stop(whole, stops)
    for part in chunks(ids, data.draw(CUTS)):
        detokenizer.push(part)
        assert expected.startswith(detokenizer.text)
    detokenizer.finish()
    assert (detokenizer.text, detokenizer.stop_string) == (expected, matched)


def check_search(text: str, stops: list[str], cuts: list[int]) -> None:
    """Besides the result: no more is held back than must be."""
    search, seen, given_out = StopSearch(stops), "", ""
    for piece in chunks(text, cuts):
        seen += piece
        given_out += search.push(piece)
        starts = [i for i in range(len(seen)) if any(s.startswith(seen[i : i + len(s)]) for s in stops)]
        assert given_out == seen[: min(starts, default=len(seen))] or search.matched is not None
    given_out += search.finish()
    assert (given_out, search.matched) == cut_at_stop(text, stops)


def check_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert not {tokenizer.bos_id, *tokenizer.eos_ids} & set(ids)
    detokenizer = Detokenizer(tokenizer)
    assert "".join(detokenizer.push([i]) for i in ids) + detokenizer.finish() == tokenizer.decode(ids)


def check_chat(tokenizer: Tokenizer, contents: list[str]) -> None:
    messages = [{"role": "user", "content": content} for content in contents]
    ids = tokenizer.encode_chat(messages)
    assert tokenizer.decode(ids, skip_special_tokens=False) == tokenizer.decode(
        tokenizer.encode(tokenizer.render_chat(messages)), skip_special_tokens=False
    )
    assert [i for i in ids if i in (151643, 151644, 151645)] == [151644, 151645] * len(contents) + [151644]


LETTERS = st.text("ab", max_size=30)
STOPS = st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=4)


@QUICK
@given(data=st.data())
def test_streaming_is_decoding(tokenizer: Tokenizer, data: st.DataObject) -> None:
    check_stream(tokenizer, data)


@QUICK
@given(data=st.data())
def test_stop_strings_over_tokens(tokenizer: Tokenizer, data: st.DataObject) -> None:
    check_stops(tokenizer, data)


@settings(QUICK, max_examples=1500)
@given(text=LETTERS, stops=STOPS, cuts=CUTS)
def test_stop_search_against_the_obvious(text: str, stops: list[str], cuts: list[int]) -> None:
    check_search(text, stops, cuts)


@settings(QUICK, max_examples=200)
@given(text=TEXTS)
def test_any_text(tokenizer: Tokenizer, text: str) -> None:
    check_text(tokenizer, text)


@settings(QUICK, max_examples=200)
@given(contents=st.lists(TEXTS, min_size=1, max_size=3))
def test_users_never_make_special_tokens(qwen3: Tokenizer, contents: list[str]) -> None:
    check_chat(qwen3, contents)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@LONG
@given(data=st.data())
def test_streaming_and_stops_at_length(tokenizer: Tokenizer, data: st.DataObject) -> None:
    check_stream(tokenizer, data)
    check_stops(tokenizer, data)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@LONG
@given(text=LETTERS, stops=STOPS, cuts=CUTS)
def test_stop_search_at_length(text: str, stops: list[str], cuts: list[int]) -> None:
    check_search(text, stops, cuts)
