"""The calibration text that comes with Kvik: `python -m tools.box.calibration` writes kvik/box/calibration.txt.

Conversations from the training side only, spelled with the marks of the chat template, so that a quantizer sees what
the model will be asked without seeing anything that is held out. This file knows nothing of quantizers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from kvik.quantize.calibration import SHIPPED
from tools.box.tokenizer import END, END_OF_TEXT, START
from tools.box.world.mixture import document
from tools.box.world.turn import Conversation

SEED = 7
LONGEST = 512
MAX_BYTES = 200_000


def spelled(conversation: Conversation) -> str:
    """A conversation as the model was trained to read it."""
    if conversation.plain:
        turn = conversation.turns[0]
        return f"{turn.question}\n{turn.answer}{END_OF_TEXT}"
    return "".join(f"{START}{each['role']}\n{each['content']}{END}\n" for each in conversation.messages())


def calibration_text(limit: int = MAX_BYTES) -> str:
    """As many training documents as fit into so many bytes."""
    text, number = "", 0
    while True:
        more = spelled(document(SEED, number, LONGEST))
        if len((text + more).encode()) > limit:
            return text
        text, number = text + more, number + 1


def main() -> None:
    """Write the text that ships."""
    parser = argparse.ArgumentParser(description="Write the calibration text that comes with Kvik.")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    out: Path = parser.parse_args().out
    out.write_text(calibration_text(), encoding="utf-8")
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
