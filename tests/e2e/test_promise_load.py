"""Promises 10, 15, 17 and 18 over HTTP, for a moment: overload, one caller against another, what never fits."""

from __future__ import annotations

from promises import hold

from tools.soak.crowd import FINISHED
from tools.soak.load import (
    CLOSE_FLAGS,
    KEYS,
    LONG,
    LONG_FLAGS,
    SHARED,
    SHARED_FLAGS,
    SURGE,
    TIGHT_FLAGS,
    fairness,
    long_prompts,
    surge_within,
    tight,
    unfit,
)
from tools.soak.server import SOUND, OwnServer, Server
from tools.soak.trials import Trial

SHORT_S = 0.4


async def short_surge(server: Server, trial: Trial) -> None:
    await surge_within(server, trial, SHORT_S, part_s=1.0)


def test_overload_costs_no_goodput_and_most_refusals_come_at_once() -> None:
    with OwnServer(SURGE, "--max-num-seqs", "8", "--target-ttft", str(SHORT_S)) as server:
        trial = hold(server, short_surge, 1, except_for="a refusal in a hundred took")
    assert trial.figures["at_10"]["refused_ms_p50_p99"][0] < 500


def test_a_caller_with_two_hundred_requests_delays_anothers_by_a_slot() -> None:
    with OwnServer(SHARED, *SHARED_FLAGS, key=KEYS[0]) as server:
        trial = hold(server, fairness, 200)
    assert trial.figures["singles"] > 3
    assert trial.figures["others_before_it_max"] < 20


def test_long_prompts_hold_up_nobodys_tokens() -> None:
    with OwnServer(LONG, *LONG_FLAGS) as server:
        assert hold(server, long_prompts, 80).figures["long_prompts"] > 0


def test_what_never_fits_is_refused_with_the_numbers_and_others_are_exact() -> None:
    with OwnServer(SOUND, *CLOSE_FLAGS) as server:
        trial = hold(server, unfit, 40, clients=16)
    assert trial.figures["unfit"] == 40
    assert trial.ledger.ends[FINISHED] > 0


def test_preemption_after_preemption_changes_no_byte() -> None:
    with OwnServer(SOUND, *TIGHT_FLAGS) as server:
        assert hold(server, tight, 150).figures["preemptions"] > 30
