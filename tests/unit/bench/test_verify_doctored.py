"""`verify`: a sound file passes, and every way of doctoring it is refused for its own reason and for no other."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_result import made_result

from kvik.bench.checks import EvidenceError, run_checks
from kvik.bench.evidence import verify, write
from kvik.bench.ladder.claims import compare_claims
from kvik.bench.sides import compare_pair, summarize_side
from kvik.bench.summary import summarize

SOUND = made_result()
Result = dict[str, Any]


def again(result: Result) -> None:
    """Make everything that follows from the samples follow again: a careful forger's work."""
    samples = result["samples"]
    for sample in samples:
        lead = sample["sides"]["M2"]
        sample["tokens_per_s"] = sum(run["tokens_per_s"] for run in lead) / 2
    summary = result["summary"]
    result["summary"] = summarize([s["tokens_per_s"] for s in samples], metric=summary["metric"], unit=summary["unit"])
    for name in result["sides"]:
        result["sides"][name]["metrics"] = summarize_side(samples, name)
    result["pairs"] = [compare_pair(samples, pair) for pair in result["pairs"]]
    result["claims"] = compare_claims(result)


def run(result: Result) -> Result:
    """The last run of M2."""
    found: Result = result["samples"][4]["sides"]["M2"][1]
    return found


def every_run(result: Result) -> list[Result]:
    return [run for sample in result["samples"] for side in sample["sides"].values() for run in side]


def limits_again(result: Result) -> None:
    from kvik.bench.checks import limits_of

    stated = {key: result["limits"][key] for key in ("capacity_metric", "cost", "does_not_bind")}
    result["limits"] = limits_of(result["samples"], result["summary"], stated)


def edit_median(result: Result) -> None:
    result["summary"]["median"] *= 1.02


def hide_a_slow_round(result: Result) -> None:
    result["summary"]["repetitions"] = 4


def invent_a_rate(result: Result) -> None:
    run(result)["tokens_per_s"] *= 1.5
    again(result)
    limits_again(result)


def count_prompts_as_answers(result: Result) -> None:
    one = run(result)
    one["tokens"] += one["input_tokens"]
    one["tokens_per_s"] = one["tokens"] / one["seconds"]
    again(result)
    limits_again(result)


def cache_more_than_there_was(result: Result) -> None:
    run(result)["requests"]["cached_tokens"][1] += 4
    again(result)


def shorten_the_prompts(result: Result) -> None:
    run(result)["input_tokens"] -= 1


def hasten_the_first_token(result: Result) -> None:
    run(result)["requests"]["ttft_s"][0] /= 2
    again(result)
    # The gap between its tokens is now longer than what was counted, too.
    run(result)["itl_s"].append([run(result)["requests"]["ttft_s"][0], 0])


def hasten_tokens(result: Result) -> None:
    columns = run(result)["requests"]
    columns["tpot_s"] = [value / 2 for value in columns["tpot_s"]]
    again(result)


def stop_the_clock_early(result: Result) -> None:
    one = run(result)
    one["seconds"] /= 2
    one["tokens_per_s"] = one["tokens"] / one["seconds"]
    again(result)
    limits_again(result)


def drop_the_longest_gap(result: Result) -> None:
    run(result)["itl_s"][0][1] -= 1


def leave_out_memory(result: Result) -> None:
    run(result)["memory_bytes"]["total"] -= run(result)["memory_bytes"]["activations"]


def fill_the_cache_in_words(result: Result) -> None:
    run(result)["kv_cache"]["utilisation"] = 0.99
    again(result)


def hold_more_than_fits(result: Result) -> None:
    run(result)["kv_cache"]["peak_slots"] = 4096


def skip_steps(result: Result) -> None:
    run(result)["steps"] = 3
    again(result)


def beat_the_memory(result: Result) -> None:
    run(result)["needs"]["bytes"] = 1e12


def beat_the_processor(result: Result) -> None:
    run(result)["needs"]["operations"] = 1e15


def claim_a_faster_machine(result: Result) -> None:
    for one in every_run(result):
        one["needs"]["bytes_per_s"] = 1e15


def answer_something_else(result: Result) -> None:
    run(result)["outputs_sha256"] = "0" * 64


def better_the_effect(result: Result) -> None:
    result["pairs"][0]["ratio"]["median"] *= 2


def call_noise_an_effect(result: Result) -> None:
    pair = next(pair for pair in result["pairs"] if pair["metric"] == "kv_utilisation")
    assert not pair["beyond_control"]
    pair["beyond_control"] = True


def drop_the_control(result: Result) -> None:
    del result["pairs"][0]["control"]


def better_a_side(result: Result) -> None:
    result["sides"]["M2"]["metrics"]["ttft_s"]["median"] /= 2


def leave_out_a_run(result: Result) -> None:
    result["samples"][2]["sides"]["M1"].pop()


def use_cores_that_are_not_there(result: Result) -> None:
    result["samples"][1]["load"]["own_cores"] = 16.0


def forget_the_load(result: Result) -> None:
    result["samples"][3]["load"] = None


def better_the_claim(result: Result) -> None:
    result["claims"][0]["ours"] = 4.0


def raise_the_roof(result: Result) -> None:
    result["limits"]["roof"] *= 2


def better_the_model(result: Result) -> None:
    result["quality"]["sides"]["M2"]["perplexity"] = 0.9
    result["quality"]["perplexity_change_percent"] = -10.0


def ask_for_less(result: Result) -> None:
    run(result)["requests"]["asked_tokens"][0] += 1


RATES, LATENCY, GAPS = "tokens_per_s = tokens / seconds", "TTFT + TPOT x (n - 1) = E2E", "gaps between tokens add up"
EFFECTS = "effects and their controls follow from the runs"
SUMMARY, LIMITS = "summary follows from the samples", "limits follow from the samples"
DOCTORED: list[tuple[Callable[[Result], None], set[str], str]] = [
    (edit_median, {SUMMARY}, "median is"),
    (hide_a_slow_round, {SUMMARY}, "repetitions is 4, computed 5"),
    (invent_a_rate, {RATES}, "sample 5.sides.M2[1]: 14 tokens in"),
    (count_prompts_as_answers, {"answers add up to the tokens"}, "the answers have 14 tokens, the run 94"),
    (cache_more_than_there_was, {"cached + computed = prompt tokens"}, "request 2 has 12 cached + 32 computed of 40"),
    (shorten_the_prompts, {"cached + computed = prompt tokens"}, "the prompts have 80 tokens, the run 79"),
    (hasten_the_first_token, {LATENCY, GAPS}, "request 1:"),
    (hasten_tokens, {LATENCY}, "request 1:"),
    (stop_the_clock_early, {"no request outlasts its run"}, "in a run of"),
    (drop_the_longest_gap, {GAPS}, "11 gaps between 12 tokens after a first one"),
    (leave_out_memory, {"memory parts sum to the whole"}, "weights 1000 + kv 512 + activations 100 bytes are not 1512"),
    (fill_the_cache_in_words, {"KV tokens fit their slots"}, "90 of 100 slots is not a share of 0.99"),
    (hold_more_than_fits, {"KV tokens fit their slots"}, "4096 slots were held at once where there are 128"),
    (skip_steps, {"a step gives a request one token at most"}, "3 steps cannot give an answer of 9 tokens"),
    (beat_the_memory, {"within what the machine can read and compute"}, "it must read take 50 s"),
    (beat_the_processor, {"within what the machine can read and compute"}, "it must compute take 1000 s"),
    (claim_a_faster_machine, {"runs are held against the limits measured"}, "bytes_per_s is 1000000000000000.0"),
    (answer_something_else, {"answers are the same token for token"}, "M2 differ from M1"),
    (better_the_effect, {EFFECTS, "our figures beside the claims are the result's"}, "ratio of M2 over M1"),
    (call_noise_an_effect, {EFFECTS}, "beyond_control of M2 over M1, kv_utilisation"),
    (drop_the_control, {EFFECTS}, "control of M2 over M1, tokens_per_s"),
    (better_a_side, {"summaries of sides follow from their runs"}, "M2 ttft_s"),
    (use_cores_that_are_not_there, {"other load on the machine is recorded"}, "sample 2 used 16.00 cores of 2"),
    (forget_the_load, {"other load on the machine is recorded"}, "sample 4 has none"),
    (better_the_claim, {"our figures beside the claims are the result's"}, "ours is 4.0"),
    (raise_the_roof, {LIMITS}, "roof is"),
    (better_the_model, {"quality follows from what was scored"}, "exp(0.0) is not 0.9"),
    (ask_for_less, {"every answer is as long as asked"}, "request 1 has 5 tokens of 6"),
]


def test_the_sound_result_passes_every_check() -> None:
    assert not [check for check in run_checks(SOUND) if not check["passed"]]
    assert len({check["name"] for check in SOUND["checks"]}) == len(SOUND["checks"]) >= 20


@pytest.mark.parametrize(("doctor", "names", "said"), DOCTORED, ids=[row[0].__name__ for row in DOCTORED])
def test_a_doctored_file_is_refused_for_its_own_reason(
    doctor: Callable[[Result], None], names: set[str], said: str, tmp_path: Path
) -> None:
    result = copy.deepcopy(SOUND)
    doctor(result)
    (tmp_path / "r.json").write_text(json.dumps(result))
    failed = {check["name"]: check["detail"] for check in verify(tmp_path / "r.json") if not check["passed"]}
    assert failed.keys() == names
    assert said in " ".join(failed.values())
    with pytest.raises(EvidenceError, match="refused"):
        write(result, tmp_path / "again.json")


def test_a_run_that_is_missing_or_odd_is_an_error_not_a_crash(tmp_path: Path) -> None:
    result = copy.deepcopy(SOUND)
    leave_out_a_run(result)
    with pytest.raises(EvidenceError, match="malformed"):
        run_checks(result)
    result = copy.deepcopy(SOUND)
    result["samples"][0]["sides"]["M1"][0]["requests"]["ttft_s"] = None
    with pytest.raises(EvidenceError, match="malformed"):
        run_checks(result)


PLAN = """{
  "test_name": "throughput",
  "hardware": "RTX 3090",
  "parameters": {"batch_size": 256, "input_length": 512, "output_length": 512},
  "results": {
    "prefill_throughput": 395297.08,  // tokens/s
    "decode_throughput": 131072000.0,  // tokens/s
    "e2e_throughput": 790444.13,  // tokens/s
    "total_time": 0.3316  // seconds
  },
  "verification": "3 runs, within 5 %"
}"""


def judged(text: str, tmp_path: Path) -> dict[str, tuple[bool, str]]:
    (tmp_path / "claim.json").write_text(text)
    return {check["name"]: (check["passed"], check["detail"]) for check in verify(tmp_path / "claim.json")}


def test_the_plans_own_example_is_refused_and_told_why(tmp_path: Path) -> None:
    """790,444 tokens/s, of which decode 131 million: 512 steps in a millisecond."""
    found = judged(PLAN, tmp_path)
    assert found["tokens / time = throughput"][0], "it was divided rightly"
    reading, phases = found["within what the hardware can read"], found["prefill and decode fill the total time"]
    assert not reading[0]
    assert "512 steps, one after another, 1.95 us each" in reading[1]
    assert (
        "RTX 3090 reads 1.83 MB in that, and the weights of qwen3-0.6b (none is named; the plan's) are 1192 MB"
        in (reading[1])
    )
    assert not phases[0]
    assert "leaves 0.000022 s for 512 decode steps" in phases[1]
    assert not found["within what the hardware can compute"][0]
    assert "3 runs, within 5 %" in found["has the raw samples it speaks of"][1]


def test_a_possible_claim_lacks_nothing_but_its_samples(tmp_path: Path) -> None:
    """The published nano-vLLM figure, as if all its requests had the mean length: 1,434 tokens/s are possible."""
    data = json.loads(PLAN.replace("  // tokens/s", "").replace("  // seconds", ""))
    data["parameters"] = {"batch_size": 256, "input_length": 512, "output_length": 512}
    data["results"] = {
        "prefill_throughput": 65536.0,
        "decode_throughput": 131072 / 91.41,
        "e2e_throughput": 262144 / 93.41,
        "total_time": 93.41,
    }
    found = judged(json.dumps(data), tmp_path)
    assert [name for name, (passed, _) in found.items() if not passed] == ["has the raw samples it speaks of"]
    data["results"]["e2e_throughput"] *= 1.1
    assert not judged(json.dumps(data), tmp_path)["tokens / time = throughput"][0]


@pytest.mark.parametrize("broken", [{"parameters": {}}, {"results": None}, {"parameters": {"batch_size": "many"}}])
def test_a_malformed_claim_is_named(broken: dict[str, Any], tmp_path: Path) -> None:
    data = json.loads(PLAN.replace("  // tokens/s", "").replace("  // seconds", "")) | broken
    with pytest.raises(EvidenceError, match="malformed claim"):
        judged(json.dumps(data), tmp_path)


def test_lists_of_numbers_are_written_on_one_line_and_read_back_alike(tmp_path: Path) -> None:
    write(SOUND, tmp_path / "r.json")
    text = (tmp_path / "r.json").read_text()
    assert json.loads(text) == json.loads(json.dumps(SOUND))
    assert '"output_tokens": [5, 9]' in text
