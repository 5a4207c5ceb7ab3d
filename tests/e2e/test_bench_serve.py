"""Load measurement from the command line, on a server whose pace is known: the fake model, 20 ms a step.

Bounds are factors: a step cannot be shorter than it was set to, and a busy machine makes it longer. One command runs as
a process, the others in this one, where they start faster.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_process import last_json, run_kvik
from served import KEY, Served

from kvik.bench import stages as staging
from kvik.bench.serve import ramp
from kvik.cli.main import run

STEP_MS = 20.0
TOKENS = 12
"""Of every answer, the one that ends it included."""
SLACK = 6.0
"""Of a machine that does other things as well."""
LOAD = ["--api-key", KEY, "--input-len", "16", "--output-len", "64", "--warmups", "2"]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    model = f"fake:step_ms={STEP_MS:g},length={TOKENS - 1},text=ascii"
    with Served(model) as served:
        yield served.url


class Commands:
    """Commands in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def run(self, *args: str) -> tuple[int, str, str]:
        """Status, output, error output."""
        status = run(list(args))
        said = self._capsys.readouterr()
        return status, said.out, said.err

    def json(self, *args: str) -> dict[str, Any]:
        """The JSON object of one that succeeds."""
        status, out, err = self.run(*args, "--json")
        assert status == 0, err
        value: dict[str, Any] = json.loads(out.splitlines()[-1])
        return value

    def bench(self, url: str, *args: str) -> dict[str, Any]:
        """One load."""
        return self.json("bench", "serve", "--url", url, *LOAD, *args)


@pytest.fixture
def kvik(capsys: pytest.CaptureFixture[str]) -> Commands:
    return Commands(capsys)


def test_a_closed_loop_finds_the_pace_that_was_set(url: str, tmp_path: Path, kvik: Commands) -> None:
    path = tmp_path / "serve.json"
    flags = ["--concurrency", "4", "--num-prompts", "12", "--slo-ttft", "60000", "-o", str(path), "--json"]
    result = last_json(run_kvik("bench", "serve", "--url", url, *LOAD, *flags))
    (sample,) = result["samples"]
    assert (sample["sent"], sample["succeeded"], sample["errors"]) == (12, 12, {})
    assert sample["tokens"] == 12 * TOKENS
    assert STEP_MS <= sample["ttft_ms"]["p50"] < SLACK * 2 * STEP_MS
    assert 0.95 * STEP_MS < sample["tpot_ms"]["p50"] < SLACK * STEP_MS
    assert sample["e2e_ms"]["p50"] > 0.95 * STEP_MS * TOKENS
    assert 1 < sample["mean_in_flight"] <= 4
    assert sample["tokens_per_s"] <= 1.05 * 4 * 1e3 / STEP_MS, "four rows, a token each, every 20 ms"
    assert sample["goodput"]["share"] == 1.0
    assert 0 < sample["client"]["share"] < 1
    assert sample["server"]["alone"]
    assert sample["server"]["did"]["generated_tokens"] == 12 * TOKENS
    assert all(check["passed"] for check in result["checks"])
    status, out, err = kvik.run("bench", "verify", str(path))
    assert status == 0, err
    assert "TTFT + TPOT x (tokens - 1) = E2E" in out


def test_a_changed_result_is_refused(url: str, tmp_path: Path, kvik: Commands) -> None:
    path = tmp_path / "serve.json"
    kvik.bench(url, "--num-prompts", "2", "-o", str(path))
    result = json.loads(path.read_text())
    result["samples"][0]["ttft_ms"]["p99"] /= 2
    path.write_text(json.dumps(result))
    status, _, err = kvik.run("bench", "verify", str(path))
    assert (status, "figures follow from the records" in err) == (2, True)


def test_an_open_loop_and_a_trace_come_when_they_come(url: str, tmp_path: Path, kvik: Commands) -> None:
    result = kvik.bench(url, "--rate", "200", "--num-prompts", "20", "--chat")
    due = [record["due_us"] for record in result["samples"][0]["records"]]
    assert due == sorted(due)
    assert due[0] == 0 < due[-1] < 1e6
    trace = tmp_path / "trace.csv"
    rows = "".join(f"2023-11-16 18:15:4{second}.0000000,{9 + second},{3 + second}\n" for second in range(3))
    trace.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}")
    result = kvik.bench(url, "--trace", str(trace), "--speed-up", "20", "--max-output-len", "4")
    sample = result["samples"][0]
    assert [record["due_us"] for record in sample["records"]] == [0, 50_000, 100_000]
    assert [record["output_tokens"] for record in sample["records"]] == [3, 4, 4]
    assert result["workload"]["clipped"] == 1


def test_a_profile_that_is_not_kept_says_what_to_change(url: str, kvik: Commands) -> None:
    flags = ["--num-prompts", "4", "--profile", "batch"]
    status, out, err = kvik.run("bench", "serve", "--url", url, *LOAD, *flags, "--json")
    assert status == 1, err
    result = json.loads(out.splitlines()[-1])
    broken = {limit["name"] for limit in result["profile"]["limits"] if limit["passed"] is False}
    assert "tokens_per_s" in broken
    assert result["advice"]
    assert {each["metric"] for each in result["advice"]} <= {"ttft_ms", "tokens_per_s"}


def test_a_ramp_ends_where_the_slo_breaks(url: str, kvik: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """No request can have a first token in 1 ms, any can in a minute."""
    monkeypatch.setattr(ramp, "MOST_STEPS", 3)
    short = ["--output-len", "2", "--num-prompts", "2"]
    result = kvik.bench(url, "--ramp", "64", *short, "--slo-ttft", "60000")
    assert (result["kind"], result["ramp"]["broke"], len(result["ramp"]["steps"])) == ("serve-ramp", False, 3)
    assert result["ramp"]["largest_rate"] == 256 == result["workload"]["rate"]
    status, _, err = kvik.run("bench", "serve", "--url", url, *LOAD, *short, "--ramp", "8", "--slo-ttft", "1")
    assert status == 2
    assert "no rate kept the SLO; tried 8, 4, 2 requests/s" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--rate", "1", "--concurrency", "2"], "concurrency and rate are given"),
        (["--chat", "--top-token", "9"], "top_token makes prompts of token ids"),
        (["--ramp", "1"], "rises until the SLO breaks"),
        (["--input-len", "0"], "input_len is '0'"),
        (["--api-key", "wrong-key"], "cannot be asked for its models: http 401"),
        (["--model", "nobody"], "cannot be measured: http 404"),
    ],
)
def test_what_cannot_be_measured_is_one_line(url: str, args: list[str], message: str, kvik: Commands) -> None:
    status, _, err = kvik.run("bench", "serve", "--url", url, *LOAD, *args)
    assert status == 2
    assert message in err
    assert err.strip().count("\n") <= 1


def test_nobody_listens(kvik: Commands) -> None:
    status, _, err = kvik.run("bench", "serve", "--url", "http://127.0.0.1:9")
    assert (status, "connect: 127.0.0.1:9" in err) == (2, True)


def test_advice_on_a_server_and_on_a_result(url: str, tmp_path: Path, kvik: Commands) -> None:
    path = tmp_path / "serve.json"
    kvik.bench(url, "--num-prompts", "4", "-o", str(path))
    report = kvik.json("advise", "--result", str(path), "--tpot", "5", "--no-fit")
    assert report["observed"]["max_num_seqs"] == 256
    assert [each["metric"] for each in report["advice"]] == ["tpot_ms"]
    asked = ["--url", url, "--api-key", KEY, "--ttft", "1", "--throughput", "1e6"]
    report = kvik.json("advise", *asked, "--no-fit")
    assert {each["metric"] for each in report["advice"]} == {"ttft_ms", "tokens_per_s"}
    status, _, err = kvik.run("advise")
    assert (status, "nothing is wanted" in err) == (2, True)


def test_advice_shows_what_a_step_costs(kvik: Commands) -> None:
    model = "fake:step_ms=3,max_model_len=128"
    status, out, err = kvik.run("advise", "--model", model, "--input-len", "64", "--output-len", "16", "--tpot", "1")
    assert status == 0, err
    assert "a step costs" in out
    assert "a step of one request alone takes" in out


@pytest.mark.parametrize("model", ["fake:", "dummy:tiny-qwen3"])
def test_all_stages_agree(model: str, kvik: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with text, whose replies are compared, and one without, whose tokens are recognized."""
    limits = {"read_bandwidth": 1e15, "matrix_peak": {"f32": 1e18}}
    monkeypatch.setattr(staging, "roofline", lambda: limits)
    result = kvik.json("bench", "stages", "--quick", "--model", model, "--threads", "1")
    assert list(result["stages"]) == ["runner", "plans", "engine", "llm", "async", "process", "http", "stream"]
    for sample in result["samples"]:
        assert {stage["tokens"] for stage in sample["stages"].values()} == {32}
    assert {"all stages answered the same", "stages follow from the samples"} <= {
        check["name"] for check in result["checks"] if check["passed"]
    }
