"""A fake model that obeys masks, and random schemas: what tests of structured output need.

The model is M0 of `fakes`, whose tokens are a function of all before them, except that a draw with a mask is made
among the tokens that mask and bans leave, with a liking for those that bring a text to its end. This file knows nothing
of how masks come about.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from fakes import FakeRunner, fake_engine, fake_spec

from kvik.engine.engine import Engine
from kvik.runners.reference.sampling import allowed
from kvik.step import SamplePlan, StepPlan, StepResult
from kvik.text.byte_tokenizer import byte_tokenizer

VOCAB = 300
"""More than the tokenizer has: bytes, then three special tokens, then nothing."""
ENDS = (258, 256)
CLOSING = frozenset(b'"}],:0') | set(ENDS)


class ObedientRunner(FakeRunner):
    """Draws among what is allowed. With `ignores_masks` it does not, which a test must notice."""

    def __init__(self, ignores_masks: bool = False, **more: Any) -> None:
        super().__init__(**more)
        self.vocab_size = VOCAB
        self.ignores_masks = ignores_masks

    def _draw(self, plan: StepPlan, contexts: list[list[int]]) -> StepResult:
        result = super()._draw(plan, contexts)
        for s in range(len(plan.sample)):
            mask = None if self.ignores_masks else allowed(plan.sample, s, VOCAB)
            if mask is not None:
                result.token_ids[s] = self._among(mask, plan.sample, s, contexts[plan.sample.rows[s]])
                result.failed[s] = result.token_ids[s] < 0
        return result

    def _among(self, mask: Any, sample: SamplePlan, s: int, context: list[int]) -> int:
        span = slice(sample.bias_start[s], sample.bias_start[s + 1])
        mask[sample.bias_tokens[span][sample.bias_values[span] == -np.inf]] = False
        tokens = np.flatnonzero(mask).tolist()
        if not tokens:
            return -1
        seed = 0 if sample.temperature[s] == 0 else int(sample.seeds[s])
        rng = random.Random(f"{seed} {context}")
        closing = [token for token in tokens if token in CLOSING]
        return rng.choice(closing if closing and rng.random() < 0.6 else tokens)


def grammar_engine(ignores_masks: bool = False, **options: Any) -> Engine:
    """An engine on the obedient model, with a byte tokenizer."""
    spec = fake_spec(max_position=512, vocab_size=VOCAB, eos_ids=ENDS)
    runner = ObedientRunner(ignores_masks, hook=options.pop("hook", None))
    return fake_engine(runner, tokenizer=byte_tokenizer(), spec=spec, **options)


def random_schema(rng: random.Random, depth: int = 3) -> dict[str, Any]:
    """A schema that something satisfies, of any kind that is supported."""
    kinds = [_number, _string, _enum, _flag] + [_object, _object, _array, _any_of, _tuple] * (depth > 0)
    return rng.choice(kinds)(rng, depth)


def _number(rng: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": rng.choice(["integer", "number"])}
    low = rng.randint(-500, 500)
    if rng.random() < 0.5:
        schema[rng.choice(["minimum", "exclusiveMinimum"])] = low
    if rng.random() < 0.5:
        schema[rng.choice(["maximum", "exclusiveMaximum"])] = low + rng.randint(20, 10_000)
    if rng.random() < 0.2:
        schema["multipleOf"] = rng.choice([2, 5, 10])
    return schema


def _string(rng: random.Random, depth: int) -> dict[str, Any]:
    kind = rng.randrange(4)
    if kind == 0:
        return {
            "type": "string",
            "pattern": rng.choice(["^[a-z]{2,5}$", "^(ab|c)+$", "[0-9]", r"^\d{3}-\d{2}$", "ü|x"]),
        }
    if kind == 1:
        return {"type": "string", "format": rng.choice(["date", "ipv4", "uuid", "time"])}
    least = rng.randint(0, 4)
    return {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 8)}


def _enum(rng: random.Random, depth: int) -> dict[str, Any]:
    values = ["red", "grün", "", 'q"\\', 7, -1, 2.5, True, None, [1, "a"], {"k": [None]}]
    return {"enum": rng.sample(values, rng.randint(1, 5))} if rng.random() < 0.7 else {"const": rng.choice(values)}


def _flag(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": rng.choice(["boolean", "null", ["boolean", "null"], ["integer", "null"]])}


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(["id", "name", "größe", 'a"b', "x y", "", "tags", "n/a"], rng.randint(0, 4))
    schema: dict[str, Any] = {"type": "object", "properties": {name: random_schema(rng, depth - 1) for name in names}}
    schema["required"] = rng.sample(names, rng.randint(0, len(names)))
    if rng.random() < 0.8:
        schema["additionalProperties"] = rng.choice([False, False, {"type": "integer"}])
    return schema


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    least = rng.randint(0, 2)
    return {"type": "array", "items": random_schema(rng, depth - 1), "minItems": least, "maxItems": least + 2}


def _tuple(rng: random.Random, depth: int) -> dict[str, Any]:
    items = [random_schema(rng, depth - 1) for _ in range(rng.randint(1, 3))]
    return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}


def _any_of(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [random_schema(rng, depth - 1) for _ in range(rng.randint(1, 3))]}
