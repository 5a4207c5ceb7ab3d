"""The card and the plot say what was logged and measured, and the one command knows how far to go."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from tools.box import make, plot, state
from tools.box.card import card, rows

LOG = [
    {"step": 20, "tokens": 1_000_000, "seconds": 1800, "loss": 2.5, "tokens_per_s": 500},
    {"step": 20, "tokens": 1_000_000, "seconds": 1800, "held_out": dict.fromkeys(plot.SHOWN, 0.5)},
    {"step": 40, "tokens": 2_000_000, "seconds": 3600, "loss": 1.25, "tokens_per_s": 500},
    {"step": 40, "tokens": 2_000_000, "seconds": 3600, "held_out": dict.fromkeys(plot.SHOWN, 0.9)},
]
SHARE = {"accuracy": 0.975, "standard_error": 0.011, "count": 200, "right": 195}
RESULT = {"tasks": {"definition": SHARE}, "overall": SHARE | {"accuracy": 0.5}}


def test_the_card_says_what_was_measured() -> None:
    text = card(LOG, {"bf16": RESULT, "int8": RESULT}, "a machine")
    for said in (
        "2 million tokens",
        "40 steps",
        "1.0 core hours on a machine",
        "1.2500 nats",
        "7.3 million parameters",
    ):
        assert said in text, said
    assert "| definition | 200 | 97.5 ± 1.1 | 97.5 ± 1.1 | 95 |" in text
    assert "| all | 200 | 50.0 ± 1.1 | 50.0 ± 1.1 |  |" in text
    assert "{" not in text


def test_a_task_that_was_not_measured_in_one_form_is_left_empty() -> None:
    table = rows({"bf16": RESULT, "int4": {"tasks": {}, "overall": SHARE}})
    assert "| definition | 200 | 97.5 ± 1.1 |  | 95 |" in table


def write_log(path: Path) -> Path:
    for record in LOG:
        state.append_log(path / "log.jsonl", record)
    return path / "log.jsonl"


def test_a_log_is_read_back(tmp_path: Path) -> None:
    assert state.read_log(write_log(tmp_path)) == LOG
    assert state.read_log(tmp_path / "none.jsonl") == []


def test_the_length_of_a_run_follows_from_its_pace(tmp_path: Path) -> None:
    assert make.steps_for(tmp_path, 1e8, 77) == 77
    write_log(tmp_path)
    assert make.steps_for(tmp_path, 1e8, 77) == 2000


@pytest.mark.filterwarnings("ignore")
def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot.plot(write_log(tmp_path), tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
