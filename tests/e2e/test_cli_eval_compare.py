"""`kvik eval` from outside: models held against each other, and perplexity with sliding windows."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_process import DATA, SMALL, STORIES, last_json, run_kvik

TEXT = "TTFT is the time to first token. The KV cache holds keys and values of every token seen so far.\n" * 4
QUICK = ["--threads", "1", "--rounds", "1", "--steps", "4"]


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return str(tmp_path / "text.txt")


def test_forms_of_the_model_in_the_box(text: str, tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    operands = ["box", "box", "box@weights=int4,kv_dtype=int8"]
    result = last_json(run_kvik("eval", "compare", *operands, "--text", text, *QUICK, "--json", "-o", str(target)))
    first, second, int4 = result["judged"]["sides"].values()
    same = second["figures"]["text"]
    assert (same["divergence_mean"], same["nll_difference"], same["nll_difference_error"]) == (0, 0, 0)
    assert same["agreement"] == 1
    lost = int4["figures"]["text"]
    assert 0 < lost["divergence_mean"] < 1
    assert 0.5 < lost["agreement"] <= 1
    assert lost["bits_per_byte"] > 0
    assert int4["memory_bytes"]["weights"] < 0.4 * first["memory_bytes"]["weights"]
    assert int4["memory_bytes"]["kv"] < first["memory_bytes"]["kv"]
    assert first["disk_bytes"] == int4["disk_bytes"] > first["memory_bytes"]["weights"] / 2
    assert all(check["passed"] for check in result["checks"])
    assert last_json(run_kvik("bench", "verify", str(target), "--json"))["passed"] is True


def test_a_table_for_people_with_answers() -> None:
    done = run_kvik("eval", "compare", "box", "box@weights=int8", "--tokens", "60", "--tasks", "1", *QUICK)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1:3] == ["  A = box", "  B = box@weights=int8"]
    assert lines[3].split()[:2] == ["perplexity", "change"]
    assert "+0.00 +- 0.00 %" in lines[4]
    assert any(line.startswith("B   ") and "answers right" in line for line in lines)


@pytest.mark.skipif(not STORIES.exists(), reason=f"no model at {STORIES}")
def test_perplexity_of_the_reference_is_what_ppl_says(tmp_path: Path) -> None:
    words = (DATA / "evaltext" / "tinystories_sample_cs336.txt").read_text(encoding="utf-8")[:1500]
    (tmp_path / "text.txt").write_text(words, encoding="utf-8")
    text, windows = ["--text", str(tmp_path / "text.txt")], ["--window", "128", "--stride", "64"]
    model = str(STORIES / "hf")
    ppl = last_json(run_kvik("eval", "ppl", model, *text, *windows, *SMALL, "--json"))
    both = last_json(run_kvik("eval", "compare", model, f"{model}@weights=int8", *text, *windows, *QUICK, "--json"))
    reference = both["judged"]["sides"][model]["figures"]["text"]
    assert both["workload"]["scored_tokens"] == ppl["tokens"]
    assert ppl["stride"] == 64
    for name in ("nll", "standard_error", "perplexity", "bits_per_byte"):
        assert reference[name] == pytest.approx(ppl[name], rel=1e-4), name
    apart = last_json(run_kvik("eval", "ppl", model, *text, "--window", "128", *SMALL, "--json"))
    assert apart["nll"] > ppl["nll"], "less to look back on, more surprise"
    assert apart["tokens"] == ppl["tokens"], "with a beginning, every token is scored either way"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["compare", "box"], "1 model is given; expected a reference and at least one to hold against it"),
        (["compare", "box", "box@bits=4"], "no option 'bits'; expected one of weights"),
        (["compare", "box", "dummy:tiny-llama", "--tokens", "9"], "dummy:tiny-llama has a vocabulary of"),
        (["compare", "box", "nowhere", "--tokens", "9"], "no such directory"),
        (["compare", "box", "box"], "neither a text nor a number of tokens is given"),
        (["compare", "box", "box", "--tokens", "9", "--model", "box"], "expected no --model"),
        (["ppl", "--text", "TEXT", "--stride", "9999"], "stride is 9999; expected 1 to"),
    ],
)
def test_a_bad_wish_is_one_line(args: list[str], said: str, text: str) -> None:
    done = run_kvik("eval", *(text if arg == "TEXT" else arg for arg in args), "--threads", "1")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("kvik: error: ")
    assert said in line
