"""Tasks put to a loaded model, M0: which answers count as right, what fails, what the result says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import byte_tokenizer, expected_answer, fake_engine, fake_spec

from kvik import LLM
from kvik.bench.accuracy import GREEDY, measure_tasks, tasks_result, write_result, write_wrong
from kvik.bench.checks import EvidenceError
from kvik.bench.tasks import Item
from kvik.errors import InvalidRequestError
from kvik.text.tokenizer import Tokenizer

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}-{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return byte_tokenizer(tmp_path_factory.mktemp("bytes")).with_chat_template(TEMPLATE)


@pytest.fixture
def llm(tokenizer: Tokenizer) -> Iterator[LLM]:
    with LLM.from_engine(fake_engine(tokenizer=tokenizer, max_num_seqs=4)) as opened:
        yield opened


def item(task: str, question: str, answer: str = "") -> Item:
    return Item(task, ({"role": "user", "content": question},), answer)


def answer_of(tokenizer: Tokenizer, question: str) -> str:
    """What M0 says: the template's rendering, without thinking, is its prompt."""
    return tokenizer.decode(expected_answer(tokenizer.encode(f"[user]{question}-"), GREEDY, spec=fake_spec()))


def test_answers_are_judged_in_the_order_of_the_questions(llm: LLM, tokenizer: Tokenizer) -> None:
    questions = [str(number) * (1 + number % 7) for number in range(12)]
    right = [item("known", each, answer_of(tokenizer, each)) for each in questions]
    wrong = [item("unknown", each, "no answer that M0 gives") for each in questions[:3]]
    judged = measure_tasks(llm, [*wrong, *right], progress=False)
    assert {task: (each.right, each.count) for task, each in judged.by_task.items()} == {
        "unknown": (0, 3),
        "known": (12, 12),
    }


def test_a_question_that_fails_names_its_task(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match=r"a question of task long fails: .* the prompt has 607 tokens"):
        measure_tasks(llm, [item("short", "a"), item("long", "a" * 600)], progress=False)


def test_a_model_without_a_template_is_refused(tmp_path: Path) -> None:
    with (
        LLM.from_engine(fake_engine(tokenizer=byte_tokenizer(tmp_path))) as plain,
        pytest.raises(InvalidRequestError, match="no chat template"),
    ):
        measure_tasks(plain, [item("a", "a"), item("a", "b")], progress=False)


def test_the_result_says_with_what_it_was_obtained(llm: LLM, tmp_path: Path) -> None:
    judged = measure_tasks(llm, [item("a", "b"), item("a", "c")], progress=False)
    result = tasks_result(llm, judged)
    write_result(result, tmp_path / "result.json")
    back = json.loads((tmp_path / "result.json").read_text())
    assert back == result
    assert back["kind"] == "tasks"
    assert back["model"]["name"] == "fake"
    assert back["options"]["weights"] == "auto"
    assert back["overall"]["count"] == back["tasks"]["a"]["count"] == 2
    assert {"date", "kvik_version", "commit", "machine", "how_obtained"} <= back.keys()


def test_wrong_answers_are_written_with_what_was_said(llm: LLM, tokenizer: Tokenizer, tmp_path: Path) -> None:
    judged = measure_tasks(llm, [item("a", "b", "right"), item("a", "c", answer_of(tokenizer, "c"))], progress=False)
    write_wrong(judged, tmp_path / "wrong.jsonl")
    (record,) = map(json.loads, (tmp_path / "wrong.jsonl").read_text().splitlines())
    assert (record["answer"], record["said"]) == ("right", answer_of(tokenizer, "b"))


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="nowhere"):
        write_result({}, tmp_path / "nowhere" / "result.json")
