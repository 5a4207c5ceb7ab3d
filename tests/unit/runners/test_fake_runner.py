"""The fake runner against its oracle: however requests are scheduled, and not once the books are wrong."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from typing import Any

import jsonschema
import numpy as np
import pytest
from fake_toys import check, expected, fake_llm, random_params, random_prompt

from kvik import LLM, SamplingParams
from kvik.checkpoint import DummyCheckpoint, FakeCheckpoint, fake
from kvik.config import EngineConfig
from kvik.errors import BackendError, ConfigError, KvikError
from kvik.runners.choose import create_runner
from kvik.runners.fake import FakeRunner, fake_answer, fake_logprob
from kvik.runners.fake.faults import Fault
from kvik.runners.runner import MemoryUse
from kvik.scheduler import check_invariants
from kvik.step import SamplePlan, ScorePlan, StepPlan, StepResult, as_int32
from kvik.text import grammar

MODEL = "fake:max_model_len=200,length=1-40"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_blocks": 7, "max_num_seqs": 8, "max_num_batched_tokens": 24},
        {"num_blocks": 7, "max_num_seqs": 8, "max_num_batched_tokens": 24, "prefix_caching": False},
        {"num_blocks": 30, "max_num_seqs": 16, "max_num_batched_tokens": 256, "chunked_prefill": False},
        {"num_blocks": 30, "max_num_seqs": 16, "max_num_batched_tokens": 64, "schedule": "separate"},
        {"max_num_seqs": 8, "max_num_batched_tokens": 50, "kv_layout": "contiguous", "batching": "static"},
    ],
    ids=["default", "tiny pool", "tiny pool, no sharing", "whole prompts", "separate", "contiguous static"],
)
def test_every_token_is_the_oracles(options: dict[str, object]) -> None:
    rng = random.Random(str(options))
    llm = fake_llm(MODEL, **options)
    prompts = [random_prompt(rng, 150) for _ in range(120)]
    params = [random_params(rng) for _ in prompts]
    for output, each in zip(llm.generate(prompts, params, use_tqdm=False), params, strict=True):
        check(llm, output, each)
    check_invariants(llm.engine.scheduler)
    stats = llm.stats()
    assert stats["preemptions"] > 0 or options.get("num_blocks") != 7
    assert stats["prompt_tokens_cached"] > 0 or options.get("prefix_caching") is False or "kv_layout" in options


def test_a_bias_of_minus_100_bans_its_token_and_any_other_changes_nothing() -> None:
    llm, prompt = fake_llm("fake:length=9"), list(b"banned")
    params = SamplingParams(temperature=0, max_tokens=20)
    plain = expected(llm, prompt, params)
    banned = [plain[3], fake.IM_END, 100]
    biases = dict.fromkeys(banned, -100.0) | {plain[1]: -99.0, plain[1] + 1: 100.0}
    drawn = llm.generate([prompt], dataclasses.replace(params, logit_bias=biases))[0].outputs[0].token_ids
    options = FakeCheckpoint("fake:length=9").options
    assert drawn == fake_answer(prompt, 20, banned=frozenset(banned), options=options)
    assert drawn[:3] == plain[:3]
    assert not set(banned) & set(drawn)
    assert len(drawn) == 20


def test_text_in_is_text_out() -> None:
    with LLM(model="fake:length=20") as llm:
        tokenizer = llm.tokenizer
        assert tokenizer is not None
        params = SamplingParams(temperature=0, max_tokens=50)
        answer = tokenizer.decode(
            fake_answer(list("Grüße".encode()), 50, options=FakeCheckpoint("fake:length=20").options)
        )
        assert llm.generate("Grüße", params)[0].outputs[0].text == answer
        assert "".join(llm.generate_stream("Grüße", params)) == answer
        chat = llm.chat([{"role": "user", "content": "Grüße"}], params)[0]
        assert chat.outputs[0].token_ids == expected(llm, chat.prompt_token_ids, params)
        assert chat.outputs[0].finish_reason == "stop"


def test_log_probabilities_are_the_oracles_through_chunks_and_draws() -> None:
    llm = fake_llm(MODEL, max_num_batched_tokens=7)
    prompt = list(b"What is the probability of this?")
    params = SamplingParams(temperature=1, seed=3, max_tokens=9, logprobs=2, prompt_logprobs=20)
    output = llm.generate([prompt], params)[0]
    tokens = prompt + output.outputs[0].token_ids
    assert output.prompt_logprobs is not None
    assert output.outputs[0].logprobs is not None
    entries = output.prompt_logprobs + output.outputs[0].logprobs
    assert entries[0] is None
    for position, entry in enumerate(entries[1:], start=1):
        assert entry is not None
        context = tokens[:position]
        assert entry.token_id == tokens[position]
        assert entry.logprob == pytest.approx(fake_logprob(context, entry.token_id), rel=1e-5)
        assert entry.top[0].token_id == fake_answer(context, 1, options=FakeCheckpoint(MODEL).options)[0]
        assert [each.logprob for each in entry.top] == sorted((each.logprob for each in entry.top), reverse=True)
        assert all(each.logprob == pytest.approx(fake_logprob(context, each.token_id), rel=1e-5) for each in entry.top)
        assert len(entry.top) == (20 if position < len(prompt) else 2)


# Masks ---------------------------------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "tags": {"type": "array", "items": {"enum": ["x", "größe"]}},
        "age": {"type": "integer"},
    },
    "required": ["name", "tags", "age"],
    "additionalProperties": False,
}
BY_SCHEMA = grammar.json_schema(SCHEMA)


def masked(seed: int, **more: Any) -> SamplingParams:
    """What follows the schema; long answers are cut, which ends few of them."""
    return SamplingParams(grammar=BY_SCHEMA, seed=seed, **{"max_tokens": 400, **more})


def test_answers_with_a_grammar_follow_it_and_come_to_an_end() -> None:
    llm = fake_llm(num_blocks=200)
    params = [masked(seed, temperature=float(seed > 0)) for seed in range(40)]
    answers = [output.outputs[0] for output in llm.generate([list(b"say it")] * 40, params, use_tqdm=False)]
    whole = [json.loads(answer.text) for answer in answers if answer.finish_reason == "stop"]
    assert len(whole) >= 38
    for value in whole:
        jsonschema.validate(value, SCHEMA)
    assert len({value["name"] for value in whole}) > 20
    assert any(value["name"] and value["tags"] for value in whole)


def test_who_has_a_grammar_changes_nothing_for_who_has_none() -> None:
    llm = fake_llm(MODEL, num_blocks=12, max_num_batched_tokens=24)
    rng = random.Random(4)
    prompts = [random_prompt(rng, 60) for _ in range(40)]
    params = [masked(i, max_tokens=60) if i % 2 else random_params(rng) for i in range(40)]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert llm.stats()["preemptions"] > 0
    for i, output in enumerate(outputs):
        if i % 2:
            alone = fake_llm(MODEL).generate([prompts[i]], params[i])[0].outputs[0]
            assert output.outputs[0].token_ids == alone.token_ids
        else:
            check(llm, output, params[i])


def test_a_mask_and_bans_together_leave_what_both_allow() -> None:
    llm = fake_llm()
    either = SamplingParams(grammar=grammar.regex("[qx]{20}"), logit_bias={ord("q"): -100.0}, max_tokens=40)
    assert llm.generate([[1]], either)[0].outputs[0].text == "x" * 20
    neither = dataclasses.replace(either, logit_bias={ord("q"): -100.0, ord("x"): -100.0})
    with pytest.raises(KvikError):
        llm.generate([[1]], neither)


# Planted bugs -------------------------------------------------------------------------------------------------------


class Meddler(FakeRunner):
    """A runner whose plans were tampered with."""

    def __init__(self, meddle: Callable[[StepPlan], StepPlan]) -> None:
        super().__init__()
        self._meddle = meddle

    def run(self, plan: StepPlan) -> StepResult:
        return super().run(self._meddle(plan))


def swap_first_blocks(plan: StepPlan) -> StepPlan:
    """Blocks 0 and 1 of rows that are well past them."""
    tables, late = plan.block_tables.copy(), plan.positions[plan.query_start_loc[:-1]] >= 64
    tables[late, :2] = tables[late, 1::-1]
    return dataclasses.replace(plan, block_tables=tables)


def skip_copies(plan: StepPlan) -> StepPlan:
    return dataclasses.replace(plan, copies=plan.copies[:0])


def use_another_row(plan: StepPlan) -> StepPlan:
    """Every row's first block is that of row 0."""
    tables = plan.block_tables.copy()
    tables[:, 0] = tables[0, 0]
    return dataclasses.replace(plan, block_tables=tables)


def change_a_token(plan: StepPlan) -> StepPlan:
    tokens = plan.token_ids.copy()
    tokens[plan.positions == 30] ^= 1
    return dataclasses.replace(plan, token_ids=tokens)


def reorder_tokens(plan: StepPlan) -> StepPlan:
    """Two neighbours of a prompt change places, and their positions do not."""
    tokens = plan.token_ids.copy()
    for row in range(plan.num_rows):
        start, end = plan.query_start_loc[row], plan.query_start_loc[row + 1]
        if end - start > 2:
            tokens[start : start + 2] = tokens[start : start + 2][::-1]
    return dataclasses.replace(plan, token_ids=tokens)


def cross_seeds(plan: StepPlan) -> StepPlan:
    return dataclasses.replace(plan, sample=dataclasses.replace(plan.sample, seeds=np.roll(plan.sample.seeds, 1)))


@pytest.mark.parametrize(
    "meddle", [swap_first_blocks, skip_copies, use_another_row, change_a_token, reorder_tokens, cross_seeds]
)
def test_a_planted_bug_shows_in_the_tokens(meddle: Callable[[StepPlan], StepPlan]) -> None:
    prompts = [
        list(b"%d: the same request, but for its number, as long as it takes to fill two blocks" % n) for n in range(3)
    ]
    params = SamplingParams(n=2, seed=1, temperature=1, max_tokens=20, ignore_eos=True)
    wrong = 0
    for meddling in (lambda plan: plan, meddle):
        llm = fake_llm(MODEL, Meddler(meddling))
        outputs = llm.generate(prompts, params, use_tqdm=False)
        wrong = sum(
            choice.token_ids != expected(llm, output.prompt_token_ids, params, choice.index)
            for output in outputs
            for choice in output.outputs
        )
        assert wrong == 0 or meddling is meddle
    assert wrong


# A citizen ----------------------------------------------------------------------------------------------------------


def whole_prompt(tokens: list[int], blocks: list[int], first: int = 0) -> StepPlan:
    """A step that computes a prompt of one row, or the rest of it from a position on, in these blocks of 32."""
    return StepPlan(
        step=0,
        keys=np.zeros(1, np.int64),
        token_ids=as_int32(tokens),
        positions=as_int32(range(first, first + len(tokens))),
        query_start_loc=as_int32([0, len(tokens)]),
        seq_lens=as_int32([first + len(tokens)]),
        block_tables=as_int32([blocks]),
        score=ScorePlan(as_int32([0]), as_int32([7]), as_int32([1])),
    )


def ready(model: str = "fake:", num_blocks: int = 2, **seams: Callable[..., object]) -> FakeRunner:
    runner = FakeRunner(**seams)  # type: ignore[arg-type]
    runner.load(FakeCheckpoint(model))
    runner.allocate(num_blocks, 32)
    return runner


def test_logits_are_the_log_probabilities_after_every_token() -> None:
    prompt = list(b"logits")
    logits = ready().logits(whole_prompt(prompt, [1]))
    assert logits.shape == (len(prompt), fake.VOCAB_SIZE)
    for position, row in enumerate(logits):
        context = prompt[: position + 1]
        assert row.tolist() == pytest.approx([fake_logprob(context, t) for t in range(fake.VOCAB_SIZE)], rel=1e-5)


def with_draws(plan: StepPlan, num_logprobs: list[int]) -> StepPlan:
    """The same step with greedy draws from row 0."""
    zeros = np.zeros(len(num_logprobs), np.int32)
    sample = SamplePlan(
        rows=zeros,
        temperature=zeros.astype(np.float32),
        seeds=zeros.astype(np.uint64),
        num_logprobs=as_int32(num_logprobs),
        bias_start=np.zeros(len(num_logprobs) + 1, np.int32),
    )
    return dataclasses.replace(plan, sample=sample)


def test_log_probabilities_have_the_shape_of_what_was_asked() -> None:
    prompt = list(b"shapes")
    plan = with_draws(whole_prompt(prompt, [1]), [-1, 0, 2])
    result, token = ready().run(plan), fake_answer(prompt, 1)[0]
    value = pytest.approx(fake_logprob(prompt, token), rel=1e-5)
    assert result.token_ids.tolist() == [token] * 3
    assert result.sampled.logprobs.tolist() == [0, value, value]
    assert result.sampled.top_ids.tolist() == [[-1, -1], [-1, -1], [token, token + 1]]
    assert result.sampled.top_logprobs[2, 0] == value
    assert result.scored.top_ids.tolist() == [fake_answer(prompt[:1], 1)]
    assert result.scored.logprobs[0] == pytest.approx(fake_logprob(prompt[:1], 7), rel=1e-5)
    nothing = ready().run(with_draws(plan, [-1]))
    assert (nothing.sampled.logprobs.shape, nothing.sampled.top_ids.shape) == ((1,), (1, 0))


def test_a_failed_draw_has_no_token() -> None:
    result = ready().run(with_draws(whole_prompt(list(b"[[nan]]"), [0]), [3]))
    assert (result.token_ids.tolist(), result.failed.tolist()) == ([-1], [True])
    assert result.sampled.top_ids.tolist() == [[-1] * 3]
    assert np.isnan(result.scored.logprobs[0])
    assert result.scored.top_ids.tolist() == [[-1]]


def test_a_block_that_belongs_to_another_beginning_shows() -> None:
    """A prefix cache that compared blocks without what stands before them would be found out."""
    runner, rest, likeliest = ready(num_blocks=5), list(range(32)), []
    for beginning, blocks in (([1] * 32, [0, 1]), ([2] * 32, [2, 3])):
        runner.run(whole_prompt(beginning + rest, blocks))
    for blocks in ([2, 3, 4], [2, 1, 4]):
        likeliest.append(int(runner.logits(whole_prompt([5], blocks, first=64))[0].argmax()))
    honest = fake_answer([2] * 32 + rest + [5], 1)[0]
    assert likeliest[0] == honest
    assert likeliest[1] != honest


def test_a_step_lasts_as_long_as_it_was_told() -> None:
    slept: list[float] = []
    times = iter([10.0, 10.001, 20.0, 21.0])
    runner = ready("fake:step_ms=5,row_us=100,token_us=10", clock=lambda: next(times), sleep=slept.append)
    plan = whole_prompt(list(b"0123456789"), [0])
    runner.run(plan)
    assert slept == [pytest.approx(0.005 + 0.0001 + 0.0001 - 0.001)]
    runner.run(plan)
    assert len(slept) == 1, "a step that took longer by itself waits no more"


def test_what_a_plan_may_not_hold_is_refused() -> None:
    runner = ready()
    for tokens, blocks, message in (
        ([-1], [0], "token id -1; expected 0 to 452"),
        ([fake.VOCAB_SIZE], [0], "token id 453"),
        ([1], [2], "block 2; expected 0 to 1"),
        ([1] * 33, [0, -1], "block -1"),
    ):
        with pytest.raises(ValueError, match=message):
            runner.run(whole_prompt(tokens, blocks))
    plan = dataclasses.replace(whole_prompt([1], [0]), copies=as_int32([[0, 5]]))
    with pytest.raises(ValueError, match="block 5"):
        runner.run(plan)


def test_it_needs_a_fake_model_and_a_cache() -> None:
    runner = FakeRunner()
    with pytest.raises(BackendError, match="dummy:tiny-llama is no fake model; expected fake: with parameters"):
        runner.load(DummyCheckpoint("tiny-llama"))
    with pytest.raises(RuntimeError, match="call load first"):
        runner.allocate(1, 32)
    runner.load(FakeCheckpoint())
    with pytest.raises(RuntimeError, match="call allocate first"):
        runner.run(whole_prompt([1], [0]))
    runner.allocate(3, 32)
    assert runner.memory() == MemoryUse(weights=0, kv=3 * 32 * runner.kv_bytes_per_token(), activations=0)
    runner.close()
    runner.close()
    assert runner.memory() == MemoryUse(0, 0, 0)


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("backend", "native", BackendError),
        ("backend", "reference", BackendError),
        ("isa", "avx2", BackendError),
        ("weights", "int8", ConfigError),
        ("kv_dtype", "bf16", ConfigError),
    ],
)
def test_options_that_it_cannot_follow_are_refused_by_name(option: str, value: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"{option} is '{value}'; expected auto for a fake model"):
        create_runner(EngineConfig.from_options(model="fake:", **{option: value}))


def test_codes_of_faults_are_read_back() -> None:
    for fault in (Fault("raise"), Fault("slow", 9999)):
        assert Fault.of_code(fault.code) == fault
        assert fault.code > 0
