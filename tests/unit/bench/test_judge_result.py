"""A comparison as a whole, on a tiny model with random weights: identities, checks, and what is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import byte_tokenizer

from kvik.bench import judge as judge_module
from kvik.bench.checks import EvidenceError
from kvik.bench.evidence import read, verify, write
from kvik.bench.judge import Advance, compare_answers, piece_width, score_text
from kvik.bench.judge_figures import figures_of, judge_checks, tail_length
from kvik.bench.judge_operands import parse_operands
from kvik.bench.judge_result import Comparison, judge
from kvik.bench.judge_sides import Side, check_vocabularies, open_sides
from kvik.bench.measure import Repeat
from kvik.bench.perplexity import cut_windows
from kvik.bench.tasks import Item, Judged
from kvik.errors import ConfigError, InvalidRequestError, KvikError
from kvik.step import Float32, Int32

MODEL = "dummy:tiny-llama"
BASE = {"backend": "reference"}
LIMITS = {"read_bandwidth": 1e9, "matrix_peak": {"f32": 1e9}}
Result = dict[str, Any]


@contextmanager
def no_bar(total: int) -> Iterator[Advance]:
    yield lambda count: None


def compared(*operands: str, **asked: Any) -> Result:
    given: dict[str, Any] = {"max_tokens": 90, "window": 40, "stride": 25, "steps": 2} | asked
    comparison = Comparison(parse_operands(operands, BASE), given.pop("text", None), **given)
    repeat = Repeat(warmups=0, least=1, most=1)
    return judge(comparison, repeat, lambda line: None, no_bar, probe=lambda: LIMITS)


@pytest.fixture(scope="module")
def result() -> Result:
    return compared(MODEL, MODEL, f"{MODEL}@weights=int4")


def text_of(result: Result, label: str) -> dict[str, Any]:
    figures: dict[str, Any] = result["judged"]["sides"][label]["figures"]["text"]
    return figures


def test_a_model_differs_from_itself_by_nothing(result: Result) -> None:
    for label in (f"{MODEL} #1", f"{MODEL} #2"):
        figures = text_of(result, label)
        assert figures["divergence_mean"] == figures["divergence_p99"] == figures["divergence_mean_error"] == 0
        assert figures["nll_difference"] == figures["nll_difference_error"] == 0
        assert figures["perplexity_change_percent"] == figures["perplexity_change_error_percent"] == 0
        assert figures["agreement"] == 1


def test_int4_differs_and_takes_its_part(result: Result) -> None:
    figures = text_of(result, f"{MODEL}@weights=int4")
    assert 0 < figures["divergence_mean"] < figures["divergence_p99"]
    assert figures["nll_difference"] != 0
    assert figures["nll_difference_error"] > 0
    assert figures["agreement"] < 1
    assert figures["bits_per_byte"] is None, "random tokens have no bytes"


def test_the_error_of_a_difference_is_smaller_than_that_of_either(result: Result) -> None:
    figures = text_of(result, f"{MODEL}@weights=int4")
    assert figures["nll_difference_error"] < figures["standard_error"] / 2, "a hard text is hard for both"


def test_every_position_is_scored_once_and_every_round_runs_all(result: Result) -> None:
    assert result["workload"]["scored_tokens"] == 89 == sum(result["judged"]["block_tokens"])
    (sample,) = result["samples"]
    assert set(sample["others"]) == {f"{MODEL} #2", f"{MODEL}@weights=int4"}
    assert {run["tokens"] for run in (sample, *sample["others"].values())} == {2}


def test_a_result_is_evidence(result: Result, tmp_path: Path) -> None:
    write(result, tmp_path / "result.json")
    assert all(check["passed"] for check in verify(tmp_path / "result.json"))
    back = read(tmp_path / "result.json")
    assert back == json.loads(json.dumps(result))
    assert all(check["passed"] for check in judge_checks(back))
    assert {check["name"] for check in judge_checks(back)} <= {check["name"] for check in back["checks"]}


def test_figures_are_those_of_the_single_positions() -> None:
    losses, moved = {}, {}
    operands = parse_operands([MODEL, f"{MODEL}@weights=int8"], BASE)
    with open_sides(operands) as sides:
        layouts = [side.allocate(40) for side in sides]
        tokens = list(range(1, 80))
        for side, its in zip(
            sides, score_text(sides, layouts, cut_windows(tokens, 40, []), lambda _: None), strict=True
        ):
            losses[side.label], moved[side.label] = its.losses, its.divergences
        by_hand = hand_made_losses(sides[1], tokens)
    np.testing.assert_allclose(losses[sides[1].label], by_hand, rtol=1e-6)
    assert (moved[sides[0].label] == 0).all()
    assert moved[sides[1].label].max() > 0


def hand_made_losses(side: Side, tokens: list[int]) -> list[float]:
    layout, found = side.allocate(40), []
    for start in range(0, len(tokens), 40):
        window = np.array(tokens[start : start + 40], np.int32)
        logits = side.logits(layout, window, 0).astype(np.float64)
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        found += [-float(np.log(shares[i, window[i + 1]])) for i in range(len(window) - 1)]
    return found


def test_scores_do_not_depend_on_how_many_positions_are_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def scores() -> list[Any]:
        with open_sides(parse_operands([MODEL, f"{MODEL}@weights=int8"], BASE)) as sides:
            layouts = [side.allocate(32) for side in sides]
            return score_text(sides, layouts, cut_windows(list(range(60)), 32, [], 7), lambda _: None)

    whole = scores()
    monkeypatch.setattr(judge_module, "piece_width", lambda vocab_size: 3)
    for one, other in zip(whole, scores(), strict=True):
        assert (one.losses == other.losses).all()
        assert (one.divergences == other.divergences).all()
        assert (one.agrees == other.agrees).all()


def test_pieces_of_logits_stay_small() -> None:
    assert piece_width(151936) * 151936 * 4 <= 1 << 25
    assert piece_width(10**7) == 16
    assert piece_width(256) == 512


@pytest.mark.parametrize(
    ("path", "value", "name"),
    [
        (("figures", "text", "divergence_mean"), 0.1, "figures follow from the stored sums"),
        (("figures", "speed", "tpot_s", "median"), 1e-9, "figures follow from the stored sums"),
        (("scores", "largest_divergences"), [], "malformed"),
        (("scores", "nll_sums", 0), -1.0, "losses and divergences are finite and not below 0"),
        (("scores", "agreed", 0), 10**6, "losses and divergences are finite and not below 0"),
        (("scores", "largest_divergences"), [2.0, 1.0], "every model is scored on the same tokens"),
        (("memory_bytes", "kv"), 1, "memory parts of a model sum to the whole"),
    ],
)
def test_a_doctored_result_is_found_out(result: Result, path: tuple[Any, ...], value: object, name: str) -> None:
    doctored = copy.deepcopy(result)
    *way, last = "judged", "sides", f"{MODEL}@weights=int4", *path
    place: Any = doctored
    for key in way:
        place = place[key]
    place[last] = value
    if name == "malformed":
        with pytest.raises(LookupError):
            judge_checks(doctored)
        return
    assert name in {check["name"] for check in judge_checks(doctored) if not check["passed"]}


def test_a_reference_that_differs_from_itself_is_found_out(result: Result) -> None:
    doctored = copy.deepcopy(result)
    doctored["judged"]["sides"][f"{MODEL} #1"]["figures"]["text"]["nll_difference"] = 1e-3
    assert "the reference differs from itself by nothing" in {
        check["name"] for check in judge_checks(doctored) if not check["passed"]
    }


def test_the_99th_percentile_is_the_least_that_99_of_100_do_not_exceed() -> None:
    for count in (2, 50, 99, 100, 101, 1000):
        values = sorted(range(count), reverse=True)
        stored = values[: tail_length(count)]
        assert sum(value <= stored[-1] for value in values) >= 0.99 * count
        assert sum(value <= stored[-1] - 1 for value in values) < 0.99 * count


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operands", "asked", "said"),
    [
        ([MODEL, "dummy:qwen3-0.6b"], {}, "dummy:qwen3-0.6b has a vocabulary of 151936 tokens and dummy:tiny-llama"),
        ([MODEL, MODEL], {"text": "abc"}, "dummy:tiny-llama #1 has no tokenizer"),
        ([MODEL, MODEL], {"max_tokens": None}, "neither a text nor a number of tokens"),
        ([MODEL, MODEL], {"max_tokens": 1}, "the text has 1 tokens"),
        ([MODEL, MODEL], {"window": 10**6}, "window is 1000000; expected at most"),
        ([MODEL, MODEL], {"steps": 10**6}, "steps is 1000000; expected at most"),
        (["box", "box"], {"text": ""}, "the text has 0 tokens"),
    ],
)
def test_what_cannot_be_compared_is_named(operands: list[str], asked: dict[str, Any], said: str) -> None:
    with pytest.raises(KvikError) as refused:
        compared(*operands, **asked)
    assert said in str(refused.value)


def test_tokenizers_with_other_tokens_are_refused_by_the_first_of_them(tmp_path: Path) -> None:
    from kvik.engine.build import open_model, open_tokenizer

    config = parse_operands(["box", "box"], {})[0].config
    box, letters = open_tokenizer(open_model(config)), byte_tokenizer(tmp_path)
    check_vocabularies([("a", 256, letters), ("b", 256, letters), ("c", 256, None)])
    with pytest.raises(InvalidRequestError, match=r"b and a have different vocabularies: token \d+ is b'.*' and b'.*'"):
        check_vocabularies([("a", 256, letters), ("b", 256, box)])


def test_logits_that_are_no_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Side.logits

    def broken(side: Side, layout: Any, token_ids: Int32, start: int) -> Float32:
        logits = real(side, layout, token_ids, start)
        if "int8" in side.label:
            logits[3] = np.nan
        return logits

    monkeypatch.setattr(Side, "logits", broken)
    with pytest.raises(EvidenceError, match=f"{MODEL}@weights=int8 gives logits that are not finite at position 3"):
        compared(MODEL, f"{MODEL}@weights=int8")


# Answers ------------------------------------------------------------------------------------------------------------


def judged(answers: str) -> Judged:
    items = tuple(Item("a", ({"role": "user", "content": "?"},), "y") for _ in answers)
    return Judged(items, tuple(answers))


def test_answers_are_held_against_the_reference_one_by_one() -> None:
    found = compare_answers({"a": judged("yyyn"), "b": judged("ynny"), "a again": judged("yyyn")})
    assert (found["b"]["right"], found["b"]["gained"], found["b"]["lost"]) == (2, 1, 2)
    assert (found["a again"]["gained"], found["a again"]["lost"]) == (0, 0)


def test_accuracy_of_the_same_answers_differs_by_nothing(result: Result) -> None:
    with_tasks = copy.deepcopy(result)
    sides = with_tasks["judged"]["sides"]
    found = compare_answers(dict(zip(sides, map(judged, ("yyyn", "yyyn", "nnyn")), strict=True)))
    for label, side in sides.items():
        side["tasks"] = found[label]
        side["figures"] = figures_of(with_tasks, label)
    _, same, other = (side["figures"]["tasks"] for side in sides.values())
    assert same == {"difference": 0, "difference_error": 0}
    assert other["difference"] == -0.5
    assert other["difference_error"] == pytest.approx(0.25), "two of four lost: share a half, its error a quarter"
    assert all(check["passed"] for check in judge_checks(with_tasks))
    sides[f"{MODEL} #2"]["tasks"]["right"] += 1
    assert not all(check["passed"] for check in judge_checks(with_tasks))


def test_tasks_need_a_chat_template() -> None:
    with pytest.raises(ConfigError, match="has no chat template; expected one, as tasks are questions"):
        compared(MODEL, MODEL, items=[Item("a", ({"role": "user", "content": "?"},), "y")])
