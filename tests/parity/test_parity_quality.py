"""What quantized forms cost two small trained models, in perplexity on texts of the kind they were trained on.

Each form is compared with the same runner in bf16, on 17,000 tokens, so that nothing but the form differs. Then the
same with outlier channels in what the linear layers read, as large models have them. Without ../shared/data the tests
are skipped.
"""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any

import pytest
from contenders import QUANTIZED, make_runner
from outliers import OutlierCheckpoint
from trained import DATA, MODELS, TEXTS, encoded_pieces, score

from kvik.checkpoint import open_checkpoint
from kvik.runners.native import available, best_isa

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not there")

KINDS = (*([best_isa()] if available() else []), "reference")
ALLOWED = {"int8": 0.005, "int8 KV": 0.005, "int4": 0.04}
"""Of the perplexity in bf16."""
EXACT = 2e-5
"""How far float32 perplexities of one function may lie apart."""


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@cache
def perplexity(kind: str, model: str, weights: str, kv_dtype: str, *, outliers: bool = False) -> float:
    """Over both texts, each piece by itself."""
    checkpoint = open_checkpoint(str(DATA / "models" / model / "hf"))
    context = checkpoint.spec.max_position
    runner = make_runner(kind, weights, kv_dtype)
    runner.load(OutlierCheckpoint(checkpoint) if outliers else checkpoint)
    runner.allocate(context // 32, 32)
    pieces = [ids for which in TEXTS for ids in encoded_pieces(model, which, context)]
    total = sum(score(runner, ids, context) for ids in pieces)
    runner.close()
    return math.exp(total / sum(len(ids) - 1 for ids in pieces))


def cost(kind: str, model: str, form: str, *, outliers: bool = False) -> float:
    """What the form adds to the perplexity of the sound model in bf16, as a fraction of it."""
    held = perplexity(kind, model, **QUANTIZED[form], outliers=outliers)
    return held / perplexity(kind, model, "bf16", "bf16") - 1


def cases(misses: dict[tuple[str, str], str]) -> list[Any]:
    """Every model in every form; those that miss their bound are expected to, strictly, for the reason given."""
    return [
        pytest.param(*case, marks=[pytest.mark.xfail(reason=misses[case], strict=True)] if case in misses else [])
        for case in itertools.product(MODELS, ALLOWED)
    ]


MISSES = {("stories260K", "int4"): "+11.6 %, with outliers +12.3 %: rows of 64 and 172 weights have no 4 bits to spare"}


@pytest.mark.parametrize(("model", "form"), cases(MISSES))
def test_a_form_costs_no_more_than_it_may(model: str, form: str, kind: str) -> None:
    assert cost(kind, model, form) <= ALLOWED[form]


@pytest.mark.parametrize(("model", "form"), cases(MISSES))
def test_outlier_channels_do_not_raise_the_cost(model: str, form: str, kind: str) -> None:
    """One draw of the channels; without balanced columns int8 costs stories260K +1.6 %, and int4 babyllama +11 %."""
    assert cost(kind, model, form, outliers=True) <= ALLOWED[form]


@pytest.mark.parametrize("model", MODELS)
def test_outliers_do_not_change_the_function(model: str) -> None:
    sound, changed = (perplexity("reference", model, "f32", "f32", outliers=each) for each in (False, True))
    assert changed == pytest.approx(sound, rel=EXACT)
