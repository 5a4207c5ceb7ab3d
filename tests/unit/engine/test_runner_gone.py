"""A runner that is gone ends the engine: no row is blamed, and none is tried again on its own."""

from __future__ import annotations

import pytest
from fakes import FakeRunner, expected_answer, fake_engine

from kvik.engine.llm import LLM
from kvik.engine.remote.frames import described
from kvik.errors import EngineError, RunnerGoneError
from kvik.request import SamplingParams
from kvik.step import StepPlan

GREEDY = SamplingParams(temperature=0, max_tokens=5)


class Failing:
    """A hook that raises what it is told to, one for each run, until there is nothing left."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def __call__(self, plan: StepPlan) -> None:
        if self.errors:
            raise self.errors.pop(0)


@pytest.mark.parametrize("before", [[], [RuntimeError("once")]], ids=["whole plan", "rows alone"])
def test_the_step_raises_and_no_request_is_blamed(before: list[Exception]) -> None:
    runner = FakeRunner(hook=Failing(*before, RunnerGoneError("rank 1 died")))
    engine = fake_engine(runner)
    answers = [engine.add([key, 2, 3], GREEDY, request_id=str(key)) for key in range(3)]
    with pytest.raises(RunnerGoneError, match="rank 1 died"):
        engine.step()
    assert len(runner.plans) == 1 + len(before), "nothing more is asked of it"
    assert [answer.error for answer in answers] == [None] * 3
    while engine.has_unfinished():
        engine.step()
    for answer in answers:
        assert answer.output().outputs[0].token_ids == expected_answer(answer.prompt_token_ids, GREEDY)


def test_a_request_that_failed_and_a_runner_that_is_gone_are_told_apart() -> None:
    engine = fake_engine(FakeRunner(hook=Failing(*[EngineError("not this one")] * 2)))
    answer = engine.add([1], GREEDY, request_id="a")
    engine.step()
    assert str(answer.error) == "not this one"


def test_offline_the_call_raises_it() -> None:
    llm = LLM.from_engine(fake_engine(FakeRunner(hook=Failing(RunnerGoneError("rank 2 died")))))
    with pytest.raises(RunnerGoneError, match="rank 2 died"):
        llm.generate([[1], [2]], GREEDY, use_tqdm=False)
    assert not llm.has_unfinished()


def test_it_crosses_to_a_front_end_by_name() -> None:
    assert described(RunnerGoneError("gone")) == ("RunnerGoneError", "gone")
