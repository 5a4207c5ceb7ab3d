"""The ladder: rungs add one option each, scenes are what they say, a contest's books agree with the engine's."""

from __future__ import annotations

from typing import Any

import pytest

from kvik.bench.checks import EvidenceError
from kvik.bench.ladder import ladder as climbing
from kvik.bench.ladder import rounds
from kvik.bench.ladder.claims import CLAIMS, compare_claims
from kvik.bench.ladder.drive import Player
from kvik.bench.ladder.ladder import Depth, climb
from kvik.bench.ladder.presets import PRESETS, Setting, contest_for, fitted
from kvik.bench.ladder.rounds import hold
from kvik.bench.ladder.rungs import GROUND, NAMES, RUNGS, SET_BY_LADDER, options_of, rung_named
from kvik.bench.ladder.scenes import (
    GROUP,
    SHARES,
    Arrival,
    Scene,
    Sizes,
    long_prompts,
    mixed_lengths,
    shared_prefix,
    stall,
)
from kvik.bench.measure import Repeat
from kvik.bench.sides import METRICS, known_to, quantile_of_counts
from kvik.config import EngineConfig
from kvik.engine.build import build_engine
from kvik.errors import ConfigError, ContextLengthError, KvikError

ONCE = Repeat(warmups=0, least=1, most=1)
TINY = {"model": "dummy:tiny-qwen3", "backend": "reference", "threads": 1, "seed": 3}
SMALL = Sizes(requests=8, mean_tokens=24, long_prompt=100, prefix_prompt=160)


def setting(**changes: Any) -> Setting:
    return Setting(TINY, fitted(Sizes(**{**vars(SMALL), **changes}), TINY), seats=3, chunk=32)


def limits() -> dict[str, Any]:
    """Limits that take no time to measure and that nothing here can reach."""
    return {"read_bandwidth": 1e15, "matrix_peak": {"bf16": 1e18, "f32": 1e18}}


# Rungs ------------------------------------------------------------------------------------------------------------


def test_every_rung_is_the_one_below_and_one_option_more() -> None:
    assert NAMES == ("M1", "M2", "M3", "M4", "M5", "M6", "M7")
    assert options_of("M1") == GROUND
    for below, rung in zip(NAMES, RUNGS[1:], strict=False):
        before, after = options_of(below), options_of(rung.name)
        assert {name for name in after if after[name] != before[name]} == {rung.option}
        assert after[rung.option] == rung.value


def test_every_option_of_a_rung_is_one_the_engine_has_and_off_at_the_ground() -> None:
    for name in NAMES:
        EngineConfig.from_options(**options_of(name))
    assert {rung.option for rung in RUNGS} == GROUND.keys() < set(SET_BY_LADDER)
    assert [rung.flag for rung in RUNGS] == [
        "--batching static",
        "--batching continuous",
        "--kv-layout paged",
        "--attention flash",
        "--chunked-prefill",
        "--prefix-caching",
        "--weights int4",
    ]


def test_an_option_that_the_ladder_sets_is_refused() -> None:
    with pytest.raises(ConfigError, match="batching is 'static'; the ladder sets it"):
        Setting({"batching": "static"}, SMALL)
    with pytest.raises(ConfigError, match="rung is 'M8'"):
        rung_named("M8")


# Scenes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [32, 128, 512])
def test_mixed_lengths_have_the_mean_and_one_long_answer_in_eight(mean: int) -> None:
    scene = mixed_lengths(Sizes(mean_tokens=mean, requests=64))
    assert scene.mean_tokens == pytest.approx(mean, rel=0.1)
    longest = max(one.output_len for one in scene.arrivals)
    for start in range(0, 64, GROUP):
        group = [one.output_len for one in scene.arrivals[start : start + GROUP]]
        assert group.count(longest) == 1
        assert longest > 10 * sorted(group)[-2]


def test_scenes_are_the_same_for_a_seed_and_others_for_another() -> None:
    assert mixed_lengths(Sizes(seed=1)) == mixed_lengths(Sizes(seed=1))
    assert mixed_lengths(Sizes(seed=1)) != mixed_lengths(Sizes(seed=2))


@pytest.mark.parametrize("share", SHARES)
def test_a_share_of_every_prompt_is_what_was_warmed(share: int) -> None:
    scene = shared_prefix(Sizes(), share)
    common = scene.warm[0] if scene.warm else []
    assert len(common) * 100 == share * 1280
    assert all(one.prompt[: len(common)] == common and len(one.prompt) == 1280 for one in scene.arrivals)
    rest = {tuple(one.prompt[len(common) :]) for one in scene.arrivals}
    assert len(rest) == len(scene.arrivals), "nothing else is shared"


def test_a_long_prompt_comes_while_others_decode() -> None:
    scene = stall(Sizes())
    decodes, long = scene.arrivals[:-1], scene.arrivals[-1]
    assert len(long.prompt) == 4000
    assert 0 < long.after_tokens < sum(one.output_len for one in decodes) / 2
    assert [len(one.prompt) for one in long_prompts(Sizes()).arrivals] == [4000, 4000]


# One run ----------------------------------------------------------------------------------------------------------


def play(scene: Scene, rung: str = "M6", **options: Any) -> dict[str, Any]:
    chosen = {**TINY, **options_of(rung), "kv_cache_memory": "4MiB", "max_num_batched_tokens": 32, **options}
    engine = build_engine(EngineConfig.from_options(**chosen))
    try:
        return Player(engine, scene, 2**30).play()
    finally:
        engine.close()


def arrivals(*rows: tuple[int, int, int]) -> Scene:
    made = [Arrival(list(range(5, 5 + length)), count, after) for length, count, after in rows]
    return Scene("made", "made up", tuple(made))


def test_a_request_comes_when_as_many_tokens_are_there() -> None:
    run = play(arrivals((10, 6, 0), (10, 2, 4)))
    columns = run["requests"]
    assert columns["output_tokens"] == columns["asked_tokens"] == [6, 2]
    assert columns["e2e_s"][1] < columns["e2e_s"][0], "it came later and is timed from then"
    assert run["tokens"] == 8
    assert sum(count for _, count in run["itl_s"]) == 6


def test_prompt_tokens_computed_are_counted_from_the_plans() -> None:
    """The second count: the engine says what was cached, the plans say what was computed."""
    cold, hit = arrivals((100, 2, 0)), arrivals((100, 2, 0), (100, 2, 2))
    assert play(cold)["requests"]["computed_tokens"] == [100]
    columns = play(hit)["requests"]
    assert columns["cached_tokens"] == [0, 96]
    assert columns["computed_tokens"] == [100, 4]
    assert play(hit, "M5")["requests"]["computed_tokens"] == [100, 100]


def test_tokens_computed_twice_after_a_preemption_are_counted_once() -> None:
    run = play(arrivals((60, 40, 0), (50, 40, 0)), "M5", kv_cache_memory=160 * 1024, max_model_len=128)
    assert run["preemptions"] > 0
    assert run["recomputed_tokens"] > 0
    assert run["requests"]["computed_tokens"] == [60, 50]


def test_a_request_that_never_comes_is_an_error() -> None:
    with pytest.raises(KvikError, match="requests that never came"):
        play(arrivals((10, 2, 0), (10, 2, 3)))


def test_contiguous_slots_are_held_whole_and_blocks_as_they_fill() -> None:
    scene = arrivals((20, 12, 0))
    whole = play(scene, "M2", max_model_len=256)["kv_cache"]
    paged = play(scene, "M3", max_model_len=256)["kv_cache"]
    assert whole["peak_slots"] == 256
    assert paged["peak_slots"] == 32
    assert whole["utilisation"] < 0.15 < 0.7 < paged["utilisation"]


# Contests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_holds_its_identities_and_gives_the_same_answers(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(climbing, "roofline", limits)
    result = climb(preset, setting(), ONCE, Depth(tokens=40, per_task=0), [].append, quick=False)
    assert all(check["passed"] for check in result["checks"])
    assert result["workload"]["preset"] == preset
    assert {side["options"]["runner"] for side in result["sides"].values()} == {"reference"}
    assert set(result["sides"][result["workload"]["lead"]]["metrics"]) == METRICS.keys()
    assert [claim["says"] for claim in result["claims"]] == [c.says for c in CLAIMS if c.preset == preset]


def test_other_answers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    contest, room = contest_for("stall", setting())
    honest = rounds.Player.play
    seen = []

    def play_then_change(self: Player) -> dict[str, Any]:
        run = honest(self)
        seen.append(run)
        return run | {"outputs_sha256": "0" * 64} if len(seen) == 2 else run

    monkeypatch.setattr(rounds.Player, "play", play_then_change)
    with pytest.raises(EvidenceError, match="answers are the same token for token: M5 differ from M4"):
        hold(contest, room, ONCE, [].append, limits)


def test_paged_blocks_fit_more_requests_in_the_same_memory() -> None:
    contest, room = contest_for("rungs", setting(mean_tokens=64))
    m1 = next(side.config for side in contest.sides if side.name == "M1")
    assert m1.cache.kv_cache_memory == room.kv_bytes
    assert {side.config.cache.kv_cache_memory for side in contest.sides} == {room.kv_bytes}
    assert room.kv_bytes % (3 * room.bytes_per_token * 32) == 0, "three of the longest"


def test_a_scene_too_long_for_the_model_is_refused_before_anything_runs() -> None:
    with pytest.raises(ContextLengthError, match="holds at most 1024"):
        contest_for("rungs", setting(mean_tokens=512))


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match="preset is 'all'"):
        contest_for("all", setting())


# Arithmetic -------------------------------------------------------------------------------------------------------


def test_quantiles_of_counted_gaps() -> None:
    gaps = [[0.1, 98], [0.5, 1], [2.0, 1]]
    assert quantile_of_counts(gaps, 0.98) == 0.1
    assert quantile_of_counts(gaps, 0.99) == 0.5
    assert quantile_of_counts(gaps, 1.0) == 2.0
    assert quantile_of_counts([], 0.99) == 0.0


def test_all_sides_must_be_known() -> None:
    def sample(fast: float, slow: float) -> dict[str, Any]:
        return {"sides": {"a": [{"tokens_per_s": fast}] * 2, "b": [{"tokens_per_s": slow}] * 2}}

    assert known_to([sample(1, 1)] * 2, "tokens_per_s") is None
    assert known_to([sample(1, 1)] * 3, "tokens_per_s") == 0.0
    worst = known_to([sample(10, 10), sample(10, 20), sample(10, 30)], "tokens_per_s")
    assert worst == pytest.approx(50.0), "half of 30 - 10 over 20"


def test_a_claim_inside_the_noise_is_not_shown() -> None:
    from made_result import made_result

    result = made_result()
    for pair in result["pairs"]:
        pair["beyond_control"] = False
    faster = next(claim for claim in compare_claims(result) if claim["metric"] == "tokens_per_s")
    assert (faster["shown"], faster["holds"]) == (False, False)
    assert faster["ours"] == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize(
    ("ratio", "stands_out", "shown", "holds"),
    [(1.01, False, True, True), (1.3, True, True, True), (0.8, True, True, False), (0.8, False, False, False)],
)
def test_a_claim_of_no_change_needs_an_effect_only_to_be_refused(
    ratio: float, stands_out: bool, shown: bool, holds: bool
) -> None:
    pair = {"a": "M4", "b": "M5", "metric": "tokens_per_s", "ratio": {"median": ratio}, "beyond_control": stands_out}
    stall_pair = {**pair, "metric": "itl_max_s"}
    made = {"workload": {"preset": "stall"}, "sides": {"M4": {}, "M5": {}}, "pairs": [pair, stall_pair]}
    _, same_throughput = compare_claims(made)
    assert same_throughput["says"] == "total throughput about the same"
    assert (same_throughput["shown"], same_throughput["holds"]) == (shown, holds)
