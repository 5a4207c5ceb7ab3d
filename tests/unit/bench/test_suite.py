"""The suite: every part of the plan, two ways of counting what a cache saves, and statistics of code."""

from __future__ import annotations

import ast
import copy
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kvik.bench import measure as measuring
from kvik.bench.checks import EvidenceError, run_checks
from kvik.bench.evidence import verify
from kvik.bench.measure import Repeat
from kvik.bench.suite import suite as suites
from kvik.bench.suite.code import code_statistics, complexity
from kvik.bench.suite.contests import CONTESTS, Plan, thread_counts
from kvik.bench.suite.scenes import Lengths, even, one_by_one, sharing, trickle
from kvik.bench.suite.suite import PARTS, fitted, not_applicable, run_suite, write_suite
from kvik.cli.bench import command
from kvik.errors import ConfigError

ONCE = Repeat(warmups=0, least=1, most=1)
TINY = {"model": "dummy:tiny-qwen3", "backend": "reference", "threads": 1}
SMALL = Lengths(
    requests=3, input_len=45, output_len=4, prefix_requests=10, prefix_output_len=2, latency_requests=2, seed=0
)


@pytest.fixture(autouse=True)
def known_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that take no time to measure and that nothing here can reach."""
    limits = {"read_bandwidth": 1e15, "matrix_peak": {"bf16": 1e18, "f32": 1e18}}
    monkeypatch.setattr(measuring.interleaved, "__defaults__", (lambda: limits,))
    monkeypatch.setattr(suites, "roofline", lambda: limits)


def plan(threads: int = 1, **lengths: Any) -> Plan:
    return Plan(TINY, fitted(Lengths(**{**vars(SMALL), **lengths}), TINY), threads)


def run(*parts: str, threads: int = 1, **lengths: Any) -> dict[str, Any]:
    return run_suite(parts, plan(threads, **lengths), ONCE, [].append)


def test_every_part_is_run_or_named_with_the_reason() -> None:
    suite = run(*PARTS)
    assert suite["parts"].keys() | suite["not_applicable"].keys() | {"code"} == set(PARTS)
    assert suite["not_applicable"].keys() == {"graphs", "strong-scaling", "weak-scaling"}
    assert "CUDA" in suite["not_applicable"]["graphs"]
    for part in suite["parts"].values():
        assert all(check["passed"] for check in part["checks"])
    latency = suite["parts"]["latency"]["sides"]["kvik"]["metrics"]
    assert latency["peak_running"]["median"] == 1
    memory = suite["parts"]["memory"]["samples"][0]["sides"]
    assert list(memory) == ["1 at once", "3 at once"]
    for side in memory.values():
        held = side[0]["memory_bytes"]
        assert held["total"] == held["weights"] + held["kv"] + held["activations"]
    assert memory["1 at once"][0]["kv_cache"]["peak_slots"] < memory["3 at once"][0]["kv_cache"]["peak_slots"]


def test_tokens_found_in_the_cache_are_tokens_not_computed() -> None:
    """Of 10 requests 7 share 36 of 45 tokens, of which one block of 32 is whole; the first one computes it."""
    part = run("prefix-cache")["parts"]["prefix-cache"]
    assert part["saving"] == {"prompt_tokens": 450, "found_in_cache": 6 * 32, "computed_less": 6 * 32}
    doctored = copy.deepcopy(part)
    doctored["saving"]["found_in_cache"] = 252  # 70 % of the requests times 80 % of their tokens
    failed = [check for check in run_checks(doctored) if not check["passed"]]
    assert [check["name"] for check in failed] == ["tokens found in the cache = tokens not computed"]


def test_scaling_keeps_answers_and_states_efficiency() -> None:
    parts = run("strong-scaling", "weak-scaling", threads=2, requests=4)["parts"]
    strong, weak = parts["strong-scaling"], parts["weak-scaling"]
    assert strong["same_answers"] == [["1 thread", "2 threads"]]
    assert strong["efficiency"]["2 threads"] == strong["pairs"][0]["ratio"]["median"] / 2
    requests = {name: len(runs[0]["requests"]["prompt_tokens"]) for name, runs in weak["samples"][0]["sides"].items()}
    assert requests == {"1 thread": 2, "2 threads": 4}
    doctored = copy.deepcopy(strong)
    doctored["efficiency"]["2 threads"] *= 1.5
    assert [check["name"] for check in run_checks(doctored) if not check["passed"]] == [
        "efficiency = speedup / threads"
    ]


def test_a_suite_is_written_and_verified_part_by_part(tmp_path: Path) -> None:
    suite = run("latency", "code")
    write_suite(suite, tmp_path / "suite.json")
    checks = verify(tmp_path / "suite.json")
    assert {check["name"].split(":")[0] for check in checks} == {"latency"}
    assert all(check["passed"] for check in checks)
    data = json.loads((tmp_path / "suite.json").read_text())
    data["parts"]["latency"]["samples"][0]["sides"]["kvik"][0]["tokens"] += 1
    (tmp_path / "suite.json").write_text(json.dumps(data))
    assert not all(check["passed"] for check in verify(tmp_path / "suite.json"))
    with pytest.raises(EvidenceError):
        write_suite(data, tmp_path / "again.json")


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(ConfigError, match="part is 'speed'; expected one of prefill, decode, throughput"):
        run("speed")
    assert set(CONTESTS) < set(PARTS)


@pytest.mark.parametrize(("most", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_threads_double_up_to_the_most(most: int, counts: list[int]) -> None:
    assert thread_counts(most) == counts
    assert ("weak-scaling" in not_applicable(plan(most))) == (most == 1)


def test_scenes_are_what_they_say() -> None:
    lengths = Lengths()
    shared = sharing(lengths)
    common = shared.arrivals[0].prompt[:409]
    assert len(shared.arrivals) == 100
    assert sum(one.prompt[:409] == common for one in shared.arrivals) == 70
    assert {len(one.prompt) for one in shared.arrivals} == {512}
    assert [one.after_tokens for one in shared.arrivals] == [0] + [1] * 99
    assert [one.after_tokens for one in one_by_one(lengths).arrivals] == [0, 128, 256, 384, 512]
    assert all(one.after_tokens == 0 for one in even(lengths, 5).arrivals)
    assert trickle(lengths).arrivals[1].after_tokens == 64


SOURCE = """
def plain() -> int:
    return 1

class Thing:
    def forks(self, a, b, c):
        if a and b or c:
            for x in [y for y in a if y]:
                print(x)
        elif c:
            return 1 if a else 2
        def inner():
            while True:
                pass
        try:
            pass
        except ValueError:
            pass
"""


def test_complexity_counts_every_fork_of_its_own() -> None:
    functions = {node.name: node for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.FunctionDef)}
    # if, and, or, for, the comprehension's if, elif, the conditional, except: 8 and one
    assert {name: complexity(node) for name, node in functions.items()} == {"plain": 1, "forks": 9, "inner": 2}


def test_code_statistics_of_a_package(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "one.py").write_text(SOURCE)
    (tmp_path / "package" / "two.py").write_text("x = 1\n")
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "kernel.cpp").write_text("int x;\nint y;\n")
    found = code_statistics(tmp_path / "package")
    assert (found["files"], found["total_loc"], found["function_count"], found["class_count"]) == (2, 19, 3, 1)
    assert found["max_complexity"] == 9
    assert found["avg_complexity"] == 4.0
    assert (found["native_files"], found["native_loc"]) == (1, 2)


def test_code_statistics_of_kvik_itself() -> None:
    found = code_statistics()
    assert found["files"] > 100
    assert found["total_loc"] > 10_000
    assert 1 < found["avg_complexity"] < 5


def test_the_command_shows_parts_and_writes_what_verifies(tmp_path: Path) -> None:
    target = tmp_path / "suite.json"
    options = ["--model", "dummy:tiny-qwen3", "--backend", "reference", "--threads", "1", "--quick"]
    asked = ["--part", "prefix-cache", "--part", "graphs", "--part", "code"]
    done = CliRunner().invoke(command, ["suite", *options, *asked, "-o", str(target)])
    assert done.exit_code == 0, done.output
    assert "416 of 1280 prompt tokens found in the cache (32.50 %), 416 computed less" in done.output
    assert "== graphs: does not apply" in done.output
    assert "== code: " in done.output
    assert all(check["passed"] for check in verify(target))


def test_the_command_refuses_an_unknown_part() -> None:
    done = CliRunner().invoke(command, ["suite", "--part", "speed", "--model", "dummy:tiny-qwen3"])
    assert isinstance(done.exception, ConfigError)
