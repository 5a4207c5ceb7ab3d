"""A comparison: everyone gets the same requests, in turn and alone; who is missing or fails is named."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvik.bench import measure as measuring
from kvik.bench.checks import EvidenceError, refuse_failed, run_checks
from kvik.bench.compare import Comparison, compare, room_for
from kvik.bench.contenders import Contender, Room, choose_contenders, load_message
from kvik.bench.cost import Cost, Forms
from kvik.bench.evidence import Result
from kvik.bench.measure import Repeat
from kvik.bench.peers import PeerError, PeerProgram
from kvik.bench.reply import sample_of
from kvik.bench.run_cost import kv_bytes_read, run_bytes
from kvik.bench.workload import Requests, draw_requests, parse_cases
from kvik.checkpoint.dummy import DUMMIES
from kvik.config import EngineConfig
from kvik.errors import ConfigError

FAKE = Path(__file__).parent / "fake_peer.py"
SPEC = DUMMIES["tiny-qwen3"]


@pytest.fixture(autouse=True)
def known_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that take no time to measure and that nothing here can reach."""
    limits = {"read_bandwidth": 1e15, "matrix_peak": {"bf16": 1e18, "f32": 1e18}}
    monkeypatch.setattr(measuring.interleaved, "__defaults__", (lambda: limits,))


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., list[Result]]:
    """Compares fakes of these manners; what they do is noted in tmp_path/diary."""

    def go(*manners: str, cases: str = "decode2@5", rounds: int = 2, said: list[str] | None = None) -> list[Result]:
        def contender(manner: str) -> Contender:
            program = PeerProgram(manner, (sys.executable, str(FAKE), str(tmp_path / "diary"), manner))
            return Contender(manner, program, "bf16", tmp_path)

        fakes = [contender(manner) for manner in manners]
        repeat = Repeat(warmups=1, least=rounds, most=rounds)
        config = EngineConfig.from_options(threads=1)
        comparison = Comparison(fakes, {}, parse_cases(cases, 3), config, SPEC, "toy", repeat)
        return compare(comparison, (said if said is not None else []).append)

    return go


def diary(tmp_path: Path) -> list[tuple[str, float, float]]:
    lines = [line.split() for line in (tmp_path / "diary").read_text().splitlines()]
    return [(manner, float(begun), float(ended)) for manner, begun, ended in lines]


def test_engines_take_turns_and_never_overlap(run: Callable[..., list[Result]], tmp_path: Path) -> None:
    run("a", "b", "c")
    notes = diary(tmp_path)
    assert [manner for manner, _, _ in notes] == ["a", "b", "c"] * 3, "a warm-up and two rounds"
    assert all(ended <= begun for (_, _, ended), (_, begun, _) in itertools.pairwise(notes))


def test_a_result_holds_every_engine_and_ratios_within_rounds(run: Callable[..., list[Result]]) -> None:
    (result,) = run("a", "b", rounds=3)
    assert result["options"]["engine"] == "a"
    assert list(result["options"]["engines"]) == ["a", "b"]
    ratios = sorted(s["tokens_per_s"] / s["peers"]["b"]["tokens_per_s"] for s in result["samples"])
    assert result["comparison"]["b"]["ratio"]["median"] == ratios[1]
    assert {s["peers"]["b"]["first_tokens_alike"] for s in result["samples"]} == {1.0}
    assert all(check["passed"] for check in result["checks"])
    json.dumps(result, allow_nan=False)


def test_each_case_has_a_result(run: Callable[..., list[Result]]) -> None:
    results = run("a", "b", cases="decode2@5,prefill7x3,seed002", rounds=1)
    assert [r["workload"]["case"] for r in results] == ["decode2@5", "prefill7x3", "seed002"]
    decode, prefill, total = (r["samples"][0] for r in results)
    assert (decode["tokens"], decode["output_tokens"]) == (8, 10), "2 answers of 3 + 1 + 1, their first tokens aside"
    assert (prefill["tokens"], prefill["output_tokens"]) == (21, 3)
    assert (total["tokens"], total["output_tokens"]) == (2000, 2000)


def test_a_peer_that_cannot_load_is_skipped_by_name(run: Callable[..., list[Result]]) -> None:
    said: list[str] = []
    (result,) = run("a", "no-load", "b", said=said)
    assert "cannot be loaded" in result["skipped"]["no-load"]
    assert list(result["comparison"]) == ["b"]
    assert any(line.startswith("skipped: no-load failed") for line in said)


def test_a_peer_that_falls_is_out_of_all_rounds_and_later_cases(run: Callable[..., list[Result]]) -> None:
    first, second = run("a", "crash-later", "b", cases="decode2@5,prefill5", rounds=2)
    for result in (first, second):
        assert list(result["comparison"]) == ["b"]
        assert "caught fire" in result["skipped"]["crash-later"]
    assert [list(sample["peers"]) for sample in first["samples"]] == [["b"], ["b"]]


def test_the_engine_the_result_is_about_must_not_fail(run: Callable[..., list[Result]]) -> None:
    with pytest.raises(PeerError, match="no-load failed"):
        run("no-load", "a")
    with pytest.raises(PeerError, match="crash ended with status 3"):
        run("crash", "a")


def test_an_engine_that_gives_fewer_tokens_spoils_the_result(run: Callable[..., list[Result]]) -> None:
    with pytest.raises(EvidenceError, match="short gave 8"):
        run("a", "short", cases="decode2@5", rounds=1)


def test_a_changed_ratio_is_refused(run: Callable[..., list[Result]]) -> None:
    (result,) = run("a", "b", rounds=1)
    result["comparison"]["b"]["ratio"]["median"] *= 2
    with pytest.raises(EvidenceError, match="comparison follows from the samples"):
        refuse_failed(run_checks(result))


def reply(*events: list[float], outputs: int = 2) -> dict[str, Any]:
    return {"seconds": 9.0, "events": list(events), "output_tokens": [5] * outputs, "first_token_ids": [1] * outputs}


def test_a_decode_is_watched_while_all_decode() -> None:
    (case,) = parse_cases("decode2@5", 3)
    requests = case.draw(0, 99)
    events = [[0.2, 0, 0, 0], [0.5, 1, 1, 0], [1.0, 3, 2, 0], [1.5, 5, 2, 0], [2.5, 9, 2, 1], [3.0, 10, 2, 2]]
    sample = sample_of("x", case, requests, reply(*events))
    assert (sample["tokens"], sample["seconds"], sample["tokens_per_s"]) == (6, 1.5, 4.0)
    assert sample["mean_generated"] == 3
    assert sample["first_token_s"] == 0.5


@pytest.mark.parametrize(
    "answer",
    [
        reply([1.0, 1, 1, 0], [2.0, 9, 1, 1]),
        reply([1.0, 2, 2, 0], [2.0, 4, 2, 1]),
        reply(),
        reply([1.0, 2, 2, 0], [2.0, 10, 2, 2], outputs=3),
        {"events": [[1.0, 2]], "seconds": 1.0, "output_tokens": [5, 5], "first_token_ids": [1, 1]},
    ],
    ids=["never together", "too few", "no event", "another request", "half an event"],
)
def test_an_answer_without_sense_is_refused(answer: dict[str, Any]) -> None:
    (case,) = parse_cases("decode2@5", 3)
    with pytest.raises(PeerError, match=r"x gave"):
        sample_of("x", case, case.draw(0, 99), answer)


def test_a_run_reads_weights_every_step_and_the_past_of_every_decode() -> None:
    cost = Cost(SPEC, Forms("bf16", "bf16"))
    requests = Requests([[1] * 10, [1] * 4], [3, 1])
    assert kv_bytes_read(cost, requests) == (11 + 12) * cost.kv_bytes_per_token()
    assert run_bytes(cost, requests, 5) == 5 * cost.streamed_weight_bytes() + 23 * cost.kv_bytes_per_token()


def test_room_is_for_the_largest_of_all_cases(run: Callable[..., list[Result]], tmp_path: Path) -> None:
    cases = parse_cases("decode3@50,prefill900", 4)
    comparison = Comparison([], {}, cases, EngineConfig(), SPEC, "toy", Repeat())
    room = room_for(comparison)
    assert (room.max_len, room.max_seqs) == (902, 3)
    assert room.kv_tokens > 901
    many = Comparison([], {}, parse_cases("decode30@50", 4), EngineConfig(), SPEC, "toy", Repeat())
    assert room_for(many).kv_tokens > 30 * 55


def converted(folder: Path, forms: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "converted.json").write_text(json.dumps({"forms": forms}))
    return folder


def install(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "peer.json").write_text(json.dumps({"command": [sys.executable, str(FAKE)]}))


def test_an_engine_takes_the_form_asked_for_or_the_next_wider(tmp_path: Path) -> None:
    forms = {"vllm": {"bf16": "hf"}, "llamacpp": {"bf16": "b", "int8": "q8", "int4": "q4", "q4_0": "q40"}}
    weights = converted(tmp_path / "w", forms)
    install(tmp_path, "vllm", "llamacpp", "llamacpp-avx2")
    asked = ["vllm", "llamacpp", "llamacpp:q4_0", "llamacpp-avx2", "openvino"]
    found, skipped = choose_contenders(asked, "int4", tmp_path, weights)
    chosen = {each.label: (each.form, each.model.name) for each in found}
    assert chosen == {
        "vllm": ("bf16", "hf"),
        "llamacpp": ("int4", "q4"),
        "llamacpp:q4_0": ("q4_0", "q40"),
        "llamacpp-avx2": ("int4", "q4"),
    }
    assert list(skipped) == ["openvino"]
    assert "setup.py openvino" in skipped["openvino"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["ollama"], "'ollama'; expected NAME or NAME:FORM"),
        (["vllm", "vllm"], "'vllm' twice"),
        (["vllm:int3"], "'vllm:int3'; expected a form of bf16"),
        (["openvino"], "no engine is left: openvino: not installed"),
        ([], "no engine is left"),
    ],
)
def test_a_bad_list_of_engines_is_refused(asked: list[str], words: str, tmp_path: Path) -> None:
    install(tmp_path, "vllm")
    with pytest.raises(ConfigError, match=words):
        choose_contenders(asked, "bf16", tmp_path, converted(tmp_path / "w", {"vllm": {"bf16": "hf"}}))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"forms": 3}', '{"forms": {"vllm": 1}}'])
def test_damaged_weights_are_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "converted.json").write_text(text)
    with pytest.raises(ConfigError, match=r"converted\.json is damaged; expected a directory that .*convert\.py"):
        choose_contenders(["vllm"], "bf16", tmp_path, tmp_path)


def test_only_kvik_gets_its_options(tmp_path: Path) -> None:
    room, options = Room(100, 4, 500), {"threads": 2, "isa": "avx2", "max_num_seqs": 256, "model": None}

    def asked(name: str) -> dict[str, Any]:
        contender = Contender(name, PeerProgram(name, ("x",)), "int4", tmp_path / "hf")
        return load_message(contender, room, 1000, options)

    assert asked("vllm")["options"] == {}
    own = asked("kvik")["options"]
    assert own["isa"] == "avx2"
    assert (own["weights"], own["prefix_caching"], own["kv_cache_memory"], own["max_num_seqs"]) == (
        "int4",
        False,
        1000,
        256,
    )
    assert asked("vllm")["threads"] == asked("kvik")["threads"] == 2


@pytest.mark.parametrize("text", ["", ",", "decode", "decode0", "decode1@0", "prefill5x", "seed003", "decode99999@1"])
def test_a_bad_case_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="case is"):
        parse_cases(text, 4)


def test_cases_ask_for_what_their_names_say() -> None:
    lengths = {
        case.name: (case.concurrency, len(r.prompts), r.input_tokens, r.output_tokens)
        for case in parse_cases("decode1,decode32@512,prefill2048,seed002,nano-vllm@64", 8)
        for r in [case.draw(0, 1000)]
    }
    assert lengths == {
        "decode1": (1, 1, 100, 9),
        "decode32@512": (32, 32, 32 * 512, 32 * (9 + 16)),
        "prefill2048": (1, 1, 2048, 1),
        "seed002": (8, 40, 1280, 2000),
        "nano-vllm@64": (64, 64, 34428, 38443),
    }


def test_requests_follow_from_the_seed() -> None:
    same = [draw_requests(5, (3, 9), (1, 4), 7, 20) for _ in range(2)]
    assert same[0] == same[1]
    assert same[0] != draw_requests(5, (3, 9), (1, 4), 8, 20)
    assert {len(prompt) for prompt in same[0].prompts} <= set(range(3, 10))
    assert max(max(prompt) for prompt in same[0].prompts) <= 20
