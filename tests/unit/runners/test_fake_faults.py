"""Faults on command: each does what it says, strikes when it is told to, and spares its neighbours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from fake_toys import check, expected, fake_llm

from kvik import LLM, SamplingParams
from kvik.errors import EngineError, NumericalError
from kvik.request import RequestOutput
from kvik.runners.fake import FakeRunner
from kvik.runners.fake.faults import EXIT_STATUS, KINDS, SLOW_S, Fault, spelled_in
from kvik.scheduler import check_invariants
from kvik.step import as_int32

GREEDY = SamplingParams(temperature=0, max_tokens=30)
GOOD = ["Once upon a time there was a fault", "Not in this prompt: [[raises]] [raise] [[raise@0]]", "[[nan", "raise]]"]
ERRORS = {"raise": EngineError, "oom": EngineError, "nan": NumericalError}


class Killed(BaseException):
    """What ends a step that never would."""


def run_beside_good(llm: LLM, bad: str, params: SamplingParams = GREEDY) -> RequestOutput:
    """The output of a prompt among good ones, whose answers are the oracle's."""
    outputs = llm.generate([*GOOD[:2], bad, *GOOD[2:]], params, use_tqdm=False)
    bad_output = outputs.pop(2)
    for output in outputs:
        check(llm, output, params)
    check_invariants(llm.engine.scheduler)
    assert llm.stats()["blocks_used"] == 0
    return bad_output


@pytest.mark.parametrize("options", [{}, {"max_num_batched_tokens": 5}, {"num_blocks": 10, "max_model_len": 200}])
@pytest.mark.parametrize("kind", ERRORS)
def test_the_guilty_fails_alone(kind: str, options: dict[str, object]) -> None:
    llm = fake_llm("fake:length=20", **options)
    for prompt in (f"[[{kind}]]", f"a prompt that says [[{kind}]] in its middle, and goes on", f"[[slow]] [[{kind}]]]"):
        output = run_beside_good(llm, prompt)
        assert type(output.error) is ERRORS[kind]
        assert output.outputs[0].finish_reason == "error"
        assert output.outputs[0].token_ids == []
    check(llm, llm.generate(["afterwards"], GREEDY)[0], GREEDY)


@pytest.mark.parametrize("kind", ERRORS)
def test_it_strikes_at_the_token_that_was_named(kind: str) -> None:
    llm = fake_llm("fake:length=20")
    output = run_beside_good(llm, f"[[{kind}@7]]")
    assert type(output.error) is ERRORS[kind]
    assert output.outputs[0].token_ids == expected(llm, output.prompt_token_ids, GREEDY)[:6]
    unharmed = run_beside_good(llm, f"[[{kind}@22]]")
    check(llm, unharmed, GREEDY)
    assert len(unharmed.outputs[0].token_ids) == 21


def test_the_error_names_the_request_and_the_fault() -> None:
    llm = fake_llm()
    with pytest.raises(EngineError, match=r"^RuntimeError: the prompt of request 0 says \[\[raise\]\]") as caught:
        llm.generate("[[raise]]")
    assert type(caught.value.__cause__) is RuntimeError
    with pytest.raises(EngineError, match=r"^MemoryError: the prompt of request 1 says \[\[oom@2\]\]") as caught:
        llm.generate("[[oom@2]]", GREEDY)
    assert type(caught.value.__cause__) is MemoryError


@pytest.mark.parametrize("n", [1, 3])
def test_a_prompt_found_in_the_prefix_cache_still_has_its_fault(n: int) -> None:
    llm = fake_llm("fake:length=20")
    params = SamplingParams(n=n, temperature=0, max_tokens=30)
    for _ in range(2):
        output = run_beside_good(llm, "[[nan@3]] " + "and then so much more that it fills several blocks" * 3, params)
        assert type(output.error) is NumericalError
    assert llm.stats()["prompt_tokens_cached"] > 0


def test_the_last_fault_of_a_prompt_counts() -> None:
    llm = fake_llm("fake:length=20")
    output = run_beside_good(llm, "[[nan]] no: [[raise@3]]")
    assert type(output.error) is EngineError
    assert len(output.outputs[0].token_ids) == 2


def test_a_fault_in_a_conversation_and_in_token_ids() -> None:
    llm = fake_llm()
    with pytest.raises(EngineError, match="raise"):
        llm.chat([{"role": "user", "content": "[[raise]]"}])
    with pytest.raises(EngineError, match="raise"):
        llm.generate([list(b"[[raise]]")])


def test_slow_takes_its_time_and_nothing_else() -> None:
    slept: list[float] = []
    llm = fake_llm("fake:length=4", FakeRunner(clock=lambda: 0.0, sleep=slept.append))
    check(llm, run_beside_good(llm, "[[slow]]"), GREEDY)
    assert slept == [pytest.approx(SLOW_S)] * 5
    slept.clear()
    check(llm, run_beside_good(llm, "[[slow@3]]"), GREEDY)
    assert slept == [pytest.approx(SLOW_S)]


def test_hang_never_comes_back() -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise Killed

    llm = fake_llm(runner=FakeRunner(sleep=sleep))
    with pytest.raises(Killed):
        llm.generate(["hello", "[[hang]]"], use_tqdm=False)
    assert slept == [3600.0] * 3


def test_exit_asks_for_the_end_of_the_process() -> None:
    left: list[int] = []

    def leave(status: int) -> None:
        left.append(status)
        raise Killed

    with pytest.raises(Killed):
        fake_llm(runner=FakeRunner(leave=leave)).generate("[[exit@2]]", GREEDY)
    assert left == [EXIT_STATUS]


def test_exit_ends_a_real_process() -> None:
    code = "from kvik import LLM; LLM('fake:').generate('[[exit]]'); print('still here')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (EXIT_STATUS, "")


@pytest.mark.parametrize("kind", ERRORS)
def test_scores_of_a_prompt_with_a_fault(kind: str) -> None:
    """Those of NaN are NaN, where the fault is known; others never come."""
    llm = fake_llm()
    output = llm.generate(["ok", f"[[{kind}]]"], SamplingParams(prompt_logprobs=1, max_tokens=1), use_tqdm=False)[1]
    assert type(output.error) is ERRORS[kind]
    entries = output.prompt_logprobs or []
    assert (len(entries) > 1) == (kind == "nan")
    assert not any(entry and entry.logprob == entry.logprob for entry in entries)


def test_what_is_a_fault_and_what_is_not() -> None:
    def found(text: str | list[int]) -> list[tuple[int, int]]:
        return spelled_in(as_int32(list(text.encode()) if isinstance(text, str) else text))

    assert found("x[[raise]]y[[slow@12]]") == [(9, Fault("raise").code), (21, Fault("slow", 12).code)]
    for kind in KINDS:
        assert found(f"[[{kind}@9999]]") == [(len(kind) + 8, Fault(kind, 9999).code)]
    for text in ("[[Raise]]", "[[raise]", "[raise]]", "[[raise@]]", "[[raise@07]]", "[[raise@10000]]", "[[ raise]]"):
        assert not found(text)
    spelling: Callable[[int], list[int]] = lambda token: [*b"[[ra", token, *b"ise]]"]  # noqa: E731
    assert not any(found(spelling(token)) for token in (300, 452, -1, 256 + ord("i")))
