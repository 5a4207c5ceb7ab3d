"""`kvik generate` from outside: golden text, token ids, files, pipes, interrupts."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from cli_process import SMALL, STORIES, last_json, run_kvik, start_kvik

DUMMY = ["generate", "--model", "dummy:tiny-llama", *SMALL]
STORY = ["generate", "--model", str(STORIES / "hf"), *SMALL, "--temperature", "0"]
needs_stories = pytest.mark.skipif(not STORIES.exists(), reason=f"no model at {STORIES}")


def golden(index: int) -> dict[str, str]:
    found: dict[str, str] = json.loads((STORIES / "golden.json").read_text(encoding="utf-8"))["greedy"][index]
    return found


@needs_stories
@pytest.mark.parametrize("index", [0, 1, 2])
def test_prints_the_golden_text(index: int) -> None:
    done = run_kvik(*STORY, golden(index)["prompt"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == golden(index)["text"] + "\n"


@needs_stories
def test_prompt_from_standard_input_without_echo() -> None:
    prompt, text = golden(1)["prompt"], golden(1)["text"]
    done = run_kvik(*STORY, "--no-echo", stdin=prompt + "\n")
    assert done.stdout == text.removeprefix(prompt) + "\n"


@needs_stories
def test_json_is_one_object_on_the_last_line() -> None:
    result = last_json(run_kvik(*STORY, golden(1)["prompt"], "--json", "--max-tokens", "5", "--logprobs", "2"))
    choice = result["outputs"][0]
    assert choice["token_ids"] == json.loads((STORIES / "golden.json").read_text())["greedy"][1]["greedy_ids"][:5]
    assert choice["finish_reason"] == "length"
    assert [entry["token_id"] for entry in choice["logprobs"]] == choice["token_ids"]
    assert all(len(entry["top"]) == 2 and entry["logprob"] <= 0 for entry in choice["logprobs"])
    assert 0 < result["ttft_s"] <= result["seconds"]


@needs_stories
def test_a_stop_string_ends_the_text() -> None:
    done = run_kvik(*STORY, "Once upon a time", "--stop", "Lily")
    assert done.stdout == "Once upon a time, there was a little girl named \n"


@needs_stories
def test_a_file_of_prompts_fails_one_by_one(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts = [{"prompt": "Once upon a time"}, {"prompt_token_ids": [1, 9999]}, {"prompt_token_ids": [1]}]
    source.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    done = run_kvik(*STORY, "--max-tokens", "3", "--input", str(source), "--output", str(target))
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert done.returncode == 2
    assert done.stderr == "kvik: error: 1 of 3 prompts failed; their lines say why\n"
    assert [line["index"] for line in lines] == [0, 1, 2]
    assert "9999" in lines[1]["error"]
    assert len(lines[0]["outputs"][0]["token_ids"]) == len(lines[2]["outputs"][0]["token_ids"]) == 3


def test_a_model_without_text_prints_token_ids() -> None:
    done = run_kvik(*DUMMY, "--max-tokens", "4", "--ignore-eos")
    assert done.returncode == 0
    assert len([int(word) for word in done.stdout.split()]) == 4


def test_the_same_seed_gives_the_same_tokens_and_another_does_not() -> None:
    flags = ["--max-tokens", "12", "--ignore-eos", "--prompt-token-ids", "5,6"]
    first, again, other = (run_kvik(*DUMMY, *flags, "--seed", seed).stdout for seed in ("1", "1", "2"))
    assert first == again != other


def test_several_choices_are_numbered() -> None:
    done = run_kvik(*DUMMY, "--max-tokens", "3", "--n", "2", "--ignore-eos")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["[0]", "[1]"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--model", "/no/such/model"], "/no/such/model"),
        (["--model", "dummy:nothing"], "tiny-llama"),
        (["--model", "dummy:tiny-llama", "a text"], "token ids"),
        (["--model", "dummy:tiny-llama", "--prompt-token-ids", "1,400"], "400"),
        (["--model", "dummy:tiny-llama", "--prompt-token-ids", ",".join(["1"] * 2000)], "2000"),
        (["--model", "dummy:tiny-llama", "--max-tokens", "0"], "max_tokens is 0"),
        (["--model", "dummy:tiny-llama", "--max-tokens", "-3"], "max_tokens is -3"),
        (["--model", "dummy:tiny-llama", "--temperature", "nan"], "temperature is nan"),
        (["--model", "dummy:tiny-llama", "--max-model-len", "4000"], "1024"),
        (["--model", "dummy:tiny-llama", "--tensor-parallel-size", "2"], "tensor_parallel_size is 2"),
        (["--model", "dummy:tiny-llama", "--isa", "amx", "--backend", "sideways"], "sideways"),
        (["--no-such-flag"], "--no-such-flag"),
    ],
)
def test_bad_input_is_one_line_and_status_2(args: list[str], said: str) -> None:
    done = run_kvik("generate", *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("kvik: error: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


@pytest.mark.parametrize(
    ("args", "kind", "said"),
    [
        (["[[raise]]"], "RuntimeError", ""),
        (["[[oom]]", "--json"], "MemoryError", ""),
        (["[[nan]]", "--n", "2"], "NaN", ""),
        (["[[raise@3]] x", "--temperature", "0"], "RuntimeError", "[[raise@3]] x"),
    ],
)
def test_a_request_that_fails_in_the_engine_is_one_line_and_status_2(args: list[str], kind: str, said: str) -> None:
    done = run_kvik("generate", "--model", "fake:length=9", *args)
    assert done.returncode == 2
    assert done.stderr.startswith("kvik: error: ")
    assert kind in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout.startswith(said)
    assert done.stdout[-1:] == ("\n" if said else "")


def test_too_little_memory_says_what_is_needed() -> None:
    done = run_kvik("generate", "--model", "dummy:qwen3-0.6b", "--kv-cache-memory", "1000GiB")
    assert done.returncode == 2
    assert "1000.00 GiB" in done.stderr


ENDLESS = [*DUMMY, "--backend", "reference", "--ignore-eos", "--max-tokens", "1000"]


def test_ctrl_c_is_status_130_without_a_trace() -> None:
    process = start_kvik(*ENDLESS)
    assert process.stdout is not None
    assert process.stdout.read(1)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.strip() == ""


def test_a_closed_pipe_is_quiet() -> None:
    process = start_kvik(*ENDLESS)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) != 0
    assert said == ""
