"""Two small trained models: every runner answers their golden prompts and scores their texts as recorded.

The records lie in ../shared/data beside the checkout, made by an independent numpy forward; without that folder the
tests are skipped.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from oracle import greedy, plan_for
from trained import DATA, MODELS, encoded_pieces, score

from kvik.checkpoint import open_checkpoint
from kvik.runners.runner import Runner
from kvik.step import as_int32

BOS, EOS = 1, 2
NLL_RELATIVE = 1e-6
"""The reference comes within 1.2e-7 of the records."""

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not there")
NewRunner = Callable[..., Runner]


def golden(model: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((DATA / "models" / model / "golden.json").read_text())
    return record


def ready(runner: Runner, model: str) -> tuple[Runner, int]:
    """The loaded runner with room for one sequence, and the model's context length."""
    checkpoint = open_checkpoint(str(DATA / "models" / model / "hf"))
    context = checkpoint.spec.max_position
    runner.load(checkpoint)
    runner.allocate(context // 32, 32)
    return runner, context


def continue_greedily(runner: Runner, prompt: list[int], context: int) -> list[int]:
    """Likeliest tokens after a prompt until BOS or EOS, 200 tokens or a full context, as the records were made."""
    table = [as_int32(range(context // 32))]
    ids, computed = list(prompt), 0
    while len(ids) - len(prompt) < 200 and len(ids) < context:
        plan = plan_for([ids], {0: (computed, len(ids))}, table, sample=greedy([0]))
        token = int(runner.run(plan).token_ids[0])
        if token in (BOS, EOS):
            break
        computed = len(ids)
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("model", MODELS)
def test_greedy_answers_are_the_golden_ones(model: str, new_runner: NewRunner) -> None:
    runner, context = ready(new_runner(), model)
    for case in golden(model)["greedy"]:
        assert continue_greedily(runner, case["prompt_ids"], context) == case["greedy_ids"], case["prompt"]


@pytest.mark.parametrize("which", ["tinystories_sample_cs336", "tinystories_valid_sample(first 20 paras>200ch)"])
@pytest.mark.parametrize("model", MODELS)
def test_texts_score_as_recorded(model: str, which: str, new_runner: NewRunner) -> None:
    runner, context = ready(new_runner(), model)
    pieces = encoded_pieces(model, which, context)
    recorded = golden(model)["eval"][which]
    predicted = sum(len(ids) - 1 for ids in pieces)
    assert predicted == recorded["tokens"]
    nll = sum(score(runner, ids, context) for ids in pieces) / predicted
    assert nll == pytest.approx(recorded["nll_per_token"], rel=NLL_RELATIVE)
