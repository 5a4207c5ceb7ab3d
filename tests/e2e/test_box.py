"""The model in the box as its users meet it: no flag, no network, an answer at once; and the same through transformers.

All of it is skipped while the package comes without the weights.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_process import SMALL, environment, last_json, run_kvik

from kvik import LLM, SamplingParams
from kvik.bench.tasks import Item, read_items
from kvik.checkpoint.box import BOX
from kvik.cli.main import run

pytestmark = pytest.mark.skipif(
    not (BOX / "model.safetensors").is_file(), reason="the weights of the model in the box are not here"
)

README = Path(__file__).resolve().parents[2] / "README.md"
GREEDY = SamplingParams(temperature=0, max_tokens=192)
QUESTION = "What is TTFT?"
NOT_NEEDED = {
    *("huggingface_hub", "httpx", "requests", "tqdm", "msgspec", "llguidance", "uvicorn", "starlette", "asyncio"),
    *("prometheus_client", "torch", "multiprocessing", "ssl"),
}
"""What costs time at the start and is for other occasions."""


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(threads=1, kv_cache_memory="16MiB", max_num_seqs=8) as opened:
        yield opened


def held_out(tasks: tuple[str, ...], each: int) -> list[Item]:
    return [item for task in tasks for item in read_items(tasks=[task], limit=each)]


def said(llm: LLM, question: str) -> str:
    return llm.chat([{"role": "user", "content": question}], GREEDY)[0].outputs[0].text


# The command line ---------------------------------------------------------------------------------------------------


def test_the_first_command_answers() -> None:
    done = run_kvik("generate", QUESTION)
    assert (done.returncode, done.stderr) == (0, "")
    assert "time to first token" in done.stdout
    assert QUESTION not in done.stdout
    assert done.stdout.count("\n") == 1


def test_the_answer_needs_no_library_for_other_occasions() -> None:
    code = "import sys; from kvik.cli.main import run; run(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    command = [sys.executable, "-c", code, "generate", QUESTION, *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment(), check=True, timeout=120)
    assert "time to first token" in done.stdout
    assert not {name.partition(".")[0] for name in done.stderr.split()} & NOT_NEEDED


def test_the_answer_is_written_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        seen: tuple[str, ...] = ()

        def flush(self) -> None:
            self.seen += (self.getvalue(),)

    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    assert run(["generate", QUESTION, *SMALL]) == 0
    assert len(set(screen.seen)) > 10, "flushed after every piece"
    assert all(later.startswith(earlier) for earlier, later in zip(screen.seen, screen.seen[1:], strict=False))


def test_a_question_from_standard_input_and_in_a_file_have_the_same_answer(tmp_path: Path) -> None:
    piped = run_kvik("generate", *SMALL, stdin=QUESTION + "\n")
    (tmp_path / "questions.txt").write_text(f"{QUESTION}\nWhat is the KV cache?\n")
    record, _ = run_kvik("generate", *SMALL, "--input", str(tmp_path / "questions.txt")).stdout.splitlines()
    assert json.loads(record)["outputs"][0]["text"] + "\n" == piped.stdout


def test_a_conversation_goes_on() -> None:
    done = run_kvik("chat", *SMALL, stdin=f"{QUESTION}\nWhy does it matter?\n")
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert "time to first token" in first
    assert second != first


def test_the_transcript_in_the_readme_is_of_held_out_questions_and_true(llm: LLM) -> None:
    block = re.search(r"```console\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    if not block or "kvik generate" not in block[1]:
        pytest.skip("the README has no transcript yet")
    exchanges = [part.split("\n", 1) for part in re.split(r"^\$ ", block[1], flags=re.M)[1:]]
    assert len(exchanges) >= 10
    items = {item.messages[-1]["content"]: item for item in read_items() if len(item.messages) == 1}
    for command, answer in exchanges:
        program, verb, question = shlex.split(command)
        assert (program, verb) == ("kvik", "generate")
        assert items[question].is_right(" ".join(answer.split())), question
        assert items[question].is_right(said(llm, question)), question


def test_held_out_tasks_are_answered() -> None:
    asked = ("definition", "refusal", "addition_2", "copying")
    flags = [part for task in asked for part in ("--task", task)]
    result = last_json(run_kvik("eval", "tasks", *flags, "--limit", "25", *SMALL, "--json"))
    assert {task: found["count"] for task, found in result["tasks"].items()} == dict.fromkeys(asked, 25)
    assert all(found["accuracy"] >= 0.8 for found in result["tasks"].values())
    assert result["model"]["name"] == "kvik-box"


def test_perplexity_of_an_answer_is_low(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("TTFT is the time to first token. The KV cache holds keys and values.\n")
    result = last_json(run_kvik("eval", "ppl", "--text", str(tmp_path / "text.txt"), *SMALL, "--json"))
    assert result["model"] == "kvik-box"
    assert 0 < result["nll"] < 8, "less surprised than by tokens drawn evenly"


# Python -------------------------------------------------------------------------------------------------------------


def test_llm_without_a_name_is_the_model_in_the_box(llm: LLM) -> None:
    assert llm.engine.spec.family == "qwen3"
    assert "time to first token" in said(llm, QUESTION)
    pieces = list(llm.generate_stream("TTFT is", GREEDY))
    assert len(pieces) > 1


@pytest.fixture(scope="module")
def theirs() -> tuple[Any, Any]:
    """The folder as transformers opens it: tokenizer and model, in float32."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(BOX, dtype=torch.float32)
    return transformers.AutoTokenizer.from_pretrained(BOX), model.eval()


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_transformers_gives_the_same_greedy_answers(theirs: tuple[Any, Any]) -> None:
    """Of all, every token is the likeliest to transformers after those before it; of some, its own loop writes them."""
    import torch

    tokenizer, model = theirs
    items = held_out(("definition", "reason", "advice", "refusal", "addition_3", "json"), 2)
    with LLM(weights="f32", threads=1, kv_cache_memory="32MiB", max_num_seqs=12) as llm:
        ours = llm.chat([list(item.messages) for item in items], GREEDY, use_tqdm=False)
    for number, (item, output) in enumerate(zip(items, ours, strict=True)):
        prompt = tokenizer.apply_chat_template(list(item.messages), add_generation_prompt=True, return_dict=False)
        answer = output.outputs[0].token_ids
        assert output.prompt_token_ids == prompt
        with torch.no_grad():
            likeliest = model(torch.tensor([prompt + answer])).logits[0].argmax(-1)
            assert likeliest[len(prompt) - 1 : -1].tolist() == answer, item
            if number % 4 == 0:
                written = model.generate(torch.tensor([prompt]), max_new_tokens=GREEDY.max_tokens)
                assert written[0].tolist() == prompt + answer, item
