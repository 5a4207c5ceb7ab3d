"""Prompts asked as questions, and tasks, on the command line: what reaches the model, what is printed. On M0."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from fakes import byte_tokenizer, expected_answer, fake_engine

from kvik import LLM, SamplingParams
from kvik.cli import chat, evaluate, generate
from kvik.cli.main import run
from kvik.text.tokenizer import Tokenizer

Capture = pytest.CaptureFixture[str]
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}>"
GREEDY = SamplingParams(temperature=0, max_tokens=6)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("bytes")
    (directory / "generation_config.json").write_text('{"do_sample": false}')
    return byte_tokenizer(directory).with_chat_template(TEMPLATE)


@pytest.fixture
def on_m0(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> Callable[[Tokenizer], None]:
    """Commands load M0, whatever model they name."""

    def use(its: Tokenizer) -> None:
        @contextmanager
        def open_m0(engine: dict[str, Any]) -> Iterator[LLM]:
            with LLM.from_engine(fake_engine(tokenizer=its)) as llm:
                yield llm

        for module in (generate, evaluate):
            monkeypatch.setattr(module, "open_llm", open_m0)

    use(tokenizer)
    return use


def text_of(tokenizer: Tokenizer, prompt: str, params: SamplingParams = GREEDY) -> str:
    return tokenizer.decode(expected_answer(tokenizer.encode(prompt), params))


@pytest.mark.usefixtures("on_m0")
@pytest.mark.parametrize(
    ("flags", "head", "prompt"),
    [
        ([], "", "[user]abc>"),
        (["--echo"], "abc\n", "[user]abc>"),
        (["--no-chat"], "abc", "abc"),
        (["--no-chat", "--no-echo"], "", "abc"),
        (["--model", "any"], "abc", "abc"),
        (["--model", "any", "--chat"], "", "[user]abc>"),
    ],
)
def test_a_prompt_is_a_question_to_the_model_in_the_box_only(
    tokenizer: Tokenizer, capsys: Capture, flags: list[str], head: str, prompt: str
) -> None:
    assert run(["generate", "abc", "--max-tokens", "6", *flags]) == 0
    assert capsys.readouterr().out == head + text_of(tokenizer, prompt) + "\n"


@pytest.mark.usefixtures("on_m0")
def test_a_model_that_asks_to_be_greedy_is_so_unless_told(tokenizer: Tokenizer, capsys: Capture) -> None:
    assert run(["generate", "abc", "--max-tokens", "6", "--temperature", "1"]) == 0
    assert capsys.readouterr().out != text_of(tokenizer, "[user]abc>") + "\n"


@pytest.mark.parametrize(
    ("said", "flags", "expected"),
    [
        ({}, [], {}),
        ({"temperature": 0.6, "top_k": 20}, [], {"temperature": 0.6, "top_k": 20}),
        ({"temperature": 0.6, "top_k": 20}, ["--top-k", "3"], {"temperature": 0.6, "top_k": 3}),
        ({"top_p": 0.9}, ["--temperature", "1.0", "--top-p", "1.0"], {}),
        ({"do_sample": False}, [], {"temperature": 0.0}),
    ],
)
@pytest.mark.parametrize("command", ["generate", "chat"])
def test_flags_left_alone_follow_the_models_generation_config(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: str,
    said: dict[str, Any],
    flags: list[str],
    expected: dict[str, Any],
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    llm = LLM.from_engine(fake_engine(tokenizer=byte_tokenizer(tmp_path).with_chat_template(TEMPLATE)))
    seen: list[SamplingParams] = []

    def spy(llm: LLM, prompt: Any, params: SamplingParams) -> Any:
        seen.append(params)
        return iter(())

    for module in (generate, chat):
        monkeypatch.setattr(module, "open_llm", lambda engine: nullcontext(llm))
        monkeypatch.setattr(module, "stream", spy)
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert run([command, *(["abc"] if command == "generate" else []), *flags]) == 0
    own = {"max_tokens": generate.MAX_TOKENS} if command == "generate" else {"max_tokens": 1024, "temperature": 0.7}
    if "--temperature" in flags:
        own["temperature"] = 1.0
    assert seen == [SamplingParams(**own | expected)]


@pytest.mark.usefixtures("on_m0")
def test_json_names_the_question_and_choices_are_numbered(tokenizer: Tokenizer, capsys: Capture) -> None:
    assert run(["generate", "abc", "--max-tokens", "6", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["prompt"] == "abc"
    assert record["prompt_token_ids"] == tokenizer.encode("[user]abc>")
    assert run(["generate", "abc", "--max-tokens", "6", "--n", "2"]) == 0
    assert capsys.readouterr().out == "".join(f"[{n}] {text_of(tokenizer, '[user]abc>')}\n" for n in (0, 1))


@pytest.mark.usefixtures("on_m0")
def test_token_ids_are_no_question(tokenizer: Tokenizer, capsys: Capture) -> None:
    assert run(["generate", "--prompt-token-ids", "65,66", "--max-tokens", "6"]) == 0
    assert capsys.readouterr().out == tokenizer.decode(expected_answer([65, 66], GREEDY)) + "\n"
    assert run(["generate", "--prompt-token-ids", "65,66", "--chat"]) == 2
    assert "--chat asks a text" in capsys.readouterr().err


@pytest.mark.usefixtures("on_m0")
def test_a_file_of_questions(tokenizer: Tokenizer, capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": "abc"}) + "\n" + json.dumps({"prompt": "x" * 600}) + "\n")
    assert run(["generate", "--input", str(tmp_path / "in.jsonl"), "--max-tokens", "6"]) == 2
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["index"], first["prompt"], first["error"]) == (0, "abc", None)
    assert first["outputs"][0]["text"] == text_of(tokenizer, "[user]abc>")
    assert (second["prompt"], second["outputs"][0]["text"]) == ("x" * 600, "")
    assert "607 tokens" in second["error"]


@pytest.mark.usefixtures("on_m0")
@pytest.mark.parametrize(
    ("record", "said"),
    [({"prompt_token_ids": [1]}, "prompt_token_ids"), ({"prompt": 5}, "5"), ({"prompt": " "}, "' '")],
)
def test_what_is_no_question_is_refused(capsys: Capture, tmp_path: Path, record: dict[str, Any], said: str) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps(record) + "\n")
    assert run(["generate", "--input", str(tmp_path / "in.jsonl")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "expected a question" in error


def test_a_model_without_a_template_is_not_asked(
    on_m0: Callable[[Tokenizer], None], capsys: Capture, tmp_path: Path
) -> None:
    on_m0(byte_tokenizer(tmp_path))
    assert run(["generate", "abc", "--model", "any", "--chat"]) == 2
    assert capsys.readouterr().err == "kvik: error: model fake has no chat template; leave out --chat\n"
    assert run(["eval", "tasks", "any"]) == 2
    assert "model fake has no chat template" in capsys.readouterr().err


# Tasks --------------------------------------------------------------------------------------------------------------


def write_tasks(path: Path, tokenizer: Tokenizer) -> Path:
    """Two tasks; M0 gets one of the three answers right."""
    long = SamplingParams(temperature=0, max_tokens=192)
    records = [
        {"task": "a", "messages": [{"role": "user", "content": "q"}], "answer": text_of(tokenizer, "[user]q>", long)},
        {"task": "a", "messages": [{"role": "user", "content": "r"}], "answer": "other"},
        {"task": "b", "messages": [{"role": "user", "content": "s"}], "answer": "other"},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.usefixtures("on_m0")
def test_tasks_are_a_table_for_people(tokenizer: Tokenizer, capsys: Capture, tmp_path: Path) -> None:
    file = write_tasks(tmp_path / "tasks.jsonl", tokenizer)
    assert run(["eval", "tasks", "--file", str(file), "--wrong", str(tmp_path / "wrong.jsonl")]) == 0
    rows = [line.split()[:3] for line in capsys.readouterr().out.splitlines()]
    assert rows == [["task", "questions", "right"], ["a", "2", "1"], ["b", "1", "0"], ["all", "3", "1"]]
    assert len((tmp_path / "wrong.jsonl").read_text().splitlines()) == 2


@pytest.mark.usefixtures("on_m0")
def test_tasks_as_data_chosen_and_limited(tokenizer: Tokenizer, capsys: Capture, tmp_path: Path) -> None:
    flags = ["--file", str(write_tasks(tmp_path / "tasks.jsonl", tokenizer)), "--task", "a", "--limit", "1"]
    assert run(["eval", "tasks", *flags, "--json", "-o", str(tmp_path / "result.json")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "result.json").read_text())
    assert (list(result["tasks"]), result["overall"]["right"], result["overall"]["count"]) == (["a"], 1, 1)


@pytest.mark.usefixtures("on_m0")
def test_a_task_that_is_not_there_is_named_with_those_that_are(
    tokenizer: Tokenizer, capsys: Capture, tmp_path: Path
) -> None:
    assert run(["eval", "tasks", "--file", str(write_tasks(tmp_path / "t.jsonl", tokenizer)), "--task", "c"]) == 2
    assert capsys.readouterr().err == "kvik: error: task is 'c'; expected one of a, b\n"
