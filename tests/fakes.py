"""M0, a model whose every token is a hash of all tokens before it, and what an engine needs beside it.

M0 keeps the tokens themselves in its KV blocks and reads them back through the block tables, so a lost, duplicated,
reordered or cross-wired token, a stale block or a wrong copy changes every token after it; `expected_answer` says
what each answer must be. It raises, fails rows and calls back on command. It knows nothing of how plans are made.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as Tokens
from tokenizers import decoders, models, pre_tokenizers

from kvik.checkpoint.checkpoint import Checkpoint, Tensor
from kvik.checkpoint.spec import DecoderSpec, RopeSpec
from kvik.config import EngineConfig
from kvik.engine.engine import Engine
from kvik.engine.memory import ModelFigures, plan_memory
from kvik.request import MASK64, SamplingParams, choice_seed
from kvik.runners.runner import KernelChoice, MemoryUse
from kvik.step import Float32, StepPlan, StepResult, TopLogprobs, as_int32
from kvik.text.tokenizer import Tokenizer

VOCAB = 256
DRAWN = 250
"""M0 draws ids below this; the others stand only where a test puts them."""
POISON, NAN = 254, 255
"""Token ids that make M0 raise, or fail the draws of a row."""
KV_BYTES = 4
Hook = Callable[[StepPlan], None]


def fake_spec(max_position: int = 512, vocab_size: int = VOCAB, eos_ids: tuple[int, ...] = ()) -> DecoderSpec:
    """A decoder of no size to speak of."""
    return DecoderSpec("fake", vocab_size, 16, 16, 1, 1, 1, 16, 1e-6, RopeSpec(), max_position, eos_ids=eos_ids)


class FakeCheckpoint:
    """A model without weights."""

    name = "fake"
    directory: Path | None = None

    def __init__(self, spec: DecoderSpec) -> None:
        self.spec = spec

    def tensor(self, name: str) -> Tensor:
        raise NotImplementedError(name)

    def release(self, name: str) -> None:
        pass


def whole_prompt(ids: Sequence[int]) -> StepPlan:
    """A step that computes a prompt of one block's length at most, in block 0."""
    return StepPlan(
        step=0,
        keys=np.zeros(1, np.int64),
        token_ids=as_int32(ids),
        positions=as_int32(range(len(ids))),
        query_start_loc=as_int32([0, len(ids)]),
        seq_lens=as_int32([len(ids)]),
        block_tables=as_int32([[0]]),
    )


def hashed_token(context: Sequence[int], seed: int, banned: frozenset[int] = frozenset()) -> int:
    """The token after `context`: a hash of it and the seed, moved on past banned ids."""
    digest = zlib.crc32(np.asarray(context, np.int32).tobytes(), (seed ^ (seed >> 32)) & 0xFFFFFFFF)
    token = digest % DRAWN
    while token in banned:
        token = (token + 1) % DRAWN
    return token


def hashed_logprob(context: Sequence[int], token: int) -> float:
    """A number that depends on the whole context and the token."""
    return float(np.float32(-(zlib.crc32(np.asarray(context, np.int32).tobytes(), token) % 1000) / 100))


def expected_answer(
    prompt: Sequence[int],
    params: SamplingParams,
    seed: int = 0,
    *,
    choice: int = 0,
    spec: DecoderSpec | None = None,
    max_model_len: int | None = None,
) -> list[int]:
    """The oracle: the token ids of one choice, by recomputation from the prompt alone."""
    spec = spec or fake_spec()
    stops = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else frozenset(spec.eos_ids))
    drawn_with = (
        0 if params.greedy else choice_seed((params.seed if params.seed is not None else seed) & MASK64, choice)
    )
    tokens = list(prompt)
    limit = min(max_model_len or spec.max_position, len(prompt) + (params.max_tokens or 10**9))
    while len(tokens) < limit:
        banned = stops if len(tokens) - len(prompt) < params.min_tokens else frozenset()
        tokens.append(hashed_token(tokens, drawn_with, banned))
        if tokens[-1] in stops:
            break
    return tokens[len(prompt) :]


class FakeRunner:
    """M0. A row whose context holds POISON raises; the draws of one that holds NAN fail. `hook` is called before every
    run and may raise, hang or move a clock.
    """

    name = "fake"

    def __init__(self, hook: Hook | None = None) -> None:
        self.vocab_size = VOCAB
        self.hook = hook
        self.plans: list[StepPlan] = []
        self.closed = 0
        self.arena = np.zeros((0, 0), np.int32)

    def load(self, checkpoint: Checkpoint) -> None:
        pass

    def kv_bytes_per_token(self) -> int:
        return KV_BYTES

    def allocate(self, num_blocks: int, block_size: int) -> None:
        self.arena = np.full((num_blocks, block_size), -1, np.int32)

    def run(self, plan: StepPlan) -> StepResult:
        self.plans.append(plan)
        if self.hook is not None:
            self.hook(plan)
        self.arena[plan.copies[:, 1]] = self.arena[plan.copies[:, 0]]
        contexts = [self._store(plan, row) for row in range(plan.num_rows)]
        if any(POISON in context for context in contexts):
            raise RuntimeError(f"token {POISON} is poison")
        return self._draw(plan, contexts)

    def logits(self, plan: StepPlan) -> Float32:
        raise NotImplementedError

    def memory(self) -> MemoryUse:
        return MemoryUse(weights=0, kv=self.arena.nbytes, activations=0)

    def kernels(self) -> KernelChoice:
        return KernelChoice("fake")

    def close(self) -> None:
        self.closed += 1

    def _store(self, plan: StepPlan, row: int) -> list[int]:
        """Write a row's tokens through its block table and read its whole context back."""
        span = slice(plan.query_start_loc[row], plan.query_start_loc[row + 1])
        length = int(plan.seq_lens[row])
        size = self.arena.shape[1]
        blocks = plan.block_tables[row, : -(-length // size)]
        assert blocks.min() >= 0
        positions = plan.positions[span]
        assert positions[-1] + 1 == length
        self.arena[blocks[positions // size], positions % size] = plan.token_ids[span]
        return self.arena[blocks].reshape(-1)[:length].tolist()

    def _draw(self, plan: StepPlan, contexts: list[list[int]]) -> StepResult:
        sample = plan.sample
        count = len(sample)
        token_ids, failed = np.full(count, -1, np.int32), np.zeros(count, np.bool_)
        for s in range(count):
            context = contexts[sample.rows[s]]
            failed[s] = NAN in context
            if not failed[s]:
                seed = 0 if sample.temperature[s] == 0 else int(sample.seeds[s])
                span = slice(sample.bias_start[s], sample.bias_start[s + 1])
                biases = zip(sample.bias_tokens[span].tolist(), sample.bias_values[span].tolist(), strict=True)
                banned = frozenset(token for token, bias in biases if bias == -np.inf)
                token_ids[s] = hashed_token(context, seed, banned)
        drawn = [contexts[row] for row in sample.rows]
        sampled = self._top(drawn, token_ids.tolist(), sample.num_logprobs.tolist())
        return StepResult(token_ids, failed, sampled, self._score(plan, contexts))

    def _score(self, plan: StepPlan, contexts: list[list[int]]) -> TopLogprobs:
        before = []
        for index in plan.score.indices.tolist():
            row = int(np.searchsorted(plan.query_start_loc, index, side="right")) - 1
            before.append(contexts[row][: int(plan.positions[index]) + 1])
        return self._top(before, plan.score.targets.tolist(), plan.score.num_top.tolist())

    def _top(self, contexts: list[list[int]], tokens: list[int], asked: list[int]) -> TopLogprobs:
        width = max([0, *asked])
        ids = np.full((len(tokens), width), -1, np.int32)
        for row, k in enumerate(asked):
            ids[row, : max(k, 0)] = np.arange(max(k, 0))
        values = [
            hashed_logprob(context, token) if k >= 0 and token >= 0 else 0.0
            for context, token, k in zip(contexts, tokens, asked, strict=True)
        ]
        return TopLogprobs(np.array(values, np.float32), ids, np.zeros(ids.shape, np.float32))


class FakeClock:
    """A monotonic clock that moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def byte_tokenizer(directory: Path) -> Tokenizer:
    """A tokenizer of 256 tokens, one for each byte: most token sequences are broken UTF-8."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = Tokens(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens.decoder = decoders.ByteLevel()
    directory.mkdir(parents=True, exist_ok=True)
    tokens.save(str(directory / "tokenizer.json"))
    return Tokenizer.from_directory(directory)


def fake_engine(
    runner: FakeRunner | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    clock: Callable[[], float] | None = None,
    spec: DecoderSpec | None = None,
    num_blocks: int | None = None,
    **options: object,
) -> Engine:
    """An engine on M0. `num_blocks` sizes the KV cache; otherwise 2**20 slots at most."""
    spec = spec or fake_spec()
    config = EngineConfig.from_options(**options)
    runner = runner or FakeRunner()
    if num_blocks is not None:
        options["kv_cache_memory"] = num_blocks * config.cache.block_size * KV_BYTES
        config = EngineConfig.from_options(**options)
    figures = ModelFigures("fake", 0, KV_BYTES, 0, spec.max_position)
    memory = plan_memory(figures, 2**30, config)
    extra = {"clock": clock} if clock else {}
    return Engine(config, FakeCheckpoint(spec), runner, tokenizer, memory=memory, **extra)
