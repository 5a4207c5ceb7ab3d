"""The calibration text is what its program writes, from the training side alone."""

from __future__ import annotations

from tools.box.calibration import LONGEST, SEED, calibration_text, spelled
from tools.box.world.mixture import document


def test_the_text_is_training_documents_in_order_within_a_limit() -> None:
    text = calibration_text(20_000)
    assert 15_000 < len(text.encode()) <= 20_000
    assert text.startswith(spelled(document(SEED, 0, LONGEST)) + spelled(document(SEED, 1, LONGEST)))
    assert calibration_text(20_000) == text
