"""`kvik plan`: how many replicas a load would need, found on paper. Knows nothing of how that is simulated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kvik.cli.bench_serve import load_shape
from kvik.cli.options import engine_options, json_option
from kvik.cli.results import POSITIVE
from kvik.cli.terminal import json_line, note

ABOVE_ZERO = click.FloatRange(min=0, min_open=True)


@click.command("plan")
@click.option("--rate", type=ABOVE_ZERO, help="Requests a second on average (Poisson).")
@click.option("--trace", type=click.Path(path_type=Path), help="Arrivals and lengths from a CSV trace.")
@click.option("--speed-up", type=ABOVE_ZERO, default=1.0, show_default=True, help="Replay a trace so much faster.")
@click.option("--num-prompts", type=POSITIVE, default=200, show_default=True, help="Requests to play.")
@click.option("--input-len", default="128", show_default=True, help="Tokens of a prompt: 512 or 100-1024.")
@click.option("--output-len", default="64", show_default=True, help="Tokens of an answer: 128 or 100-1024.")
@click.option("--max-input-len", type=POSITIVE, help="Cut the prompts of a trace to this.")
@click.option("--max-output-len", type=POSITIVE, help="Cut the answers of a trace to this.")
@click.option("--slo-ttft", type=ABOVE_ZERO, help="Most milliseconds to the first token of a good request.")
@click.option("--slo-tpot", type=ABOVE_ZERO, help="Most milliseconds for each token after the first.")
@click.option("--slo-share", type=click.FloatRange(0, 1), default=0.9, show_default=True, help="Good ones of all.")
@click.option("--most-replicas", type=POSITIVE, default=8, show_default=True, help="Where to stop looking.")
@engine_options
@json_option
def command(engine: dict[str, Any], as_json: bool, **flags: Any) -> None:
    """How many replicas of this machine keep an SLO under a load, with Kvik's own scheduler in simulated time.

    A short run shows what a step costs here; nothing is served. --seed draws lengths and arrivals.
    """
    from kvik.bench.plan.fleet import Wish, plan_fleet
    from kvik.bench.serve.figures import Slo
    from kvik.bench.step_probe import probe
    from kvik.config import EngineConfig
    from kvik.errors import ConfigError

    wish = Wish(Slo(flags["slo_ttft"], flags["slo_tpot"]), flags["slo_share"], flags["most_replicas"])
    if flags["rate"] is flags["trace"] is None:
        raise ConfigError("no load is described; expected --rate or --trace")
    config = EngineConfig.from_options(**engine)
    arrivals, shape, _ = load_shape(flags | {"seed": engine["seed"], "concurrency": None, "ramp": None})
    probed = probe(config, note)
    rows = plan_fleet(site_of(config, probed), arrivals, wish, note)
    report: dict[str, Any] = {"kind": "plan", "model": probed.model, "workload": shape | {"requests": len(arrivals)}}
    report |= {"cost": probed.cost.as_dict(), "slo": wish.slo.as_dict(), "share": wish.share, "replicas": rows}
    click.echo(json_line(report) if as_json else "\n".join(lines(report)))


def site_of(config: Any, probed: Any) -> Any:
    """A replica that is as this machine was found to be."""
    from kvik.bench.plan.simulate import Site

    blocks = probed.kv_tokens // probed.block_size
    return Site(config.scheduler, blocks, probed.block_size, probed.max_model_len, probed.cost)


def lines(report: dict[str, Any]) -> list[str]:
    """The plan for people."""
    cost, rows = report["cost"], report["replicas"]
    head = f"{'replicas':<10}{'TTFT p50':>10}{'p90':>9}{'p99':>9}{'TPOT p50':>10}{'p90':>8}{'tokens/s':>10}{'busy':>7}"
    said = [
        f"plan                {report['model']}: {report['workload']['requests']} requests",
        f"a step costs        {1e3 * cost['fixed']:.3f} ms + {1e6 * cost['per_token']:.2f} us a token + "
        f"{1e9 * cost['per_kv']:.2f} ns a KV read + {1e6 * cost['per_row']:.2f} us a row"
        f" (wrong by {100 * cost['error']:.1f} %)",
        f"{head}{'good':>7}",
        *(row(each) for each in rows),
    ]
    share = 100 * report["share"]
    last = rows[-1]
    found = "replicas that keep the SLO" if last["held"] else "replicas do not keep the SLO"
    return [*said, f"{found} for {share:.0f} % of the requests (simulated): {last['replicas']}"]


def row(each: dict[str, Any]) -> str:
    """One number of replicas; times in milliseconds."""
    ttft, tpot = each["ttft_ms"], each["tpot_ms"]
    times = (
        f"{'-':>10}{'-':>9}{'-':>9}" if ttft is None else f"{ttft['p50']:>10.1f}{ttft['p90']:>9.1f}{ttft['p99']:>9.1f}"
    )
    steps = f"{'-':>10}{'-':>8}" if tpot is None else f"{tpot['p50']:>10.2f}{tpot['p90']:>8.2f}"
    busy, good = 100 * each["busy_share"], 100 * each["goodput"]["share"]
    return f"{each['replicas']:<10}{times}{steps}{each['tokens_per_s']:>10.1f}{busy:>6.0f}%{good:>6.0f}%"
