"""What a server does where a request says nothing: it samples as the model's makers say. With the model in the box."""

from __future__ import annotations

import json
from typing import Any
from urllib.request import Request, urlopen

import pytest
from cli_process import SMALL
from served import KEY, WAIT_S, Served

from kvik.checkpoint.box import BOX

pytestmark = pytest.mark.skipif(
    not (BOX / "model.safetensors").is_file(), reason="the weights of the model in the box are not here"
)
QUESTION = {"model": "m", "messages": [{"role": "user", "content": "Tell me a story about a fox."}], "max_tokens": 40}


@pytest.fixture(scope="module")
def box() -> Any:
    with Served(str(BOX), *SMALL) as served:
        yield served


def answer(served: Served, **fields: Any) -> str:
    """The text of an answer, for whatever fields a request has beside the question."""
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    data = json.dumps({**QUESTION, **fields}).encode()
    with urlopen(Request(f"{served.url}/chat/completions", data=data, headers=headers), timeout=WAIT_S) as reply:
        text: str = json.loads(reply.read())["choices"][0]["message"]["content"]
    return text


def test_the_model_in_the_box_answers_exactly_by_default(box: Served) -> None:
    exact = answer(box, temperature=0)
    assert exact
    assert {answer(box), answer(box, temperature=None), answer(box, seed=5)} == {exact}


def test_who_gives_a_temperature_has_the_last_word(box: Served) -> None:
    assert len({answer(box, temperature=2, seed=seed) for seed in range(4)}) > 1
