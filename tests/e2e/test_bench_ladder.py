"""`kvik bench ladder --quick` from outside: all rungs on the model in the box, the same answers, files that verify."""

from __future__ import annotations

import json
from pathlib import Path

from cli_process import last_json, run_kvik

PRESETS = ("rungs", "long-prompts", "stall", "prefixes")


def test_a_quick_ladder_asserts_what_it_says(tmp_path: Path) -> None:
    target = tmp_path / "ladder.json"
    done = run_kvik("bench", "ladder", "--quick", "--threads", "1", "--json", "-o", str(target))
    results = last_json(done)["results"]
    assert [result["workload"]["preset"] for result in results] == list(PRESETS)
    files = [tmp_path / f"ladder-{preset}.json" for preset in PRESETS]
    assert [json.loads(file.read_text()) for file in files] == results

    rungs = results[0]
    assert list(rungs["sides"]) == ["M1", "M2", "M3", "M4", "M5", "M6", "M7"]
    runs = {name: rungs["samples"][0]["sides"][name] for name in rungs["sides"]}
    assert len({run["outputs_sha256"] for name in list(runs)[:-1] for run in runs[name]}) == 1
    held = {name: side["metrics"]["kv_utilisation"]["median"] for name, side in rungs["sides"].items()}
    assert held["M3"] > 1.5 * held["M2"], "blocks as they fill against room for the longest"
    assert runs["M1"][0]["steps"] > 1.5 * runs["M2"][0]["steps"], "seats that are never empty"
    weights = {name: run[0]["memory_bytes"]["weights"] for name, run in runs.items()}
    assert weights["M7"] < 0.35 * weights["M6"]
    assert {"M6", "M7"} == rungs["quality"]["sides"].keys()

    prefixes = results[3]["samples"][0]["sides"]
    assert sum(prefixes["M5 80%"][0]["requests"]["cached_tokens"]) == 0
    assert sum(prefixes["M6 80%"][0]["requests"]["cached_tokens"]) == 5 * 256

    verdict = last_json(run_kvik("bench", "verify", *map(str, files), "--json"))
    assert [each["passed"] for each in verdict["files"]] == [True] * 4
    stalls = json.loads(files[2].read_text())
    stalls["samples"][0]["sides"]["M5"][0]["itl_s"][-1][0] /= 4
    files[2].write_text(json.dumps(stalls))
    refused = run_kvik("bench", "verify", str(files[2]))
    assert refused.returncode == 2
    assert "gaps between tokens add up" in refused.stderr


def test_what_the_ladder_sets_itself_is_refused() -> None:
    done = run_kvik("bench", "ladder", "--quick", "--batching", "static")
    assert done.returncode == 2
    assert done.stderr == ("kvik: error: batching is 'static'; the ladder sets it, expected it not to be given\n")


def test_a_ladder_for_people() -> None:
    small = ["--mean-tokens", "16", "--long-prompt", "40", "--repetitions", "1", "--warmups", "0", "--threads", "1"]
    done = run_kvik("bench", "ladder", "--preset", "stall", "--model", "dummy:tiny-qwen3", *small)
    assert done.returncode == 0, done.stderr
    assert "M4 " in done.stdout
    assert "control" in done.stdout
    assert "pass  answers are the same token for token: M4 = M5" in done.stdout
    assert "M5 " in done.stdout
