"""Drives Kvik through its engine, as the other drivers drive theirs: the same protocol, the same closed loop.

The engine is stepped by hand, so that when each token came is known. Prefix caching is off unless it is asked for: the
same prompts are run several times. Runs with the Python that has kvik installed.
"""

from __future__ import annotations

from typing import Any

from protocol import Given, Message, Run, closed_loop, serve

from kvik import SamplingParams, __version__
from kvik.config import EngineConfig
from kvik.engine.build import build_engine


class Kvik:
    """Kvik's engine, stepped by hand."""

    def load(self, asked: Message) -> Message:
        """Load a model with the engine options in `asked["options"]`."""
        options: dict[str, Any] = asked["options"] | {"model": asked["model"], "threads": asked["threads"]}
        self._engine = build_engine(EngineConfig.from_options(**options))
        kernels = self._engine.runner.kernels().chosen
        return {"versions": {"kvik": __version__}, "settings": options | {"kernels": kernels}}

    def run(self, prompts: list[list[int]], output_lens: list[int], concurrency: int) -> Run:
        """All prompts through the engine."""
        indices: dict[str, int] = {}
        counted = [0] * len(prompts)

        def add(index: int, prompt: list[int], output_len: int) -> None:
            params = SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True)
            indices[self._engine.add(prompt, params, request_id=f"run-{index}").request_id] = index

        def step() -> list[Given]:
            given: list[Given] = []
            for answer in self._engine.step():
                if answer.error is not None:
                    raise answer.error
                index, request = indices[answer.request_id], answer.first
                new = request.tokens[request.num_prompt_tokens + counted[index] :]
                counted[index] += len(new)
                given.append((index, new, answer.is_finished))
            return given

        return closed_loop(prompts, output_lens, concurrency, add, step)


if __name__ == "__main__":
    serve(Kvik())
