"""Texts in threads: token ids of prompts and conversations, and whether an answer begins with thoughts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from fakes import byte_tokenizer
from live_server import LiveServer

from kvik.server.protocol.conversation import Conversation
from kvik.server.protocol.errors import ApiError
from kvik.server.texts import LARGE_BODY, LONG_CHARS, Texts

T = TypeVar("T")
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[a]{{ tail }}{% endif %}"
)
MESSAGES = [{"role": "user", "content": "hi"}]


class Thinker:
    """A tokenizer that has a token for each tag, around one that has bytes."""

    def __init__(self, inner: Any, tags: bool = True) -> None:
        self._inner, self._tags = inner, tags

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        if self._tags and text in ("<think>", "</think>"):
            return [0]
        ids: list[int] = self._inner.encode(text, add_special_tokens)
        return ids


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory: Path = tmp_path_factory.mktemp("bytes")
    return byte_tokenizer(directory).with_chat_template(TEMPLATE)


@pytest.fixture
def texts(tokenizer: Any) -> Iterator[Texts]:
    texts = Texts(tokenizer)
    yield texts
    texts.close()


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def conversation(**given: Any) -> Conversation:
    return Conversation(MESSAGES, **given)


def test_prompts_of_either_kind(texts: Texts, tokenizer: Any) -> None:
    assert run(texts.prompts(["ab", "c"], True)) == [tokenizer.encode("ab"), tokenizer.encode("c")]
    assert run(texts.prompts([[5, 6]], True)) == [[5, 6]]


def test_a_conversation_goes_through_the_template(texts: Texts, tokenizer: Any) -> None:
    prompt = run(texts.chat(conversation()))
    assert tokenizer.decode(prompt.token_ids) == "[user]hi[a]"
    assert (prompt.thinking, prompt.thoughts) == (None, "none")


def test_a_last_message_may_be_continued(texts: Texts, tokenizer: Any) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "well, "}]
    given = Conversation(messages, add_generation_prompt=False, continue_final_message=True)
    assert tokenizer.decode(run(texts.chat(given)).token_ids) == "[user]hi[assistant]well,"


@pytest.mark.parametrize(
    ("tail", "thoughts", "opened"),
    [("", "may", False), ("<think>\n", "opened", True), ("<think>\n\n</think>\n\n", "none", False)],
)
def test_whether_the_answer_begins_with_thoughts(tokenizer: Any, tail: str, thoughts: str, opened: bool) -> None:
    texts = Texts(Thinker(tokenizer))  # type: ignore[arg-type]
    prompt = run(texts.chat(conversation(variables={"tail": tail})))
    assert prompt.thinking is not None
    assert (prompt.thoughts, prompt.thinking.opened) == (thoughts, opened)
    texts.close()


def test_a_model_without_a_template_says_so_and_not_where_it_lies(tmp_path: Path) -> None:
    texts = Texts(byte_tokenizer(tmp_path / "secret"))
    with pytest.raises(ApiError) as refused:
        run(texts.chat(conversation()))
    assert (refused.value.status, refused.value.param) == (400, "messages")
    assert "secret" not in refused.value.message
    texts.close()


def test_a_model_without_text_takes_token_ids_only() -> None:
    texts = Texts(None)
    assert run(texts.prompts([[1, 2]], True)) == [[1, 2]]
    assert texts.token_bytes(5) == b""
    for work in (texts.prompts(["a"], True), texts.chat(conversation()), texts.decode([1])):
        with pytest.raises(ApiError) as refused:
            run(work)
        assert refused.value.status == 400
    texts.close()


def test_small_bodies_are_parsed_on_the_spot_and_large_ones_beside(texts: Texts) -> None:
    async def main() -> tuple[str, str]:
        here = await texts.parse(lambda: threading.current_thread().name, LARGE_BODY - 1)
        there = await texts.parse(lambda: threading.current_thread().name, LARGE_BODY)
        return here, there

    here, there = run(main())
    assert here == threading.current_thread().name
    assert there.startswith("text")


def test_a_long_text_does_not_hold_up_a_short_one(texts: Texts) -> None:
    """The long one waits for the short one here, so the other way round it would wait for ever."""
    short_is_done = threading.Event()

    async def main() -> None:
        long = [asyncio.ensure_future(texts._run(lambda: short_is_done.wait(30), LONG_CHARS)) for _ in range(3)]
        assert await texts.prompts(["short"], True)
        short_is_done.set()
        assert all(await asyncio.gather(*long))

    run(main())


def test_token_bytes_are_the_tokenizers(texts: Texts, tokenizer: Any) -> None:
    (token,) = tokenizer.encode("x")
    assert texts.token_bytes(token) == b"x"


def test_what_the_first_grammar_needs_is_made_ready_once_the_model_is(
    texts: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = texts.prepare()
    assert prepared is not None
    assert "grammars" in prepared.result(30)
    assert Texts(None).prepare() is None
    asked: list[Texts] = []
    monkeypatch.setattr(Texts, "prepare", lambda self: asked.append(self))
    with LiveServer() as server:
        server.wait_for(lambda: bool(asked))
        assert asked == [server.service.known().texts]
