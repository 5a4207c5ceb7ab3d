"""Training text is the same tokens as Kvik's and transformers' chat encoding; digits are split, any text comes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from tokenizers import Tokenizer

from kvik.text.tokenizer import Tokenizer as KvikTokenizer
from tools.box import heldout
from tools.box.tokenizer import END, END_OF_TEXT, START, encode_document, learn
from tools.box.world.mixture import document
from tools.box.world.turn import Conversation, Turn


@pytest.fixture(scope="module")
def raw(small_tokenizer_dir: Path) -> Tokenizer:
    return Tokenizer.from_file(str(small_tokenizer_dir / "tokenizer.json"))


@pytest.fixture(scope="module")
def ours(small_tokenizer_dir: Path) -> KvikTokenizer:
    return KvikTokenizer.from_directory(small_tokenizer_dir)


def conversations() -> Iterator[Conversation]:
    yield from (each for number in range(150) if not (each := document(0, number, 512)).plain)
    for task in heldout.MAKERS:
        yield from heldout.conversations(task, 3)
    yield Conversation((Turn("odd", "\n\n  spaces \n", "Søren says: “ja”"), Turn("odd", "次", "🙂 2 🙂")), "System. ")


def test_training_tokens_are_those_of_the_chat_template(raw: Tokenizer, ours: KvikTokenizer) -> None:
    for each in conversations():
        trained = encode_document(raw, each)
        said = ours.encode_chat(each.messages(), add_generation_prompt=False)
        assert said == [*trained.ids, *raw.encode("\n").ids]


def test_an_answer_begins_where_the_prompt_ends(raw: Tokenizer, ours: KvikTokenizer) -> None:
    """What is trained to follow the prompt's tokens is what the model is asked for."""
    for each in conversations():
        trained = encode_document(raw, each)
        prompt = ours.encode_chat(each.messages()[:-1])
        assert trained.ids[: len(prompt)] == prompt
        assert trained.weights[len(prompt) - 1] == 0
        assert all(trained.weights[len(prompt) :])


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_transformers_makes_the_same_tokens(small_tokenizer_dir: Path, ours: KvikTokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(small_tokenizer_dir)
    for each in conversations():
        for messages, prompt in ((each.messages(), False), (each.messages()[:-1], True)):
            expected = theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
            assert ours.encode_chat(messages, add_generation_prompt=prompt) == expected


def test_answers_and_their_ends_count_and_questions_do_not(raw: Tokenizer) -> None:
    turns = (Turn("a", "What is 1?", "one", 0.5), Turn("b", "And 2?", "two", 2.0))
    encoded = encode_document(raw, Conversation(turns))
    counted = [(raw.id_to_token(i) or "", w) for i, w in zip(encoded.ids, encoded.weights, strict=True) if w]
    assert "".join(token for token, _ in counted) == f"one{END}two{END}"
    assert {w for _, w in counted} == {0.5, 2.0}
    assert encoded.ids.count(raw.token_to_id(START)) == 4


def test_a_plain_document_has_no_roles(raw: Tokenizer) -> None:
    encoded = encode_document(raw, Conversation((Turn("story", "A story", "Once."),), plain=True))
    assert raw.decode(encoded.ids, skip_special_tokens=False) == f"A story\nOnce.{END_OF_TEXT}"


def test_digits_are_tokens_of_their_own(raw: Tokenizer) -> None:
    assert raw.encode("4821").tokens == list("4821")
    assert [token for token in raw.get_vocab() if sum(map(str.isdigit, token)) and len(token) > 1] == []


def test_any_text_comes_back(raw: Tokenizer) -> None:
    rng = Random(0)
    for _ in range(50):
        text = "".join(chr(rng.choice((rng.randint(1, 127), rng.randint(160, 0xD7FF)))) for _ in range(30))
        assert raw.decode(raw.encode(text).ids) == text


def test_learning_twice_gives_the_same_tokenizer() -> None:
    assert learn(2, 60, 400).to_str() == learn(2, 60, 400).to_str()
