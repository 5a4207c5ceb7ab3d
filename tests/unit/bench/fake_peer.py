"""An engine that invents tokens, for tests of those who talk to one; its manners are given on the command line.

Usage: fake_peer.py DIARY MANNER. Every run is noted in the diary, a file that several peers may share: name of the
manner, start and end. It runs as a program of its own and speaks the protocol of tools/peers.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools" / "peers"))

from protocol import Given, Message, Run, closed_loop, serve


class FakeEngine:
    """One token for every request in flight each step."""

    def __init__(self, diary: Path, manner: str) -> None:
        self.diary, self.manner = diary, manner
        self.runs = 0

    def load(self, asked: Message) -> Message:
        """Loads nothing."""
        if self.manner == "no-load":
            raise OSError(f"{asked['model']} cannot be loaded")
        return {"versions": {"fake": "1"}, "settings": {"asked": asked}}

    def run(self, prompts: list[list[int]], output_lens: list[int], concurrency: int) -> Run:
        """Answers, or behaves as its manner has it."""
        self.runs += 1
        os.system("echo this line belongs to no protocol")
        if self.manner == "crash" or (self.manner == "crash-later" and self.runs > 1):
            print("the engine caught fire", file=sys.stderr, flush=True)
            os._exit(3)
        if self.manner == "hang":
            time.sleep(60)
        begun = time.time()
        run = self.answer(prompts, output_lens, concurrency)
        with self.diary.open("a", encoding="utf-8") as file:
            file.write(f"{self.manner} {begun} {time.time()}\n")
        return run

    def answer(self, prompts: list[list[int]], output_lens: list[int], concurrency: int) -> Run:
        """Token `place` for the place-th token of every answer."""
        left: dict[int, int] = {}

        def add(index: int, prompt: list[int], output_len: int) -> None:
            left[index] = output_len - (self.manner == "short")

        def step() -> list[Given]:
            time.sleep(0.001)
            for index in left:
                left[index] -= 1
            given = [(index, [7], count == 0) for index, count in left.items()]
            for index, _, ended in given:
                if ended:
                    del left[index]
            return given

        return closed_loop(prompts, output_lens, concurrency, add, step)


if __name__ == "__main__":
    serve(FakeEngine(Path(sys.argv[1]), sys.argv[2]))
