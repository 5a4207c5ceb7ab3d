"""An LLM on the fake model with a runner of the test's own, random requests, and what each must answer."""

from __future__ import annotations

import random

from kvik import LLM, SamplingParams
from kvik.checkpoint import FakeCheckpoint, fake
from kvik.config import EngineConfig
from kvik.engine.engine import Engine
from kvik.request import RequestOutput, choice_seed
from kvik.runners.fake import FakeRunner, fake_answer, fake_tokenizer
from kvik.runners.fake.oracle import END_IDS

BLOCK = 32


def fake_llm(
    model: str = "fake:", runner: FakeRunner | None = None, num_blocks: int | None = None, **options: object
) -> LLM:
    """`LLM(model, **options)` on this runner; `num_blocks` sizes the KV cache."""
    if num_blocks is not None:
        options["kv_cache_memory"] = num_blocks * BLOCK * fake.KV_BYTES_PER_TOKEN
    config, checkpoint = EngineConfig.from_options(model=model, **options), FakeCheckpoint(model)
    runner = runner or FakeRunner()
    runner.load(checkpoint)
    return LLM.from_engine(Engine(config, checkpoint, runner, fake_tokenizer()))


def expected(llm: LLM, prompt: list[int], params: SamplingParams, index: int = 0) -> list[int]:
    """The oracle's tokens for one choice of a request that ends by itself."""
    model = llm.engine.config.model.model
    assert model is not None
    room = llm.engine.memory.max_model_len - len(prompt)
    return fake_answer(
        prompt,
        room if params.max_tokens is None else min(params.max_tokens, room),
        seed=None if params.greedy else choice_seed(params.seed or 0, index),
        min_tokens=params.min_tokens,
        stop_ids=frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else END_IDS),
        options=FakeCheckpoint(model).options,
    )


def check(llm: LLM, output: RequestOutput, params: SamplingParams) -> None:
    """Every choice of an output is the oracle's."""
    assert output.error is None
    assert len(output.outputs) == params.n
    for choice in output.outputs:
        assert choice.token_ids == expected(llm, output.prompt_token_ids, params, choice.index)


def random_prompt(rng: random.Random, longest: int) -> list[int]:
    """Bytes, pieces and special tokens; prompts often begin alike, and never spell a fault."""
    if rng.random() < 0.1:
        return rng.choices(range(fake.FIRST_PIECE, fake.END_OF_TEXT), k=rng.randint(1, longest))
    shared = random.Random(rng.randrange(3)).choices(range(64), k=rng.randint(0, longest - 4))
    return [
        *shared,
        *(rng.choice([rng.randrange(64), rng.randrange(fake.VOCAB_SIZE)]) for _ in range(rng.randint(1, 4))),
    ]


def random_params(rng: random.Random) -> SamplingParams:
    """Every parameter that the fake model listens to."""
    max_tokens = rng.randint(1, 40)
    return SamplingParams(
        n=rng.choice([1, 1, 2, 4]),
        temperature=rng.choice([0.0, 0.7]),
        seed=rng.randrange(2**64),
        max_tokens=max_tokens,
        min_tokens=rng.choice([0, 0, rng.randint(0, max_tokens)]),
        ignore_eos=rng.random() < 0.2,
        stop_token_ids=tuple(rng.choices(range(fake.FIRST_PIECE, fake.END_OF_TEXT), k=rng.choice([0, 0, 10]))),
        logprobs=rng.choice([None, None, 0, 3]),
    )
