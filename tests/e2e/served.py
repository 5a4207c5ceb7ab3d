"""A live `kvik serve` for tests of real clients, and the smallest model that can be made to spell JSON.

Structured answers come from random weights over single bytes: whatever it says that makes sense was put there by the
grammar. This file knows nothing of any client.
"""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from cli_process import SMALL, start_kvik
from fakes import byte_tokenizer
from tokenizers import AddedToken, Tokenizer

from kvik.checkpoint import write_checkpoint
from kvik.checkpoint.dummy import DUMMIES, DummyCheckpoint
from kvik.checkpoint.fake import FakeOptions
from kvik.runners.fake import fake_answer, fake_tokenizer
from kvik.text.byte_tokenizer import CHAT_TEMPLATE, IM_END, SPECIAL_TOKENS

KEY = "a-key-for-the-clients"
WAIT_S = 60.0
FAKE = "fake:length=24,text=ascii"
"""Every answer ends by itself, after 24 tokens."""

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Oslo"]}, "days": {"enum": [1, 2, 3]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
"""A schema with so few texts that random weights come to an end of each."""
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": "What the weather will be.", "parameters": WEATHER},
}


class Served:
    """A running server: `url` for clients, `lines` of its log so far. Closed by `with`."""

    def __init__(self, model: str, *args: str) -> None:
        names = ("--served-model-name", "m", "--api-key", KEY)
        self._process = start_kvik("serve", "--port", "0", "--drain-timeout", "0", "--model", model, *names, *args)
        self.lines: list[str] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self._ready.wait(WAIT_S)
        found = [match for line in self.lines if (match := re.search(r"url=(http://\S+)", line))]
        if not found or not self.is_alive():
            self.close()
            raise AssertionError(self.lines)
        self.url = found[0][1].rstrip("/") + "/v1"

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line.rstrip("\n"))
            if " ready " in line:
                self._ready.set()
        self._ready.set()

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def stats(self) -> dict[str, Any]:
        """What the server says of itself."""
        request = Request(self.url.removesuffix("/v1") + "/stats", headers={"authorization": f"Bearer {KEY}"})
        with urlopen(request, timeout=WAIT_S) as reply:
            value: dict[str, Any] = json.loads(reply.read())
        return value

    def statuses(self, request_id: str) -> list[int]:
        """How the requests of this id were answered, each try of its own; all of them must be over."""
        mark = f"after-{request_id}"
        ask = Request(f"{self.url}/models", headers={"authorization": f"Bearer {KEY}", "x-request-id": mark})
        with urlopen(ask, timeout=WAIT_S):
            pass
        end = time.monotonic() + WAIT_S
        while not any(f"id={mark} " in line for line in self.lines):
            assert time.monotonic() < end, self.lines
            time.sleep(0.005)
        own = [line for line in self.lines if f"id={request_id} " in line]
        return [int(match[1]) for line in own if (match := re.search(r" status=(\d+)", line))]

    def until(self, holds: Callable[[dict[str, Any]], bool]) -> None:
        """Wait for the statistics to be so."""
        end = time.monotonic() + WAIT_S
        while not holds(seen := self.stats()):
            assert time.monotonic() < end, seen
            time.sleep(0.01)

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reader.join(WAIT_S)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def said_to(question: str, count: int = 1000) -> str:
    """What the fake model must say to a user's one message at temperature 0, `count` tokens at most."""
    tokenizer = fake_tokenizer()
    prompt = tokenizer.encode_chat([{"role": "user", "content": question}])
    return tokenizer.decode(fake_answer(prompt, count, options=FakeOptions.parse(FAKE.removeprefix("fake:"))))


def obeys(arguments: dict[str, Any]) -> bool:
    """Whether these are arguments that WEATHER allows."""
    return arguments.keys() == {"city", "days"} and all(
        arguments[name] in WEATHER["properties"][name]["enum"] for name in arguments
    )


def write_speller(directory: Path) -> Path:
    """A tiny Llama of random weights over the 256 bytes and three special tokens, in Hugging Face layout."""
    byte_tokenizer(directory)
    path = directory / "tokenizer.json"
    tokens = Tokenizer.from_file(str(path))
    tokens.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS])
    tokens.save(str(path))
    said = {"eos_token": IM_END, "chat_template": CHAT_TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(said))
    spec = replace(DUMMIES["tiny-llama"], vocab_size=259, bos_id=256, eos_ids=(258,))
    write_checkpoint(DummyCheckpoint.from_spec(spec), directory)
    return directory


@pytest.fixture(scope="module")
def fake() -> Any:
    """A server of the fake model."""
    with Served(FAKE) as served:
        yield served


@pytest.fixture(scope="module")
def speller(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server of a model that follows grammars and knows nothing else."""
    directory = write_speller(tmp_path_factory.mktemp("model") / "speller")
    with Served(str(directory), *SMALL, "--max-model-len", "1024") as served:
        yield served
