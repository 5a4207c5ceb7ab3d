"""`kvik advise`: what limits a load on this machine, and which option to change. Knows nothing of how that is found."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import click

from kvik.cli.bench_serve import environment_key
from kvik.cli.options import engine_options, json_option
from kvik.cli.results import POSITIVE
from kvik.cli.terminal import json_line, note

MILLISECONDS = click.FloatRange(min=0, min_open=True)


@click.command("advise")
@click.option("--result", type=click.Path(path_type=Path), help="What was observed: a file of kvik bench serve.")
@click.option("--url", help="What was observed: the statistics of a Kvik server since it started.")
@click.option("--api-key", help="Of the server. Default: from the environment, as for kvik bench serve.")
@click.option("--ttft", type=MILLISECONDS, help="Most milliseconds to the first token.")
@click.option("--tpot", type=MILLISECONDS, help="Most milliseconds for each token after the first.")
@click.option("--throughput", type=MILLISECONDS, help="Output tokens a second, at least.")
@click.option("--concurrency", type=POSITIVE, default=8, show_default=True, help="Requests at once, if none observed.")
@click.option("--input-len", type=POSITIVE, default=512, show_default=True, help="Of a prompt, if none observed.")
@click.option("--output-len", type=POSITIVE, default=128, show_default=True, help="Of an answer, if none observed.")
@click.option("--fit/--no-fit", default=True, show_default=True, help="Measure steps here, for the effect of changes.")
@engine_options
@json_option
def command(fit: bool, engine: dict[str, Any], as_json: bool, **flags: Any) -> None:
    """What limits a load, which option to change, and the effect that is to be expected.

    The load is one that was observed (--result, --url) or one that is described. Engine options say how the model runs
    now; a short run on this machine shows what its steps cost.
    """
    from kvik.bench.advice import Goals, advise
    from kvik.config import EngineConfig

    goals = Goals(flags["ttft"], flags["tpot"], flags["throughput"])
    check_flags(flags, goals)
    seen, model = observation(flags)
    config = EngineConfig.from_options(**engine | {"model": engine["model"] or model})
    if seen.max_num_seqs is None:
        budget = config.scheduler.max_num_batched_tokens
        seen = dataclasses.replace(seen, max_num_seqs=config.scheduler.max_num_seqs, max_num_batched_tokens=budget)
    probed = probe_steps(config) if fit else None
    settings = settings_of(config) if fit or engine["model"] else None
    advice = advise(seen, goals, probed.cost if probed else None, settings)
    report = {"observed": seen, "goals": goals, "probed": probed}
    plain: dict[str, Any] = {name: value and dataclasses.asdict(value) for name, value in report.items()}
    plain["forecast"] = forecast_now(seen, probed)
    plain["advice"] = [each.as_dict() for each in advice]
    click.echo(json_line(plain) if as_json else "\n".join(lines(plain)))


def check_flags(flags: dict[str, Any], goals: Any) -> None:
    """Raises ConfigError for flags that contradict each other, or that ask for nothing."""
    from kvik.errors import ConfigError

    if flags["result"] is not None and flags["url"] is not None:
        raise ConfigError("result and url are given; expected one of them")
    if goals.ttft_ms is goals.tpot_ms is goals.throughput is None:
        raise ConfigError("nothing is wanted; expected --ttft, --tpot or --throughput")


def observation(flags: dict[str, Any]) -> tuple[Any, str | None]:
    """What was observed, and the model that served it if that is known."""
    from kvik.bench.evidence import read
    from kvik.bench.forecast import Demand
    from kvik.bench.observed import Observed, observe, observe_stats
    from kvik.bench.serve.target import Target
    from kvik.bench.serve.watch import fetch

    if flags["result"] is not None:
        result = read(flags["result"])
        server = result["samples"][-1].get("server")
        return observe(result), server["model"]["name"] if server else None
    if flags["url"] is not None:
        snapshot = asyncio.run(fetch(Target.parse(flags["url"], flags["api_key"] or environment_key())))
        return observe_stats(snapshot), snapshot["model"]["name"]
    return Observed(Demand(flags["concurrency"], flags["input_len"], flags["output_len"])), None


def probe_steps(config: Any) -> Any:
    """What steps cost here."""
    from kvik.bench.step_probe import probe

    return probe(config, note)


def settings_of(config: Any) -> Any:
    """The options that advice can change, as they are; `auto` weights are what the checkpoint says."""
    from kvik.bench.advice import Settings
    from kvik.engine.build import open_model
    from kvik.runners.runner import kv_form, weight_form

    held = weight_form(config.model.weights, open_model(config).spec.dtype)
    cache, scheduler = config.cache, config.scheduler
    return Settings(
        held, kv_form(cache.kv_dtype, held), cache.prefix_caching, scheduler.chunked_prefill, scheduler.batching
    )


def forecast_now(seen: Any, probed: Any) -> dict[str, float] | None:
    """What the load should see as things are."""
    from kvik.bench.forecast import forecast

    if probed is None:
        return None
    return dataclasses.asdict(forecast(probed.cost, seen.demand, seen.max_num_seqs, seen.max_num_batched_tokens))


def lines(report: dict[str, Any]) -> list[str]:
    """The advice for people."""
    seen, probed, now = report["observed"], report["probed"], report["forecast"]
    demand = seen["demand"]
    said = [
        f"load                {demand['concurrency']} requests at once, {demand['input_len']} tokens in, "
        f"{demand['output_len']} out"
    ]
    measured = [(name, seen[name]) for name in ("ttft_ms", "tpot_ms", "throughput") if seen[name] is not None]
    said += [f"observed            {name} {value:.1f}" for name, value in measured]
    if probed is not None and now is not None:
        cost = probed["cost"]
        said += [
            f"a step costs        {1e3 * cost['fixed']:.3f} ms + {1e6 * cost['per_token']:.2f} us a token + "
            f"{1e9 * cost['per_kv']:.2f} ns a KV read + {1e6 * cost['per_row']:.2f} us a row",
            f"                    wrong by {100 * cost['error']:.1f} % (median, over steps it was not fitted to)",
            f"forecast            TTFT {now['ttft_ms']:.1f} ms, TPOT {now['tpot_ms']:.2f} ms, "
            f"{now['tokens_per_s']:.1f} tokens/s with {now['rows']} requests a step",
        ]
    for advice in report["advice"]:
        said += [
            f"{advice['problem']}",
            f"  change            {advice['change']}",
            f"  because           {advice['why']}",
        ]
        said += [f"  {name:<18}{old:.4g} -> {new:.4g} (forecast)" for name, (old, new) in advice["effect"].items()]
    return said if report["advice"] else [*said, "nothing falls short of what is wanted"]
