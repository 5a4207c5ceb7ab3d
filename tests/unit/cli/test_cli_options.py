"""Flags follow from the dataclasses: every option on every command, once, with its default and limits."""

from __future__ import annotations

import dataclasses
from typing import Any

import click
import pytest

from kvik.cli.bench import decode, prefill
from kvik.cli.chat import command as chat
from kvik.cli.compare import compare
from kvik.cli.evaluate import ppl
from kvik.cli.generate import command as generate
from kvik.cli.info import command as info
from kvik.cli.options import SAMPLING_HELP, Size, engine_fields, engine_options, flag_name, sampling_options
from kvik.cli.throughput import throughput
from kvik.config import EngineConfig
from kvik.request import SamplingParams

COMMANDS = [generate, chat, info, decode, prefill, compare, throughput, ppl]


def parse(decorator: Any, *args: str) -> Any:
    """What a command with these flags receives."""
    received: dict[str, Any] = {}

    @click.command()
    @decorator
    def probe(**values: Any) -> None:
        received.update(values)

    probe.main(list(args), standalone_mode=False)
    return next(iter(received.values()))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command.name))
def test_every_engine_option_is_a_flag_of_every_command(command: click.Command) -> None:
    flags = [flag for param in command.params for flag in param.opts]
    assert len(flags) == len(set(flags))
    assert {flag_name(field.name) for field in engine_fields()} <= set(flags)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command.name))
def test_every_flag_is_explained(command: click.Command) -> None:
    silent = [p.name for p in command.params if isinstance(p, click.Option) and not p.help]
    assert not silent


def test_no_flags_give_the_default_configuration() -> None:
    assert EngineConfig.from_options(**parse(engine_options)) == EngineConfig()


def test_flags_arrive_under_the_names_of_their_fields() -> None:
    given = "--max-num-seqs 7 --no-prefix-caching --kv-cache-memory 1.5GiB --schedule separate --enforce-eager --seed 9"
    config = EngineConfig.from_options(**parse(engine_options, *given.split()))
    assert (config.scheduler.max_num_seqs, config.scheduler.schedule) == (7, "separate")
    assert (config.cache.prefix_caching, config.cache.kv_cache_memory) == (False, 3 * 2**29)
    assert (config.runner.enforce_eager, config.runner.seed) == (True, 9)


@pytest.mark.parametrize(
    "given", ["--max-num-seqs 0", "--max-num-seqs x", "--schedule both", "--block-size 1", "--kv-cache-memory -1"]
)
def test_a_bad_value_is_a_usage_error_that_names_the_flag(given: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        parse(engine_options, *given.split())
    assert given.split()[0] in caught.value.format_message()


@pytest.mark.parametrize(("text", "size"), [("4GiB", 2**32), ("512MiB", 2**29), ("2G", 2 * 10**9), ("123", 123)])
def test_sizes(text: str, size: int) -> None:
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["0", "4Q", "", "GiB", "-4GiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(click.UsageError):
        Size().convert(text, None, None)


def test_sampling_flags_are_fields_of_sampling_params() -> None:
    assert SAMPLING_HELP.keys() <= {field.name for field in dataclasses.fields(SamplingParams)}


def test_no_sampling_flags_give_default_params() -> None:
    assert parse(sampling_options()) == SamplingParams()


def test_a_command_may_have_defaults_of_its_own_and_leave_flags_out() -> None:
    own = sampling_options(without=("n",), max_tokens=99)
    assert parse(own) == SamplingParams(max_tokens=99)
    with pytest.raises(click.NoSuchOption):
        parse(own, "--n", "2")


def test_sampling_flags_arrive() -> None:
    given = "--temperature 0 --stop a --stop b --top-k 5 --ignore-eos --logprobs 3 --min-p 0.1"
    params = parse(sampling_options(), *given.split())
    assert params == SamplingParams(temperature=0.0, stop=("a", "b"), top_k=5, ignore_eos=True, logprobs=3, min_p=0.1)
