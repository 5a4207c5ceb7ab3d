"""`kvik bench compare` and `throughput` as processes: Kvik through its own driver, beside an invented engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_process import SMALL, environment, run_kvik

ROOT = Path(__file__).resolve().parents[2]
FAKE = ROOT / "tests/unit/bench/fake_peer.py"
ONCE = ["--repetitions", "1", "--warmups", "0"]


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kvik's real driver, a fake in vLLM's place, and weights of a tiny model."""
    root = tmp_path_factory.mktemp("peers")
    commands = {"kvik": [str(ROOT / "tools/peers/drive_kvik.py")], "vllm": [str(FAKE), str(root / "diary"), "good"]}
    for name, words in commands.items():
        (root / name).mkdir()
        (root / name / "peer.json").write_text(json.dumps({"command": [sys.executable, *words]}))
    weights = root / "models" / "qwen3-0.6b"
    convert = [sys.executable, str(ROOT / "tools/peers/convert.py"), "--root", str(root), "--out", str(weights)]
    done = subprocess.run(
        [*convert, "--model", "dummy:tiny-qwen3"], env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.count("left out")) == (1, 4), "only Kvik reads weights without being set up"
    manifest = json.loads((weights / "converted.json").read_text())
    manifest["forms"] |= {"vllm": {"bf16": "hf"}, "openvino": {"int8": "openvino-int8"}}
    (weights / "converted.json").write_text(json.dumps(manifest))
    return root


def compared(peers: Path, *args: str) -> Any:
    return run_kvik("bench", "compare", "--peers", str(peers), "--threads", "1", *ONCE, *args)


def test_engines_side_by_side(peers: Path, tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    engines = ["--engines", "kvik,vllm,openvino,kvik:int8"]
    cases = ["--case", "decode2@20,prefill30", "--steps", "3", "--weights", "bf16"]
    done = compared(peers, *engines, *cases, "--json", "-o", str(target))
    assert done.returncode == 0, done.stderr
    decode, prefill = json.loads(done.stdout.splitlines()[-1])["results"]
    assert list(decode["comparison"]) == ["vllm", "kvik:int8"]
    assert decode["options"]["engines"]["kvik:int8"]["settings"]["weights"] == "int8"
    assert "setup.py openvino" in decode["skipped"]["openvino"]
    assert "skipped: openvino" in done.stderr
    assert decode["samples"][0]["output_tokens"] == decode["workload"]["output_tokens"] == 10
    assert prefill["workload"]["input_tokens"] == 30
    for result in (decode, prefill):
        written = tmp_path / f"result-{result['workload']['case']}.json"
        assert json.loads(written.read_text()) == result
        assert run_kvik("bench", "verify", str(written)).returncode == 0


def test_a_table_for_people_has_a_line_for_every_engine(peers: Path) -> None:
    done = compared(peers, "--engines", "kvik,vllm", "--case", "decode1@20", "--steps", "2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "decode1@20: 1 requests, 1 at a time, 20 tokens in, 3 out, 1 rounds"
    assert [line.split()[:2] for line in lines[2:4]] == [["kvik", "bf16"], ["vllm", "bf16"]]
    assert "x" in lines[3].split()[5]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--engines", "ollama"], "engines names 'ollama'; expected NAME or NAME:FORM"),
        (["--case", "decode"], "case is 'decode'; expected decodeB"),
        (["--engines", "kvik", "--model", "dummy:tiny-qwen3"], "model is 'dummy:tiny-qwen3'"),
        (["--engines", "kvik", "--weights", "f32"], "weights is 'f32'"),
        (["--engines", "openvino"], "no engine is left: openvino: not installed"),
        (["--engines", "kvik", "--converted", "/nowhere"], "converted is /nowhere"),
    ],
)
def test_bad_input_is_one_line(args: list[str], words: str, peers: Path) -> None:
    done = compared(peers, *args)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("kvik: error: ")
    assert words in done.stderr


def test_throughput_writes_evidence_that_verifies(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    requests = ["--num-prompts", "4", "--input-len", "3-20", "--output-len", "2-5", "--seed", "7"]
    model = ["--model", "dummy:tiny-qwen3", *SMALL]
    done = run_kvik("bench", "throughput", *model, *requests, *ONCE, "--json", "-o", str(target))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["kind"], result["workload"]["requests"]) == ("throughput", 4)
    assert result["samples"][0]["tokens"] == result["workload"]["output_tokens"]
    assert run_kvik("bench", "verify", str(target)).returncode == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--input-len", "9-3"], "input_len is '9-3'"),
        (["--output-len", "x"], "output_len is 'x'"),
        (["--preset", "nano-vllm", "--input-len", "5"], "the preset nano-vllm has its own"),
        (["--preset", "nano-vllm", "--num-prompts", "2"], "tokens; this engine holds at most 1024"),
    ],
)
def test_bad_throughput_is_one_line(args: list[str], words: str) -> None:
    done = run_kvik("bench", "throughput", "--model", "dummy:tiny-qwen3", *SMALL, *ONCE, *args)
    assert done.returncode == 2
    assert words in done.stderr.splitlines()[-1]
