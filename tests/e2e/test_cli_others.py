"""`kvik info`, `bench` and `eval` from outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_process import DATA, SMALL, STORIES, last_json, run_kvik

BENCH = ["--model", "dummy:tiny-qwen3", "--repetitions", "2", *SMALL]


def test_info_names_machine_kernels_and_refusals() -> None:
    info = last_json(run_kvik("info", "--json"))
    assert info["machine"]["cores"] >= 1
    assert info["kernels"]["runner"] in ("native", "reference")
    assert all(isinstance(reason, str) and reason for reason in info["kernels"]["refused"].values())
    assert info["plan"] is None


def test_info_plans_memory_before_loading() -> None:
    plan = last_json(run_kvik("info", "--model", "dummy:tiny-llama", "--json", *SMALL))["plan"]
    assert plan["kv"] <= 16 * 2**20
    assert plan["num_tokens"] == plan["num_blocks"] * plan["block_size"]
    assert plan["max_model_len"] == 1024


def test_info_for_people() -> None:
    done = run_kvik("info", "--model", "dummy:tiny-llama", *SMALL)
    assert done.returncode == 0
    for line in ("processor", "cores", "kernels", "weights", "KV cache", "tokens that fit"):
        assert f"\n{line}" in "\n" + done.stdout


def test_an_instruction_set_that_cannot_serve_is_refused_by_name() -> None:
    info = last_json(run_kvik("info", "--json"))
    refused = info["kernels"]["refused"]
    if not refused:
        pytest.skip("every instruction set of this build runs here")
    name, reason = next(iter(refused.items()))
    done = run_kvik("generate", "--model", "dummy:tiny-llama", "--isa", name)
    assert done.returncode == 2
    assert name in done.stderr
    assert reason in done.stderr


@pytest.mark.parametrize(
    "what",
    [
        ["decode", "--batch", "2", "--context", "20", "--output-len", "3"],
        ["decode", "--stage", "engine", "--batch", "2", "--context", "20", "--output-len", "3"],
        ["prefill", "--input-len", "20"],
    ],
)
def test_bench_writes_evidence_that_verifies(what: list[str], tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    shown = last_json(run_kvik("bench", *what, *BENCH, "--json", "-o", str(target)))
    assert shown == json.loads(target.read_text())
    assert shown["machine"]["read_bandwidth"] > 1e8
    verdict = last_json(run_kvik("bench", "verify", str(target), "--json"))
    assert verdict["passed"] is True

    shown["summary"]["median"] *= 2
    target.write_text(json.dumps(shown))
    done = run_kvik("bench", "verify", str(target))
    assert done.returncode == 2
    assert "FAIL" in done.stdout
    assert done.stderr.startswith("kvik: error: the result is refused")


def test_bench_table_for_people() -> None:
    done = run_kvik("bench", "roofline", "--repetitions", "1", "--warmups", "0")
    assert done.returncode == 0
    assert "read bandwidth" in done.stdout
    assert "of at most 1" in done.stderr


@pytest.mark.skipif(not STORIES.exists(), reason=f"no model at {STORIES}")
def test_perplexity_of_a_text(tmp_path: Path) -> None:
    text = (DATA / "evaltext" / "tinystories_sample_cs336.txt").read_text(encoding="utf-8")[:3000]
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    model = [str(STORIES / "hf"), *SMALL]
    result = last_json(run_kvik("eval", "ppl", *model, "--text", str(tmp_path / "text.txt"), "--json"))
    assert 500 < result["tokens"] < 3000
    assert 0.5 < result["nll"] < 2.5
    assert 0 < result["standard_error"] < 0.2
    short = run_kvik("eval", "ppl", *model, "--text", str(tmp_path / "text.txt"), "--window", "8")
    assert float(short.stdout.split()[1]) > result["perplexity"], "less to look back on, more surprise"
    wide = run_kvik("eval", "ppl", *model, "--text", str(tmp_path / "text.txt"), "--window", "512")
    assert (wide.returncode, wide.stderr) == (2, "kvik: error: window is 512; expected at most 511\n")
