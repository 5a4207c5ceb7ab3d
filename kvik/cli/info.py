"""`kvik info`: what this machine is, which kernels serve and why the others do not, and what a model would take.

Loads no weights. This file knows nothing of how any of it is found out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from kvik import __version__
from kvik.cli.options import engine_options, json_option
from kvik.cli.terminal import human_bytes, json_line

if TYPE_CHECKING:
    from kvik.runners.holding import Conversion


@click.command("info")
@engine_options
@json_option
def command(engine: dict[str, Any], as_json: bool) -> None:
    """Describe this machine, the kernels chosen and, with --model, the memory plan before loading."""
    from kvik.bench.machine import describe
    from kvik.config import EngineConfig

    config = EngineConfig.from_options(**engine)
    machine, kernels = describe(), describe_kernels(config)
    plan, plan_lines = (
        describe_plan(config, kernels["runner"], kernels["free_memory_bytes"]) if config.model.model else (None, [])
    )
    if as_json:
        click.echo(json_line({"kvik_version": __version__, "machine": machine, "kernels": kernels, "plan": plan}))
        return
    click.echo("\n".join([*machine_lines(machine), *kernel_lines(kernels), *plan_lines]))


def describe_kernels(config: Any) -> dict[str, Any]:
    """The runner and kernels that the options choose, and every candidate with why it cannot serve (None: it can).

    Raises BackendError for a backend or instruction set that was asked for by name and cannot serve.
    """
    from kvik.runners import native
    from kvik.runners.choose import create_runner
    from kvik.runners.runner import OwnMemory

    runner = create_runner(config)
    try:
        choice = runner.kernels()
        return {
            "runner": runner.name,
            "chosen": choice.chosen,
            "refused": {**{name: why for name, why in native.available().items() if why}, **choice.refused},
            "free_memory_bytes": runner.free_memory() if isinstance(runner, OwnMemory) else None,
            "usable": [name for name, why in native.available().items() if why is None],
        }
    finally:
        runner.close()


def describe_plan(config: Any, backend: str, available: int | None) -> tuple[dict[str, Any], list[str]]:
    """Where the memory would go, as data and as lines. Raises CheckpointError, NotEnoughMemoryError."""
    from kvik.engine.build import open_model, plan_checkpoint
    from kvik.runners.holding import conversions, held_weights

    checkpoint, model = open_model(config), config.model
    plan = plan_checkpoint(checkpoint, config, backend, available)
    found = conversions(held_weights(checkpoint, model.weights, backend, model.weight_group_size))
    data = dataclasses.asdict(plan) | {
        "kv": plan.kv,
        "num_tokens": plan.num_tokens,
        "num_sequences": plan.num_sequences,
        "parameters": checkpoint.spec.num_parameters(),
        "family": checkpoint.spec.family,
        "held": [dataclasses.asdict(each) for each in found],
    }
    return data, ["", *plan.lines(), *conversion_lines(found)]


def conversion_lines(found: Sequence[Conversion]) -> list[str]:
    """What becomes of the weights, for people: how many have which type and which form they go to."""
    lines = []
    for each in found:
        head = f"  {each.count:,} x {each.stored}"
        lines.append(f"{head:<19} {each.form}, {human_bytes(each.bytes)}; {each.loss or 'exact'}")
        lines.append(f"{'':<19} {each.sentence}")
    return ["", "weights as stored, and as held", *lines]


def machine_lines(machine: dict[str, Any]) -> list[str]:
    """The machine for people."""
    memory, available = machine["memory_bytes"], machine["available_memory_bytes"]
    return [
        f"kvik                {__version__}",
        f"processor           {machine['cpu']} ({machine['architecture']})",
        f"cores               {machine['cores']} this process may use",
        f"instruction sets    {' '.join(machine['isa']) or 'none known'}",
        f"memory              {human_bytes(memory or 0)}, {human_bytes(available or 0)} available",
        f"accelerator         {machine['accelerator'] or 'none used'}",
    ]


def kernel_lines(kernels: dict[str, Any]) -> list[str]:
    """The choice of kernels for people."""
    refused = [f"  not {name:<15} {reason}" for name, reason in kernels["refused"].items()]
    return [
        "",
        f"runner              {kernels['runner']}",
        f"kernels             {kernels['chosen']}",
        f"also usable         {' '.join(n for n in kernels['usable'] if n != kernels['chosen']) or 'nothing native'}",
        *refused,
    ]
