"""Drives OpenVINO GenAI's continuous-batching pipeline on a CPU, one step at a time.

Its own defaults for a CPU are its documented best: u8 keys and values, weights as they were exported, activations
quantized dynamically in groups. Given here: the number of threads, the memory of the KV cache, how many sequences and
tokens a step may hold. Prefix caching is off: the same prompts are run several times.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from protocol import Given, Message, Run, closed_loop, serve, usable_cores

MIB = 2**20
TOKENS_PER_STEP = 2048


class OpenVino:
    """The continuous-batching pipeline."""

    def load(self, asked: Message) -> Message:
        """Load a directory that optimum exported."""
        import openvino
        import openvino_genai

        threads = len(usable_cores(asked["threads"]))
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = TOKENS_PER_STEP
        scheduler.max_num_seqs = asked["max_seqs"]
        scheduler.enable_prefix_caching = False
        scheduler.dynamic_split_fuse = True
        self._scheduler, self._made, self._path = scheduler, 0, Path(asked["model"])
        properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(self._path, scheduler, "CPU", properties)
        return {
            "versions": {"openvino": openvino.__version__, "openvino_genai": openvino_genai.__version__},
            "settings": properties | {"max_num_batched_tokens": TOKENS_PER_STEP, "max_num_seqs": asked["max_seqs"]},
        }

    def run(self, prompts: list[list[int]], output_lens: list[int], concurrency: int) -> Run:
        """All prompts through the pipeline."""
        import numpy as np
        import openvino
        import openvino_genai

        flying: dict[int, Any] = {}

        def add(index: int, prompt: list[int], output_len: int) -> None:
            config = openvino_genai.GenerationConfig()
            config.max_new_tokens, config.ignore_eos, config.do_sample = output_len, True, False
            token_ids = openvino.Tensor(np.array([prompt], np.int64))
            self._made += 1
            flying[index] = self._pipeline.add_request(self._made, token_ids, config)

        def step() -> list[Given]:
            self._pipeline.step()
            given = [(index, read(handle), ended(handle)) for index, handle in flying.items()]
            for index, _, has_ended in given:
                if has_ended:
                    del flying[index]
            return given

        def read(handle: Any) -> list[int]:
            token_ids: list[int] = []
            while handle.can_read():
                for output in handle.read().values():
                    token_ids += output.generated_ids
            return token_ids

        def ended(handle: Any) -> bool:
            return handle.get_status() != openvino_genai.GenerationStatus.RUNNING

        return closed_loop(prompts, output_lens, concurrency, add, step)


if __name__ == "__main__":
    serve(OpenVino())
