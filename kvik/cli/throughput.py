"""`kvik bench throughput`: many requests at once, offline. This file knows nothing of how they are measured."""

from __future__ import annotations

from typing import Any

import click

from kvik.cli.options import engine_options
from kvik.cli.results import POSITIVE, deliver, repeat_options_with
from kvik.cli.terminal import note

NANO_VLLM_REQUESTS = 256
NANO_VLLM_TEMPERATURE = 0.6


@click.command()
@click.option("--num-prompts", type=POSITIVE, help="Requests. Default: 64, or the preset's 256.")
@click.option("--input-len", help="Tokens of a prompt, such as 512 or 100-1024. Default: 100-1024.")
@click.option("--output-len", help="Tokens of an answer, such as 128 or 100-1024. Default: 100-1024.")
@click.option("--temperature", type=click.FloatRange(min=0), help="Default: 0, or the preset's 0.6.")
@click.option("--preset", type=click.Choice(["nano-vllm"]), help="nano-vllm: the requests of its published benchmark.")
@engine_options
@repeat_options_with(warmups=0, repetitions=3)
def throughput(
    num_prompts: int | None,
    input_len: str | None,
    output_len: str | None,
    temperature: float | None,
    preset: str | None,
    engine: dict[str, Any],
    **how: Any,
) -> None:
    """Offline throughput: output tokens/s of many requests at once, and the fraction of the memory limit.

    `--seed` draws lengths and tokens. A preset has its own; `--num-prompts` takes fewer or more of its requests.
    """
    from kvik.bench.throughput import measure_throughput
    from kvik.config import EngineConfig

    config = EngineConfig.from_options(**engine)
    if preset is not None:
        requests = preset_requests(num_prompts, input_len, output_len)
    else:
        requests = drawn_requests(num_prompts, input_len, output_len, config)
    warmth = temperature if temperature is not None else (NANO_VLLM_TEMPERATURE if preset else 0.0)
    deliver(lambda repeat: measure_throughput(config, requests, warmth, repeat, note), **how)


def preset_requests(num_prompts: int | None, input_len: str | None, output_len: str | None) -> Any:
    """nano-vLLM's requests; their lengths are part of it."""
    from kvik.bench.workload import nano_vllm_requests
    from kvik.errors import ConfigError

    for name, value in (("input_len", input_len), ("output_len", output_len)):
        if value is not None:
            raise ConfigError(f"{name} is {value!r}; the preset nano-vllm has its own, expected none")
    return nano_vllm_requests(num_prompts or NANO_VLLM_REQUESTS)


def drawn_requests(num_prompts: int | None, input_len: str | None, output_len: str | None, config: Any) -> Any:
    """Requests drawn from the ranges by the seed."""
    from kvik.bench.workload import NANO_VLLM_RANGE, draw_requests, parse_range
    from kvik.engine.build import open_model

    default = "-".join(map(str, NANO_VLLM_RANGE))
    lengths = parse_range(input_len or default, "input_len"), parse_range(output_len or default, "output_len")
    vocab_size = open_model(config).spec.vocab_size
    return draw_requests(num_prompts or 64, *lengths, config.runner.seed, vocab_size - 1)
