"""`kvik bench serve`: a load on a server, described by flags. This file knows nothing of how it is played."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import click

from kvik.cli.options import json_option
from kvik.cli.results import POSITIVE, check_line, hand_over
from kvik.cli.terminal import note

KEY_VARIABLES = ("KVIK_API_KEY", "OPENAI_API_KEY")
LATE_MS = 10.0
MILLISECONDS = click.FloatRange(min=0, min_open=True)


@click.command("serve")
@click.option("--url", required=True, help="The server, such as http://127.0.0.1:8000.")
@click.option("--model", default="", help="Name of the model. Default: the first that the server names.")
@click.option("--api-key", help=f"Default: the environment variable {' or '.join(KEY_VARIABLES)}.")
@click.option("--concurrency", type=POSITIVE, help="Closed loop: so many clients, each with one request at a time.")
@click.option("--rate", type=MILLISECONDS, help="Open loop: so many requests a second on average (Poisson).")
@click.option("--trace", type=click.Path(path_type=Path), help="Open loop: arrivals and lengths from a CSV trace.")
@click.option("--speed-up", type=MILLISECONDS, default=1.0, show_default=True, help="Replay a trace so much faster.")
@click.option("--ramp", type=MILLISECONDS, help="Open loop: begin at this rate and rise until the SLO breaks.")
@click.option("--num-prompts", type=POSITIVE, default=100, show_default=True, help="Requests; of a ramp, at each rate.")
@click.option("--input-len", default="128", show_default=True, help="Tokens of a prompt: 512 or 100-1024.")
@click.option("--output-len", default="64", show_default=True, help="Tokens of an answer at most: 128 or 100-1024.")
@click.option("--max-input-len", type=POSITIVE, help="Cut the prompts of a trace to this.")
@click.option("--max-output-len", type=POSITIVE, help="Cut the answers of a trace to this.")
@click.option("--chat", is_flag=True, help="Ask /chat/completions instead of /completions.")
@click.option("--stream/--no-stream", default=True, show_default=True, help="Stream answers.")
@click.option("--ignore-eos", is_flag=True, help="Ask for answers of full length; not every server knows this.")
@click.option("--top-token", type=POSITIVE, help="Prompts of token ids up to this one, for models without text.")
@click.option("--shared-prefix", type=click.IntRange(min=0), default=0, help="Words that all prompts begin with.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="Of the answers.")
@click.option("--slo-ttft", type=MILLISECONDS, help="Most milliseconds to the first token of a good request.")
@click.option("--slo-tpot", type=MILLISECONDS, help="Most milliseconds for each token after the first.")
@click.option("--slo-share", type=click.FloatRange(0, 1), default=0.9, show_default=True, help="Good ones of a ramp.")
@click.option("--profile", type=click.Choice(["chat", "batch", "realtime"]), help="Judge it as this kind of service.")
@click.option("--warmups", type=click.IntRange(min=0), default=4, show_default=True, help="Requests to drop first.")
@click.option("--repetitions", type=POSITIVE, default=1, show_default=True, help="How often the load is played.")
@click.option("--timeout", type=MILLISECONDS, default=600.0, show_default=True, help="Seconds until a request counts.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Draws prompts and arrivals.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the result here.")
@json_option
def serve(output: Path | None, as_json: bool, **flags: Any) -> int:
    """A load on any OpenAI-compatible server: TTFT, TPOT, ITL, E2E, throughput, goodput under an SLO.

    Choose one of --concurrency (8 unless said), --rate, --trace and --ramp. With --profile the exit status is 1 if a
    limit is broken, and what to change is said.
    """
    result = measured(flags)
    verdicts = judged(result, flags["profile"])
    hand_over(result, table, output=output, as_json=as_json)
    return int(any(each["passed"] is False for each in verdicts))


def measured(flags: dict[str, Any]) -> dict[str, Any]:
    """The result of the load that the flags describe."""
    from kvik.bench.serve.measure import measure_load
    from kvik.bench.serve.ramp import Ramp, measure_ramp
    from kvik.bench.workload import parse_range

    if flags["ramp"] is not None:
        ramp = Ramp(flags["ramp"], share=flags["slo_share"])
        lengths = parse_range(flags["input_len"], "input_len"), parse_range(flags["output_len"], "output_len")
        return asyncio.run(measure_ramp(load_plan(flags), ramp, lengths, note))
    plan = load_plan(flags)
    with Bar(len(plan.arrivals) * flags["repetitions"]) as bar:
        return asyncio.run(measure_load(plan, flags["repetitions"], note, bar.count))


def load_plan(flags: dict[str, Any]) -> Any:
    """Everything that can be refused is refused here, before anything is sent. Raises ConfigError."""
    from kvik.bench.serve.asks import Form
    from kvik.bench.serve.figures import Slo
    from kvik.bench.serve.measure import LoadPlan
    from kvik.bench.serve.target import Target

    arrivals, shape, concurrency = load_shape(flags)
    form = Form(
        model=flags["model"],
        chat=flags["chat"],
        stream=flags["stream"],
        ignore_eos=flags["ignore_eos"],
        temperature=flags["temperature"],
        top_token=flags["top_token"],
        shared_words=flags["shared_prefix"],
        seed=flags["seed"],
    )
    check_form(form)
    return LoadPlan(
        target=Target.parse(flags["url"], flags["api_key"] or environment_key()),
        form=form,
        arrivals=arrivals,
        shape=shape,
        concurrency=concurrency,
        slo=Slo(flags["slo_ttft"], flags["slo_tpot"]),
        warmups=flags["warmups"],
        timeout_s=flags["timeout"],
    )


def check_form(form: Any) -> None:
    """Raises ConfigError for flags that contradict each other."""
    from kvik.errors import ConfigError

    if form.chat and form.top_token is not None:
        raise ConfigError("top_token makes prompts of token ids, which a chat does not take; expected no --chat")


def environment_key() -> str | None:
    """The key that the environment holds, if it does."""
    return next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None)


def load_shape(flags: dict[str, Any]) -> tuple[list[Any], dict[str, Any], int | None]:
    """Arrivals, what they are called, and the clients of a closed loop."""
    from kvik.bench.serve import arrivals
    from kvik.bench.workload import parse_range
    from kvik.errors import ConfigError

    chosen = [name for name in ("concurrency", "rate", "trace", "ramp") if flags[name] is not None]
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)} are given; expected one of them")
    count, seed = flags["num_prompts"], flags["seed"]
    if flags["trace"] is not None:
        cut = {"max_input": flags["max_input_len"], "max_output": flags["max_output_len"]}
        trace = arrivals.read_trace(flags["trace"], count=count, speed_up=flags["speed_up"], **cut)
        shape = {"arrivals": "trace", "trace": flags["trace"].name, "speed_up": flags["speed_up"]}
        return trace.arrivals, shape | {"clipped": trace.clipped}, None
    ranges = parse_range(flags["input_len"], "input_len"), parse_range(flags["output_len"], "output_len")
    lengths = arrivals.draw_lengths(count, *ranges, seed)
    rate = flags["rate"] or flags["ramp"]
    if rate is not None:
        return arrivals.poisson(lengths, rate, seed), {"arrivals": "poisson", "rate": rate}, None
    return arrivals.closed(lengths), {"arrivals": "closed"}, flags["concurrency"] or 8


class Bar:
    """A progress bar on stderr, where that is a terminal: requests ended, tokens, errors."""

    def __init__(self, total: int) -> None:
        self._total, self._tokens, self._errors = total, 0, 0

    def __enter__(self) -> Bar:
        from tqdm import tqdm

        self._bar = tqdm(total=self._total, desc="Requests", unit="req", dynamic_ncols=True, disable=None)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def count(self, record: dict[str, Any]) -> None:
        """One more has ended."""
        if self._bar.disable:
            return
        self._tokens += record.get("output_tokens", 0)
        self._errors += "error" in record
        self._bar.set_postfix_str(f"out {self._tokens} tok, {self._errors} errors", refresh=False)
        self._bar.update()


def judged(result: dict[str, Any], name: str | None) -> list[dict[str, Any]]:
    """The verdicts of a profile and the advice that follows from them, which become part of the result."""
    if name is None:
        return []
    from kvik.bench.advice import Goals, advise
    from kvik.bench.observed import observe
    from kvik.bench.serve.profiles import PROFILES, judge

    profile, sample = PROFILES[name], result["samples"][-1]
    verdicts = judge(profile, sample)
    goals = Goals(ttft_ms=profile.ttft_ms, throughput=profile.tokens_per_s)
    result["profile"] = {"name": name, "limits": verdicts, "passed": all(v["passed"] is not False for v in verdicts)}
    result["advice"] = [each.as_dict() for each in advise(observe(result), goals)]
    return verdicts


def table(result: dict[str, Any]) -> list[str]:
    """A result for people."""
    sample, workload, summary = result["samples"][-1], result["workload"], result["summary"]
    client, server = sample["client"], sample["server"]
    errors = ", ".join(f"{count} x {kind}" for kind, count in sample["errors"].items()) or "none"
    lines = [
        f"{result['kind']:<20}{result['model']['name']} at {result['options']['url']}",
        f"arrivals            {arrivals_line(workload)}",
        f"requests            {sample['succeeded']} of {sample['sent']} ended well; errors: {errors}",
        f"output              {summary['median']:.1f} tokens/s, {sample['requests_per_s']:.2f} requests/s"
        f" ({sample['tokens']} tokens in {sample['text_events']} events, {sample['seconds']:.2f} s)",
        f"{'milliseconds':<20}{'p50':>10}{'p90':>10}{'p99':>10}{'mean':>10}{'most':>10}",
        *(times_line(name, sample[f"{name.lower()}_ms"]) for name in ("TTFT", "TPOT", "ITL", "E2E", "late")),
    ]
    if sample["goodput"] is not None:
        good = sample["goodput"]
        lines.append(f"goodput             {good['requests_per_s']:.2f} requests/s, {100 * good['share']:.1f} % good")
    lines.append(f"client              {100 * client['share']:.0f} % of a core{ceiling(client)}{lateness(sample)}")
    if server is not None:
        lines.append(server_line(server))
    for step in result.get("ramp", {}).get("steps", []):
        held = "held" if step["held"] else "broke"
        lines.append(f"  {step['rate']:<18.3g}{held}: {100 * step['goodput']['share']:.0f} % good")
    lines += [limit_line(each) for each in result.get("profile", {}).get("limits", [])]
    for advice in result.get("advice", []):
        lines += [f"advice              {advice['problem']}: {advice['change']}", f"  {advice['why']}"]
    return [*lines, *(check_line(check) for check in result["checks"] if not check["passed"])]


def arrivals_line(workload: dict[str, Any]) -> str:
    """How requests came, and how long they were asked to be."""
    names = ("arrivals", "rate", "trace", "speed_up", "clipped", "concurrency")
    said = ", ".join(f"{n} {workload[n]}" if n != "arrivals" else workload[n] for n in names if workload.get(n))
    (low_in, high_in), (low_out, high_out) = workload["input_len"], workload["output_len"]
    return f"{said}; {low_in}-{high_in} tokens in, at most {low_out}-{high_out} out"


def times_line(name: str, times: dict[str, float] | None) -> str:
    """One row of percentiles."""
    if times is None:
        return f"{name:<20}{'-':>10}"
    return f"{name:<20}" + "".join(f"{times[key]:>10.2f}" for key in ("p50", "p90", "p99", "mean", "max"))


def ceiling(client: dict[str, Any]) -> str:
    """What the client could have done at most, and a warning if that is what was measured."""
    most = client["ceiling_tokens_per_s"]
    said = "" if most is None else f"; it could take in about {most:.0f} tokens/s"
    return said + (": THE CLIENT IS THE BOTTLENECK, these figures are its own" if client["is_bottleneck"] else "")


def lateness(sample: dict[str, Any]) -> str:
    """A warning if requests were not sent when they were due."""
    late = sample["late_ms"]["p90"]
    return f"; it sent one in ten more than {late:.0f} ms late: its machine is busy" if late > LATE_MS else ""


def server_line(server: dict[str, Any]) -> str:
    """What the server said of itself."""
    most, did = server["most"], server["did"]
    return (
        f"server              at most {most['running']:.0f} running, {most['waiting'] + most['queued']:.0f} waiting; "
        f"{100 * most['blocks_used_share']:.0f} % of the KV blocks used; {did['preemptions']} preemptions"
    )


def limit_line(limit: dict[str, Any]) -> str:
    """One limit of a profile."""
    word = {True: "pass", False: "FAIL", None: "not measured"}[limit["passed"]]
    measured = "" if limit["measured"] is None else f" is {limit['measured']:.4g},"
    return f"{word:<20}{limit['name']}{measured} {limit['relation']} {limit['limit']:g}"
