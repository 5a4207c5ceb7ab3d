"""Engines side by side: the same workload through each, in turn, round after round, one at work at a time.

Every engine, Kvik included, is a process of its own that is frozen while another is measured. Rounds are A B C D
A B C D ..; ratios are taken within a round. The first engine is the one whose speed the result is about. This file
knows nothing of what the engines are.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from kvik.bench.checks import compare_engines, refuse_failed, run_checks
from kvik.bench.contenders import Contender, Room, load_message
from kvik.bench.cost import Cost, Forms
from kvik.bench.evidence import Result, compose
from kvik.bench.measure import Progress, Repeat, describe_repetition, interleaved
from kvik.bench.peers import Peer, PeerError
from kvik.bench.reply import sample_of
from kvik.bench.run_cost import case_limits, matrix_rate
from kvik.bench.workbench import describe_model, flat_options, machine_with_limits
from kvik.bench.workload import Case, Requests
from kvik.checkpoint.spec import DecoderSpec
from kvik.config import EngineConfig

METHOD = (
    "Every engine runs in a process of its own, frozen while another one works; prompts are token ids, answers greedy, "
    "end tokens ignored. Rounds take the engines in turn, the machine's limits are measured between rounds, and a "
    "ratio is that of two samples of one round."
)
KIND_METHODS = {
    "decode": "A sample is the part of a run in which all requests decode: from the step that gave the last of them "
    "its first token to the one in which the first ended.",
    "prefill": "A sample is the time from the start to the first token of the last request, over the prompts' tokens.",
    "total": "A sample is the whole run, at most `concurrency` requests at a time, over the tokens of the answers.",
}
KV_MARGIN_TOKENS = 160
"""Room beyond each request's own tokens: blocks are not shared, and the largest there are hold 128."""
ANSWER_SECONDS = 3600.0


@dataclass(frozen=True)
class Comparison:
    """What is compared on what."""

    contenders: list[Contender]
    skipped: dict[str, str]
    cases: list[Case]
    config: EngineConfig
    """Kvik's options."""
    spec: DecoderSpec
    """Of the model that all of them load."""
    model_name: str
    repeat: Repeat

    @property
    def seed(self) -> int:
        """Of the prompts."""
        return self.config.runner.seed

    def requests(self, case: Case) -> Requests:
        """The requests of a case."""
        return case.draw(self.seed, self.spec.vocab_size)

    def cost(self, contender: Contender) -> Cost:
        """The cost model of a contender's form; keys and values as Kvik's options have them, 16 bits for others."""
        if not contender.is_kvik:
            return Cost(self.spec, Forms("bf16", "bf16"))
        return Cost(self.spec, Forms.resolve(self.spec, contender.form, self.config.cache.kv_dtype))


@dataclass
class Running:
    """A loaded engine, with what it said of itself."""

    contender: Contender
    peer: Peer
    loaded: dict[str, Any]


@dataclass
class Bout:
    """One case being measured, and who has failed in it."""

    case: Case
    requests: Requests
    running: list[Running]
    failed: dict[str, str] = field(default_factory=dict)


def room_for(comparison: Comparison) -> Room:
    """What the largest case needs."""
    longest, most, tokens = 0, 0, 0
    for case in comparison.cases:
        requests = comparison.requests(case)
        pairs = zip(requests.prompts, requests.output_lens, strict=True)
        lengths = sorted((len(prompt) + asked for prompt, asked in pairs), reverse=True)
        together = lengths[: case.concurrency]
        longest, most = max(longest, lengths[0]), max(most, len(together))
        tokens = max(tokens, sum(together) + KV_MARGIN_TOKENS * len(together))
    return Room(longest + 1, most, tokens)


def compare(comparison: Comparison, progress: Progress) -> list[Result]:
    """One result for every case. Raises PeerError if the first engine fails; another that fails is named as skipped."""
    with ExitStack() as stack:
        running, skipped = load_all(comparison, stack, progress)
        results = []
        for case in comparison.cases:
            progress(f"{case.name}: {', '.join(each.contender.label for each in running)}")
            bout = Bout(case, comparison.requests(case), running)
            results.append(measure_case(comparison, bout, skipped, progress))
            skipped |= bout.failed
            running = bout.running
        return results


def load_all(comparison: Comparison, stack: ExitStack, progress: Progress) -> tuple[list[Running], dict[str, str]]:
    """Start and load the engines one after the other; those that fail, but for the first, with the reason."""
    running: list[Running] = []
    skipped = dict(comparison.skipped)
    room, options = room_for(comparison), flat_options(comparison.config)
    for contender in comparison.contenders:
        progress(f"{contender.label}: loading {contender.form} weights")
        try:
            with ExitStack() as trial:
                peer = trial.enter_context(Peer(contender.program, label=contender.label))
                kv_bytes = room.kv_tokens * comparison.cost(contender).kv_bytes_per_token()
                loaded = peer.ask(load_message(contender, room, kv_bytes, options), timeout=ANSWER_SECONDS)
                stack.enter_context(trial.pop_all())
            running.append(Running(contender, peer, loaded))
        except PeerError as error:
            if not running:
                raise
            skipped[contender.label] = str(error)
            progress(f"skipped: {error}")
    return running, skipped


def measure_case(comparison: Comparison, bout: Bout, skipped: dict[str, str], progress: Progress) -> Result:
    """Rounds until the first engine's median is known."""
    samples = interleaved(lambda: take_round(bout, progress), "tokens_per_s", comparison.repeat, progress)
    present = [each.contender.label for each in bout.running[1:]]
    for sample in samples:
        sample["peers"] = {label: sample["peers"][label] for label in present}
        if bout.case.kind == "prefill":
            sample["matrix_rate"] = matrix_rate(sample, comparison.cost(bout.running[0].contender))
    return compose_result(comparison, bout, samples, skipped | bout.failed)


def take_round(bout: Bout, progress: Progress) -> dict[str, Any]:
    """One sample of the first engine, with those of the others in `peers`. One that fails is left out from now on."""
    first, taken = take_sample(bout, bout.running[0]), {}
    firsts = first.pop("first_token_ids")
    for running in bout.running[1:]:
        label = running.contender.label
        try:
            taken[label] = take_sample(bout, running)
            pairs = zip(firsts, taken[label].pop("first_token_ids"), strict=True)
            taken[label]["first_tokens_alike"] = sum(own == other for own, other in pairs) / len(firsts)
            progress(f"  {label}: {taken[label]['tokens_per_s']:.2f} tokens/s")
        except PeerError as error:
            bout.failed[label] = str(error)
            running.peer.close()
            progress(f"skipped from here on: {error}")
    bout.running = [each for each in bout.running if each.contender.label not in bout.failed]
    return {**first, "peers": taken}


def take_sample(bout: Bout, running: Running) -> dict[str, Any]:
    """The requests through one engine."""
    message = {
        "op": "run",
        "prompts": bout.requests.prompts,
        "output_lens": bout.requests.output_lens,
        "concurrency": bout.case.concurrency,
    }
    reply = running.peer.ask(message, timeout=ANSWER_SECONDS)
    return sample_of(running.contender.label, bout.case, bout.requests, reply)


def compose_result(
    comparison: Comparison, bout: Bout, samples: Sequence[dict[str, Any]], skipped: dict[str, str]
) -> Result:
    """The evidence of one case. Raises EvidenceError if a check fails."""
    first, case = bout.running[0].contender, bout.case
    cost = comparison.cost(first)
    nothing = {"capacity_metric": None, "cost": None, "does_not_bind": f"{first.label} has no cost model here"}
    result = compose(
        kind="compare",
        metric="tokens_per_s",
        unit="tokens/s",
        machine=machine_with_limits(list(samples)),
        model=describe_model(comparison.model_name, cost),
        options=flat_options(comparison.config) | {"engine": first.label, "engines": describe_engines(bout.running)},
        workload=describe_workload(case, bout.requests),
        seed=comparison.seed,
        warmups=comparison.repeat.warmups,
        samples=samples,
        limits=case_limits(cost, case, bout.requests, samples[0]) if first.is_kvik else nothing,
        how_obtained=f"{METHOD} {KIND_METHODS[case.kind]} {describe_repetition(comparison.repeat)}.",
    )
    summary = result["summary"]
    result["comparison"] = compare_engines(result["samples"], summary["metric"], summary["unit"])
    result["skipped"] = skipped
    result["checks"] = run_checks(result)
    refuse_failed(result["checks"])
    return result


def describe_engines(running: Sequence[Running]) -> dict[str, Any]:
    """What each engine said of itself when it was loaded."""
    told = ("versions", "settings", "load_seconds", "resident_bytes")
    return {
        each.contender.label: {"form": each.contender.form, **{name: each.loaded.get(name) for name in told}}
        for each in running
    }


def describe_workload(case: Case, requests: Requests) -> dict[str, Any]:
    """The case as a result file names it."""
    return {
        "case": case.name,
        "kind": case.kind,
        "requests": len(requests.prompts),
        "concurrency": case.concurrency,
        "input_tokens": requests.input_tokens,
        "output_tokens": requests.output_tokens,
    }
