"""One load on a server, from its description to evidence.

Finds the model, asks how many tokens a word takes, warms up, plays the load while it watches the server and its own
processor time, and composes the result. This file knows nothing of flags, of bars, or of how a load is judged.
"""

from __future__ import annotations

import gc
import resource
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kvik.bench.evidence import Result, compose
from kvik.bench.load import between as load_between
from kvik.bench.load import now as load_now
from kvik.bench.machine import describe
from kvik.bench.serve.arrivals import Arrival
from kvik.bench.serve.asks import Ask, Form, Spelling, make_ask, probe_prompts
from kvik.bench.serve.connection import Pool
from kvik.bench.serve.figures import Slo, run_figures
from kvik.bench.serve.load import Ended, Load, Played
from kvik.bench.serve.replies import Document, LoadError
from kvik.bench.serve.target import Target
from kvik.bench.serve.watch import Watch
from kvik.errors import ConfigError, KvikError

METHOD = (
    "Requests are sent over HTTP by one client process on asyncio, each with its own connection at a time. Every time "
    "counts from the moment the request was due (closed loop: when its client was free; open loop and trace: its "
    "arrival), not from when it was sent. TTFT ends with the first event that carries text, E2E with the finish "
    "reason, TPOT = (E2E - TTFT) / (output tokens - 1), ITL is the time between events with text; a server that sends "
    "several tokens in one event has fewer events than tokens. Tokens are those of the usage that the server states. "
    "`client.share` is this process's processor time over the time of the run: near 1, the client is measured and not "
    "the server."
)
NO_LIMIT = "the server may be anywhere: what its machine allows is not measured by its client"
SPARE_FILES = 64
BUSY_SHARE = 0.8
"""Above this, the client is what is measured."""


@dataclass(frozen=True)
class LoadPlan:
    """A load: who is asked, what, when, and what a good answer is."""

    target: Target
    form: Form
    arrivals: Sequence[Arrival]
    shape: dict[str, Any]
    """Of the arrivals, for people: closed, poisson, trace, and their figures."""
    concurrency: int | None = None
    """Clients of a closed loop; None: an open loop."""
    slo: Slo = field(default_factory=Slo)
    warmups: int = 0
    """Requests that are sent first and dropped."""
    timeout_s: float = 600.0


class Client:
    """A client of one server, and what it has learned of it. Use inside a running event loop."""

    def __init__(self, plan: LoadPlan, ended: Ended = lambda record: None) -> None:
        self.plan = plan
        self.pool = Pool(plan.target, time.perf_counter, plan.timeout_s)
        self._ended = ended
        self.spelling = Spelling()

    async def prepare(self) -> None:
        """Find the model's name if none was given, and how words are spelled in tokens. Raises KvikError."""
        allow_connections(len(self.plan.arrivals))
        if not self.plan.form.model:
            self.plan = replace(self.plan, form=replace(self.plan.form, model=await find_model(self.pool)))
        if self.plan.form.top_token is None:
            self.spelling = await self._spell()

    async def _spell(self) -> Spelling:
        form, counts = self.plan.form, []
        for prompt in probe_prompts(form):
            try:
                reply = await self.pool.ask(self.plan.target.post(form.path, form.body(prompt, 1)))
            except LoadError as error:
                raise KvikError(f"{self.plan.target.url} cannot be measured: {error}") from error
            counts.append(reply.input_tokens)
        return Spelling.of_probes(*counts)

    async def run(self, repetition: int = 0) -> dict[str, Any]:
        """Warm up, play the load once, and return its sample. Raises KvikError if no request ended well."""
        asks = self._asks(repetition)
        load, warm = Load(self.pool, self._ended), Load(self.pool)
        many = self.plan.concurrency or 8
        if self.plan.warmups:
            await warm.closed(self._warmups(), many)
        collecting = gc.isenabled()
        gc.collect()
        gc.disable()
        try:
            async with Watch(self.pool) as watch:
                began, cpu = load_now(), time.process_time()
                played = await (load.closed(asks, many) if self.plan.concurrency else load.open(asks))
                cpu = time.process_time() - cpu
                other = load_between(began, load_now())
        finally:
            if collecting:
                gc.enable()
        return self._sample(played, cpu, watch, other)

    def _asks(self, repetition: int) -> list[Ask]:
        """The requests, ready to be sent; in every repetition other prompts of the same lengths."""
        plan = self.plan
        form = replace(plan.form, seed=plan.form.seed + repetition)
        return [
            make_ask(plan.target, form, self.spelling, index, each.offset_s, (each.input_len, each.output_len))
            for index, each in enumerate(plan.arrivals)
        ]

    def _warmups(self) -> list[Ask]:
        plan = self.plan
        form = replace(plan.form, seed=-1 - plan.form.seed)
        lengths = [(each.input_len, each.output_len) for each in plan.arrivals]
        chosen = [lengths[index % len(lengths)] for index in range(plan.warmups)]
        return [make_ask(plan.target, form, self.spelling, i, None, lens) for i, lens in enumerate(chosen)]

    def _sample(self, played: Played, cpu: float, watch: Watch, other: dict[str, Any] | None) -> dict[str, Any]:
        figures = run_figures(played.records, played.seconds, self.plan.slo)
        if not figures["succeeded"]:
            first = Counter(record["said"] for record in played.records).most_common(1)[0][0]
            raise KvikError(f"none of {figures['sent']} requests ended well; most of them: {first}")
        share = cpu / played.seconds
        client = {
            "cpu_seconds": cpu,
            "share": share,
            "ceiling_tokens_per_s": figures["tokens_per_s"] / share if share else None,
            "is_bottleneck": share > BUSY_SHARE,
            "connections": self.pool.opened,
        }
        server = watch.summary(len(played.records))
        return {
            "seconds": played.seconds,
            **figures,
            "client": client,
            "server": server,
            "load": other,
            "records": played.records,
        }

    def close(self) -> None:
        """Close the connections."""
        self.pool.close()


def allow_connections(count: int) -> None:
    """Let this process have so many connections at once, as far as its limits go."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + SPARE_FILES
    if soft not in (resource.RLIM_INFINITY, -1) and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def find_model(pool: Pool) -> str:
    """The first model that the server names. Raises KvikError."""
    document = Document()
    try:
        await pool.ask(pool.target.get(f"{pool.target.root}/models"), document)
        return str(document.value["data"][0]["id"])
    except LoadError as error:
        raise KvikError(f"{pool.target.url} cannot be asked for its models: {error}") from error
    except (KeyError, IndexError, TypeError) as error:
        raise KvikError(f"{pool.target.url} names no model; give one with --model") from error


async def measure_load(
    plan: LoadPlan,
    repetitions: int = 1,
    progress: Callable[[str], None] = lambda line: None,
    ended: Ended | None = None,
) -> Result:
    """Play a load so many times. Raises KvikError if nothing can be measured, EvidenceError if a check fails."""
    if not plan.arrivals:
        raise ConfigError("the load has no request; expected at least 1")
    client = Client(plan, ended or (lambda record: None))
    try:
        await client.prepare()
        progress(
            f"{client.plan.form.model} at {plan.target.url}: {len(plan.arrivals)} requests, {describe_shape(plan)}"
        )
        samples = [await client.run(repetition) for repetition in range(repetitions)]
    finally:
        client.close()
    return load_result(client.plan, samples)


def describe_shape(plan: LoadPlan) -> str:
    """How the requests come, for people."""
    return ", ".join(f"{name} {value}" for name, value in plan.shape.items())


def load_result(plan: LoadPlan, samples: Sequence[dict[str, Any]], kind: str = "serve") -> Result:
    """The evidence of loads of one plan. Raises EvidenceError if a check fails."""
    return compose(
        kind=kind,
        metric="tokens_per_s",
        unit="tokens/s",
        machine=describe(),
        samples=samples,
        limits={"capacity_metric": None, "cost": None, "does_not_bind": NO_LIMIT},
        how_obtained=METHOD,
        warmups=plan.warmups,
        model={"name": plan.form.model},
        options=_options(plan),
        workload=_workload(plan),
        seed=plan.form.seed,
    )


def _options(plan: LoadPlan) -> dict[str, Any]:
    form = plan.form
    return {
        "url": plan.target.url,
        "path": form.path,
        "stream": form.stream,
        "ignore_eos": form.ignore_eos,
        "temperature": form.temperature,
        "timeout_s": plan.timeout_s,
    }


def _workload(plan: LoadPlan) -> dict[str, Any]:
    inputs, outputs = [each.input_len for each in plan.arrivals], [each.output_len for each in plan.arrivals]
    return {
        **plan.shape,
        "requests": len(plan.arrivals),
        "concurrency": plan.concurrency,
        "input_len": [min(inputs), max(inputs)],
        "output_len": [min(outputs), max(outputs)],
        "input_tokens_asked": sum(inputs),
        "output_tokens_asked": sum(outputs),
        "shared_words": plan.form.shared_words,
        "slo": plan.slo.as_dict(),
    }
