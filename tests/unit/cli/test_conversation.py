"""A conversation: which messages reach the template, what commands do, what is shown."""

from __future__ import annotations

import io
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from kvik.cli import chat
from kvik.cli.chat import Conversation, speed
from kvik.errors import ContextLengthError
from kvik.request import CompletionOutput, RequestOutput, SamplingParams

Capture = pytest.CaptureFixture[str]


class Script:
    """A model that answers `echo N` to a conversation of N messages and refuses one that says `too long`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[list[dict[str, str]]] = []
        self.tokenizer = SimpleNamespace(encode_chat=self.encode, has_chat_template=True)
        monkeypatch.setattr(chat, "stream", self.stream)
        self.monkeypatch = monkeypatch

    def encode(self, messages: list[dict[str, str]]) -> list[int]:
        self.seen.append([dict(message) for message in messages])
        if "too long" in messages[-1]["content"]:
            raise ContextLengthError("the prompt has 900 tokens")
        return [len(messages)]

    def stream(self, llm: Any, prompt: list[int], params: SamplingParams) -> Iterator[RequestOutput]:
        for text in ("echo ", f"echo {prompt[0]}"):
            yield RequestOutput("r", None, prompt, [CompletionOutput(0, text, [1])])

    def hold(self, *lines: str, system: str | None = None) -> list[list[tuple[str, str]]]:
        """The conversation these lines make: what the template saw at each turn."""
        self.monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        llm: Any = self
        Conversation(llm, SamplingParams(), system).run()
        return [[(message["role"], message["content"]) for message in seen] for seen in self.seen]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    return Script(monkeypatch)


def test_history_goes_along(script: Script, capsys: Capture) -> None:
    turns = script.hold("one", "", "two")
    assert turns[0] == [("user", "one")]
    assert turns[1] == [("user", "one"), ("assistant", "echo 1"), ("user", "two")]
    assert capsys.readouterr().out == "echo 1\necho 3\n"


def test_reset_keeps_the_system_message_only(script: Script) -> None:
    turns = script.hold("one", "/reset", "two", system="Be kind.")
    assert turns[1] == [("system", "Be kind."), ("user", "two")]


def test_system_starts_over(script: Script) -> None:
    turns = script.hold("one", "/system Be brief.", "two", "/system", "three")
    assert turns[1] == [("system", "Be brief."), ("user", "two")]
    assert turns[2] == [("user", "three")]


def test_exit_leaves_at_once(script: Script) -> None:
    assert len(script.hold("one", "/exit", "two")) == 1


def test_an_unknown_command_is_named_and_not_sent(script: Script, capsys: Capture) -> None:
    assert script.hold("/nonsense now") == []
    assert "/nonsense is no command" in capsys.readouterr().err


def test_a_message_that_does_not_fit_is_taken_back(script: Script, capsys: Capture) -> None:
    turns = script.hold("one", "too long", "two")
    assert turns[2] == [("user", "one"), ("assistant", "echo 1"), ("user", "two")]
    assert capsys.readouterr().err == "kvik: error: the prompt has 900 tokens (/reset starts over)\n"


def test_speed_counts_the_tokens_after_the_first() -> None:
    assert speed(11, 0.25, 2.0) == "11 tokens, 5.0 tokens/s, first after 250 ms"
    assert speed(1, 0.25, 0.0) == "1 tokens, first after 250 ms"
