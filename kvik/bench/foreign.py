"""Claims from elsewhere: a test's parameters and results in the form of the plan that `kvik bench suite` follows.

    {"test_name": .., "hardware": .., "parameters": {batch_size, input_length, output_length},
     "results": {prefill_throughput, decode_throughput, e2e_throughput, total_time}, "verification": ..}

Such a file has no samples, but its figures must still agree with each other and with what the hardware can do: a
sequence's tokens are drawn one after another, and every step reads all weights. This file knows nothing of our own
results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kvik.bench.cost import Cost, Forms
from kvik.bench.identities import Check, verdict
from kvik.checkpoint.dummy import DUMMIES

AGREE = 1e-3
"""Relative difference allowed between figures that were rounded when they were written down."""
PLANNED_MODEL = "qwen3-0.6b"


@dataclass(frozen=True)
class Device:
    """What its maker says of an accelerator: bytes/s of its memory, dense 16-bit matrix operations/s."""

    name: str
    bandwidth: float
    operations: float


DEVICES = (
    Device("RTX 3090", 936e9, 142e12),
    Device("RTX 4090", 1008e9, 330e12),
    Device("A100", 2039e9, 312e12),
    Device("H100", 3350e9, 989e12),
    Device("H200", 4800e9, 989e12),
)
"""Figures of data sheets, the faster one where there are several models or ways of adding up."""


def is_foreign(data: Any) -> bool:
    """Whether this is a claim in that form and not a result of ours."""
    return isinstance(data, Mapping) and {"parameters", "results"} <= data.keys() and "samples" not in data


def check_foreign(data: Mapping[str, Any]) -> list[Check]:
    """What can be held against such a claim. Raises KeyError, TypeError or ValueError for one that is malformed."""
    claim = _Claim(data)
    return [
        _evidence(data),
        verdict("tokens / time = throughput", list(claim.rates()), "agree"),
        verdict("prefill and decode fill the total time", list(claim.phases()), "agree"),
        verdict("within what the hardware can read", list(claim.reading()), "possible"),
        verdict("within what the hardware can compute", list(claim.computing()), "possible"),
    ]


def _evidence(data: Mapping[str, Any]) -> Check:
    wanted = ("samples", "machine", "model", "seed", "warmups", "summary", "limits", "checks")
    missing = [name for name in wanted if name not in data]
    said = f"; it says {data['verification']!r} and shows no run" if "verification" in data else ""
    wrong = [f"it lacks {', '.join(missing)}: nothing in it can be computed again{said}"] if missing else []
    return verdict("has the raw samples it speaks of", wrong, "it has")


class _Claim:
    """The figures of a claim, and what they would take."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        sizes, results = data["parameters"], data["results"]
        self.batch, self.length = int(sizes["batch_size"]), int(sizes["input_length"])
        self.steps = int(sizes["output_length"])
        self.prefill, self.decode = float(results["prefill_throughput"]), float(results["decode_throughput"])
        self.whole, self.seconds = float(results["e2e_throughput"]), float(results["total_time"])
        if min(self.batch, self.length, self.steps, self.prefill, self.decode, self.whole, self.seconds) <= 0:
            raise ValueError("a claim of lengths, rates and times that are not above 0")
        name = str(data.get("model", PLANNED_MODEL)).lower()
        self.model = name if name in DUMMIES else PLANNED_MODEL
        self.named = "model" in data
        self.cost = Cost(DUMMIES[self.model], Forms("bf16", "bf16"))
        hardware = str(data.get("hardware", ""))
        known = [device for device in DEVICES if device.name.lower() in hardware.lower()]
        self.device = known[0] if known else max(DEVICES, key=lambda device: device.bandwidth)

    @property
    def prefill_seconds(self) -> float:
        return self.batch * self.length / self.prefill

    @property
    def decode_seconds(self) -> float:
        return self.batch * self.steps / self.decode

    def rates(self) -> Iterator[str]:
        tokens = self.batch * (self.length + self.steps)
        if abs(tokens / self.seconds / self.whole - 1) > AGREE:
            yield f"{tokens} tokens in {self.seconds} s are {tokens / self.seconds:.0f} a second, not {self.whole:.0f}"

    def phases(self) -> Iterator[str]:
        both = self.prefill_seconds + self.decode_seconds
        if abs(both / self.seconds - 1) > AGREE:
            left = self.seconds - self.prefill_seconds
            yield (
                f"prefill takes {self.prefill_seconds:.6f} s and decode {self.decode_seconds:.6f} s by their rates, "
                f"{both:.6f} s together in a total of {self.seconds} s: prefill alone leaves {left:.6f} s for "
                f"{self.steps} decode steps"
            )

    def reading(self) -> Iterator[str]:
        weights = self.cost.streamed_weight_bytes()
        for what, seconds in (("decode", self.decode_seconds), ("the whole run", self.seconds)):
            least = self.steps * weights / self.device.bandwidth
            if seconds < least:
                step = seconds / self.steps
                yield (
                    f"{what}: {self.steps} tokens of a sequence take {self.steps} steps, one after another, "
                    f"{1e6 * step:.3g} us each; {self.device.name} reads {step * self.device.bandwidth / 1e6:.3g} MB "
                    f"in that, and the weights of {self._model()} are {weights / 1e6:.0f} MB: {least:.3g} s at least, "
                    f"not {seconds:.3g} s"
                )

    def computing(self) -> Iterator[str]:
        needed = self.batch * self.cost.prefill_flops(0, self.length, sampled=1)
        least = needed / self.device.operations
        if self.prefill_seconds < least:
            yield (
                f"prefill: {needed:.3g} operations take {self.device.name} {least:.3g} s at its peak of "
                f"{self.device.operations:.3g} a second, not {self.prefill_seconds:.3g} s"
            )

    def _model(self) -> str:
        return self.model if self.named else f"{self.model} (none is named; the plan's)"
