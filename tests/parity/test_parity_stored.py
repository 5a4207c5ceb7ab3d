"""Weights that are quantized in the checkpoint: every runner against the reference, in every form there is.

The reference computes with the values of the record in float32. The bound of a fast runner comes from its own
difference in bf16 on the same values, and has to leave room for activations of 8 bits. Far closer is what one runner
makes of a record and of its values in the most general form; and what has the same meaning in two records must give the
same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from contenders import make_runner, runner_kinds
from oracle import BLOCK, max_difference, scheduled_logits, shuffled_tables, teacher_forced_logits
from quantized_toys import SPECS, Make, QuantizedToy, grouped, in_groups_of, in_the_general_form, k_quant, quantized_toy
from toys import token_ids

from kvik.checkpoint.checkpoint import Checkpoint
from kvik.checkpoint.quantized import QuantizedTensor
from kvik.runners.native import runner as native_runner
from kvik.runners.placement import place
from kvik.step import Float32

CHUNKS = (13, 1, 1, 10)
INT8_RATIO, BF16_RATIO, OF_LARGEST = 8.0, 1.5, 1e-3
"""Seen: at most 6.8 and 0.9, where activations are rounded to 8 bits and to bf16."""
OF_GENERAL = 1e-5
"""Of the largest logit: between two forms of a head with the same values, which read the same activations."""

FORMS: dict[str, Make] = {
    "int4 in groups of 32": grouped(4, 32, zeros=(0, 16)),
    "int4 in groups of 64": grouped(4, 64, zeros=(0, 16)),
    "int4 in groups of 96": grouped(4, 96),
    "int4 in groups of 128": grouped(4, 128, zeros=(0, 16)),
    "int4 by rows": grouped(4, 0, zeros=(3, 12)),
    "3 bits in groups of 64": grouped(3, 64, zeros=(0, 7)),
    "int4 with tiny scales": grouped(4, 32, scale_by=2.0**-20),
    "int4 in groups of 64, ordered": grouped(4, 64, zeros=(0, 16), order=True),
    "int8 by rows": grouped(8, 0),
    "int8 by rows, ordered": grouped(8, 0, order=True),
    "bytes in groups of 32": grouped(8, 32),
    "bytes in groups of 128": grouped(8, 128, zeros=(100, 128)),
    "bytes in groups of 16": grouped(6, 16),
    "bytes with zeros in groups of 64": grouped(6, 64, zeros=(20, 40)),
    "bytes in groups of 48": grouped(5, 48),
    "bytes with offsets in groups of 64": grouped(8, 64, zeros=(0, 256)),
    "bytes with minima in groups of 32": grouped(5, 32, mins=True),
    "bytes with minima in groups of 16": grouped(2, 16, mins=True),
    "bytes in groups of 16, ordered": grouped(6, 16, order=True),
    "Q4_K": k_quant(4),
    "Q6_K": k_quant(6),
}
Q4_K_M: dict[str, Make] = {
    **dict.fromkeys(("q", "k", "o", "gate", "up"), k_quant(4)),
    **dict.fromkeys(("v", "down", "embed", "head"), k_quant(6)),
}
MIXED: dict[str, Mapping[str, Make]] = {
    "Q4_K_M": Q4_K_M,
    "GPTQ beside a bf16 head": dict.fromkeys(
        ("q", "k", "v", "o", "gate", "up", "down"), FORMS["int4 in groups of 128"]
    ),
    "each its own": {
        "q": FORMS["int4 in groups of 64"],
        "k": FORMS["bytes in groups of 16"],
        "gate": FORMS["int4 in groups of 32"],
        "up": FORMS["bytes with minima in groups of 32"],
        "down": FORMS["int8 by rows"],
        "head": FORMS["Q4_K"],
    },
    "three orders": {
        **dict.fromkeys(("q", "k", "v", "o", "gate", "up", "down"), FORMS["int4 in groups of 64, ordered"]),
    },
    "only one of two": {"v": FORMS["int8 by rows, ordered"], "up": FORMS["int4 by rows"], "embed": FORMS["Q6_K"]},
}


@pytest.fixture(params=runner_kinds()[1:])
def native_kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def logits_of(kind: str, checkpoint: Checkpoint, weights: str = "f32") -> Float32:
    runner = make_runner(kind, weights, threads=1)
    logits = teacher_forced_logits(runner, checkpoint, token_ids(checkpoint.spec, sum(CHUNKS)), CHUNKS)
    runner.close()
    return logits


@cache
def toy_of(spec: str, form: str) -> QuantizedToy:
    return quantized_toy(SPECS[spec], FORMS[form] if form in FORMS else MIXED[form])


@cache
def expected(spec: str, form: str, weights: str = "f32") -> Float32:
    return logits_of("reference", toy_of(spec, form), weights)


@cache
def in_bf16(kind: str, spec: str, form: str) -> float:
    unpacked = toy_of(spec, form).unpacked()
    return max_difference(logits_of(kind, unpacked, "bf16"), logits_of("reference", unpacked, "bf16"))


def allowed(kind: str, spec: str, form: str) -> float:
    ratio = BF16_RATIO if kind in ("amx", "amx-emulated") else INT8_RATIO
    return ratio * in_bf16(kind, spec, form) + OF_LARGEST * float(np.abs(expected(spec, form)).max())


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("form", FORMS)
def test_logits_are_those_of_the_reference(form: str, spec: str, native_kind: str) -> None:
    difference = max_difference(logits_of(native_kind, toy_of(spec, form)), expected(spec, form))
    assert difference <= allowed(native_kind, spec, form)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_agrees_with_the_general_one(form: str, spec: str, native_kind: str) -> None:
    """Bytes with offsets in groups of 16, in the head alone: all before it is the same to the byte, and a scale or
    factor in the wrong place would differ.
    """
    own = quantized_toy(SPECS[spec], {"head": FORMS[form]})
    general = with_records(own, {"head": in_the_general_form(own.records["head"])})
    logits = logits_of(native_kind, own)
    assert max_difference(logits_of(native_kind, general), logits) <= OF_GENERAL * float(np.abs(logits).max())


@pytest.mark.parametrize("weights", ["bf16", "int8"])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("form", MIXED)
def test_forms_may_differ_from_tensor_to_tensor(form: str, spec: str, weights: str, native_kind: str) -> None:
    """And those that are not quantized are held as the option says."""
    difference = max_difference(logits_of(native_kind, toy_of(spec, form), weights), expected(spec, form, weights))
    assert difference <= allowed(native_kind, spec, form) + BF16_RATIO * in_bf16(native_kind, spec, form)


@pytest.mark.parametrize("form", [*FORMS, *MIXED])
def test_the_reference_computes_with_the_values_of_the_record(form: str) -> None:
    assert (expected("even", form) == logits_of("reference", toy_of("even", form).unpacked())).all()


# Same bytes


def with_records(toy: QuantizedToy, changed: dict[str, QuantizedTensor]) -> QuantizedToy:
    return replace(toy, records={**toy.records, **changed})


@pytest.mark.parametrize(
    ("form", "smaller"),
    [
        ("int4 in groups of 128", 32),
        ("int4 in groups of 96", 32),
        ("int4 by rows", 64),
        ("bytes in groups of 128", 32),
        ("bytes with offsets in groups of 64", 32),
        ("bytes in groups of 48", 16),
    ],
)
def test_repeating_a_scale_changes_nothing(form: str, smaller: int, native_kind: str) -> None:
    toy = toy_of("tails", form)
    repeated = {name: in_groups_of(record, smaller) for name, record in toy.records.items()}
    assert (logits_of(native_kind, with_records(toy, repeated)) == logits_of(native_kind, toy)).all()


@pytest.mark.parametrize("form", ["int4 in groups of 64", "Q4_K", "three orders"])
def test_gate_and_up_give_the_same_bytes_apart(form: str, native_kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = toy_of("even", form)
    gates = {name: toy.records[name.replace(".up", ".gate")] for name in toy.records if name.endswith(".up")}
    same_order = with_records(toy, {name: replace(toy.records[name], order=gate.order) for name, gate in gates.items()})
    joined = logits_of(native_kind, same_order)
    monkeypatch.setattr(native_runner, "are_alike", lambda *weights: len(weights) < 2)
    assert (logits_of(native_kind, same_order) == joined).all()


@pytest.mark.parametrize(
    ("spec", "form"),
    [("even", "Q4_K_M"), ("even", "int4 in groups of 128"), ("tails", "each its own"), ("tails", "three orders")],
)
def test_rows_of_a_mixed_batch_are_rows_alone(form: str, spec: str, native_kind: str) -> None:
    toy = toy_of(spec, form)
    prompts = [token_ids(toy.spec, length, seed) for seed, length in enumerate((60, 17, 3, 45))]
    tables, num_blocks = shuffled_tables([len(ids) for ids in prompts], BLOCK, seed=5)
    runner = make_runner(native_kind, "bf16", "bf16", threads=3)
    runner.load(toy)
    runner.allocate(num_blocks, BLOCK)
    schedule = [{0: 40}, {0: 1, 1: 15, 2: 3}, {3: 9, 0: 1}, {1: 1, 0: 18, 3: 36}, {1: 1}]
    together = scheduled_logits(runner, prompts, tables, schedule)
    runner.close()
    for ids, logits in zip(prompts, together, strict=True):
        alone = make_runner(native_kind, "bf16", "bf16", threads=1)
        assert (logits == teacher_forced_logits(alone, toy, ids)).all()
        alone.close()


# Planted faults


@pytest.mark.parametrize("field", ["scales", "zeros", "order"])
def test_groups_that_change_places_break_the_bound(field: str, native_kind: str) -> None:
    form = "int4 in groups of 64, ordered"
    toy, name = toy_of("even", form), "layers.1.q"
    record = toy.records[name]
    faulty = with_records(toy, {name: replace(record, **{field: np.roll(getattr(record, field), 1, axis=-1)})})
    assert max_difference(logits_of(native_kind, faulty), expected("even", form)) > allowed(native_kind, "even", form)


# Memory


@pytest.mark.parametrize("form", [*FORMS, *MIXED])
@pytest.mark.parametrize("spec", SPECS)
def test_weights_take_the_bytes_of_their_placements(form: str, spec: str) -> None:
    """Beside what the same model takes whose matrices are plain, and some padding of each piece."""
    toy = toy_of(spec, form)
    runner = make_runner("portable", "bf16")
    runner.load(toy)
    got = runner.memory().weights
    runner.load(toy.plain)
    shapes = toy.spec.tensor_shapes()
    placed = sum(place(record).bytes(record.shape) for record in toy.records.values())
    as_bf16 = sum(2 * -(-rows // 32) * 32 * -(-columns // 32) * 32 for rows, columns in map(shapes.get, toy.records))
    orders = sum(4 * (record.shape[1] + 95) for record in toy.records.values() if record.order is not None)
    assert abs(got - (runner.memory().weights - as_bf16 + placed)) <= orders + 128 * len(shapes)
