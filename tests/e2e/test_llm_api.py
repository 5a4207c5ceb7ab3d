"""LLM as its users meet it, on M0: prompts of every kind, order, errors, streams, conversations, Ctrl-C."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest
from fakes import NAN, POISON, FakeRunner, byte_tokenizer, expected_answer, fake_engine

from kvik import LLM, SamplingParams
from kvik.engine.interrupt import interrupts_held
from kvik.errors import (
    CheckpointError,
    ConfigError,
    ContextLengthError,
    InvalidRequestError,
    KvikError,
    NotEnoughMemoryError,
    NumericalError,
    TemplateError,
)
from kvik.step import StepPlan
from kvik.text.tokenizer import Tokenizer

GREEDY = SamplingParams(temperature=0, max_tokens=6)
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return byte_tokenizer(tmp_path_factory.mktemp("bytes")).with_chat_template(TEMPLATE)


@pytest.fixture
def llm(tokenizer: Tokenizer) -> LLM:
    return LLM.from_engine(fake_engine(tokenizer=tokenizer, max_num_seqs=4))


# Prompts and order --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt", ["abc", [64, 65, 66], (64, 65, 66), {"prompt": "abc"}, {"prompt_token_ids": [64, 65, 66]}]
)
def test_a_prompt_is_text_or_ids_or_a_dict(llm: LLM, tokenizer: Tokenizer, prompt: Any) -> None:
    ids = tokenizer.encode("abc")
    if not isinstance(prompt, (str, dict)) or "prompt_token_ids" in prompt:
        ids = [64, 65, 66]
    for given in (prompt, [prompt]):
        (output,) = llm.generate(given, GREEDY)
        assert output.prompt_token_ids == ids
        assert output.outputs[0].token_ids == expected_answer(ids, GREEDY)
        assert output.outputs[0].text == tokenizer.decode(output.outputs[0].token_ids)
        assert output.prompt == (prompt if isinstance(prompt, str) else None) or isinstance(prompt, dict)


def test_outputs_are_in_the_order_of_the_prompts(llm: LLM) -> None:
    prompts = [[i] * (1 + 37 * i % 50) for i in range(60)]
    params = [SamplingParams(temperature=0, max_tokens=1 + i * 7 % 20) for i in range(60)]
    outputs = llm.generate(prompts, params)
    assert [output.prompt_token_ids for output in outputs] == prompts
    for output, its_params in zip(outputs, params, strict=True):
        assert output.outputs[0].token_ids == expected_answer(output.prompt_token_ids, its_params)
    assert len({output.request_id for output in outputs}) == 60


def test_no_prompts_no_outputs(llm: LLM) -> None:
    assert llm.generate([]) == []


def test_n_choices(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=9, max_tokens=5, logprobs=0)
    (output,) = llm.generate("abc", params)
    assert [choice.index for choice in output.outputs] == [0, 1, 2]
    for choice in output.outputs:
        assert choice.token_ids == expected_answer(output.prompt_token_ids, params, choice=choice.index)
        assert len(choice.logprobs or []) == 5


# Errors -------------------------------------------------------------------------------------------------------------

BAD_PROMPTS: list[tuple[Any, type[Exception], list[str]]] = [
    ("", InvalidRequestError, ["empty", "at least 1"]),
    ([[]], InvalidRequestError, ["empty"]),
    ([1] * 512, ContextLengthError, ["512 tokens", "at most 511"]),
    ([256], InvalidRequestError, ["256", "0 to 255"]),
    ([-1], InvalidRequestError, ["-1", "0 to 255"]),
    ([1.5], InvalidRequestError, ["1.5"]),
    ([1, "a"], InvalidRequestError, ["'a'"]),
    (7, InvalidRequestError, ["7", "str, a list of token ids, or a dict"]),
    (None, InvalidRequestError, ["None"]),
    ("half \ud800", InvalidRequestError, ["surrogate"]),
    ({"text": "a"}, InvalidRequestError, ["text", "prompt_token_ids"]),
    ({"prompt": "a", "prompt_token_ids": [1]}, InvalidRequestError, ["prompt_token_ids"]),
    ({}, InvalidRequestError, ["prompt_token_ids"]),
]


@pytest.mark.parametrize(("prompt", "error", "parts"), BAD_PROMPTS)
def test_a_bad_prompt_alone_raises(llm: LLM, prompt: Any, error: type[Exception], parts: list[str]) -> None:
    for call in (llm.generate, llm.add_request, lambda bad: next(llm.generate_stream(bad))):
        if prompt == [[]] and call != llm.generate:
            continue
        with pytest.raises(error) as caught:
            call(prompt)
        for part in parts:
            assert part in str(caught.value)
    assert not llm.has_unfinished()


@pytest.mark.parametrize(("prompt", "error", "parts"), [bad for bad in BAD_PROMPTS if bad[0] != [[]]])
def test_a_bad_prompt_among_many_fails_alone(llm: LLM, prompt: Any, error: type[Exception], parts: list[str]) -> None:
    outputs = llm.generate([[1], prompt, [2]], GREEDY)
    assert type(outputs[1].error) is error
    assert all(part in str(outputs[1].error) for part in parts)
    assert outputs[1].outputs[0].finish_reason == "error"
    assert outputs[1].finished
    for output in (outputs[0], outputs[2]):
        assert output.error is None
        assert output.outputs[0].token_ids == expected_answer(output.prompt_token_ids, GREEDY)


@pytest.mark.parametrize(("mark", "error"), [(POISON, RuntimeError), (NAN, NumericalError)])
def test_a_request_that_breaks_the_model_fails_alone(llm: LLM, mark: int, error: type[Exception]) -> None:
    outputs = llm.generate([[1], [mark], [2]], GREEDY)
    assert isinstance(outputs[1].error, error)
    assert [output.outputs[0].token_ids for output in (outputs[0], outputs[2])] == [
        expected_answer([1], GREEDY),
        expected_answer([2], GREEDY),
    ]
    with pytest.raises(error):
        llm.generate([mark], GREEDY)
    with pytest.raises(error):
        list(llm.generate_stream([mark], GREEDY))


@pytest.mark.parametrize("params", [[GREEDY], "temperature=0", [GREEDY, 3], 5])
def test_sampling_params_of_the_wrong_kind_or_number(llm: LLM, params: Any) -> None:
    with pytest.raises(InvalidRequestError, match="sampling_params"):
        llm.generate([[1], [2]], params)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("temperature", float("nan")),
        ("temperature", -0.1),
        ("top_p", 0),
        ("n", 0),
        ("logprobs", 21),
        ("seed", 1.5),
        ("stop", [""]),
    ],
)
def test_a_bad_sampling_parameter_names_itself(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=field) as caught:
        SamplingParams(**{field: value})
    assert caught.value.param == field


def test_unknown_names_are_type_errors() -> None:
    with pytest.raises(TypeError, match="max_lenght"):
        LLM("dummy:tiny-qwen3", max_lenght=5)
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=0)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("model", "options", "error", "parts"),
    [
        ("", {}, CheckpointError, ["''", "dummy:"]),
        ("/no/such/directory", {}, CheckpointError, ["/no/such/directory"]),
        ("dummy:nothing", {}, CheckpointError, ["nothing"]),
        ("dummy:tiny-qwen3", {"max_model_len": 10**9}, ConfigError, ["max_model_len", "1000000000"]),
        ("dummy:tiny-qwen3", {"block_size": 33}, ConfigError, ["block_size", "33", "32"]),
        ("dummy:tiny-qwen3", {"kv_cache_memory": "1000TiB"}, NotEnoughMemoryError, ["kv_cache_memory"]),
        ("dummy:tiny-qwen3", {"kv_cache_memory": "1KiB"}, NotEnoughMemoryError, ["one sequence"]),
        ("dummy:tiny-qwen3", {"weight_group_size": 48}, ConfigError, ["weight_group_size", "48", "32, 64 or 128"]),
        ("dummy:tiny-qwen3", {"kv_cache_memory": "many"}, ConfigError, ["'many'", "4GiB"]),
        ("dummy:tiny-qwen3", {"schedule": "fast"}, ConfigError, ["schedule", "fast", "mixed"]),
    ],
)
def test_a_model_that_cannot_be_made(
    model: str | None, options: dict[str, Any], error: type[Exception], parts: list[str]
) -> None:
    with pytest.raises(error) as caught:
        LLM(model, backend="reference", **options)
    for part in parts:
        assert part in str(caught.value)


def test_an_empty_directory_is_no_model(tmp_path: Any) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        LLM(str(tmp_path))


def test_a_model_without_text_takes_and_gives_token_ids() -> None:
    llm = LLM("dummy:tiny-qwen3", backend="reference", max_model_len=64, max_num_seqs=2)
    (output,) = llm.generate([5, 6, 7], GREEDY)
    assert len(output.outputs[0].token_ids) == 6
    assert output.outputs[0].text == ""
    for prompt, params, param in (("text", GREEDY, "prompt"), ([1], SamplingParams(stop="a"), "stop")):
        with pytest.raises(InvalidRequestError, match="no tokenizer") as caught:
            llm.generate(prompt, params)
        assert caught.value.param == param
    with pytest.raises(InvalidRequestError, match="no chat template"):
        llm.chat([{"role": "user", "content": "Hi"}])


# Streams and steps --------------------------------------------------------------------------------------------------


def test_streams_give_the_whole_text_in_pieces(llm: LLM) -> None:
    params = SamplingParams(seed=3, max_tokens=40, stop=("zz", "é"))
    whole = llm.generate("abc", params)[0].outputs[0].text
    pieces = list(llm.generate_stream("abc", params))
    assert "".join(pieces) == whole
    assert len(pieces) > 5


def test_streams_may_be_interleaved_and_left(llm: LLM) -> None:
    params = [SamplingParams(seed=seed, max_tokens=30) for seed in range(3)]
    streams = [llm.generate_stream("abc", each) for each in params]
    first = [next(streams[0]), next(streams[1]), next(streams[0])]
    streams[2].close()
    next_llm = LLM.from_engine(fake_engine(tokenizer=llm.tokenizer))
    whole = [next_llm.generate("abc", each)[0].outputs[0].text for each in params]
    assert first[0] + first[2] + "".join(streams[0]) == whole[0]
    assert first[1] + "".join(streams[1]) == whole[1]


def test_leaving_a_stream_early_aborts_the_request(llm: LLM) -> None:
    for _ in llm.generate_stream("abc", SamplingParams(max_tokens=100)):
        break
    assert not llm.has_unfinished()
    assert llm.stats()["requests_ended"]["abort"] == 1


def test_a_stream_has_one_choice(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="n is 2"):
        llm.generate_stream("abc", SamplingParams(n=2))


def test_requests_by_hand(llm: LLM) -> None:
    rid = llm.add_request([1, 2], GREEDY)
    other = llm.add_request("abc", SamplingParams(max_tokens=400), request_id="mine", priority=3)
    assert other == "mine"
    seen: list[int] = []
    done: dict[str, Any] = {}
    while llm.has_unfinished():
        for output in llm.step():
            if output.request_id == rid:
                seen.append(len(output.outputs[0].token_ids))
            if output.finished:
                done[output.request_id] = output
        if rid in done:
            assert llm.abort("mine") is ("mine" not in done)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert done[rid].outputs[0].token_ids == expected_answer([1, 2], GREEDY)
    assert done["mine"].outputs[0].finish_reason == "abort"
    assert llm.step() == []
    assert llm.abort("mine") is False


def test_requests_by_hand_survive_a_batch_between_their_steps(llm: LLM) -> None:
    rid = llm.add_request([1, 2], GREEDY)
    llm.generate([[3]] * 3, SamplingParams(temperature=0, max_tokens=20))
    (output,) = llm.step()
    assert (output.request_id, output.finished) == (rid, True)
    assert output.outputs[0].token_ids == expected_answer([1, 2], GREEDY)


# Conversations ------------------------------------------------------------------------------------------------------


def test_chat_goes_through_the_template(llm: LLM, tokenizer: Tokenizer) -> None:
    hello = [{"role": "user", "content": "Hi"}]
    (output,) = llm.chat(hello, GREEDY)
    assert output.prompt_token_ids == tokenizer.encode("[user]Hi>")
    two = llm.chat([hello, [*hello, {"role": "assistant", "content": "Ho"}]], GREEDY, add_generation_prompt=False)
    assert [output.prompt_token_ids for output in two] == [
        tokenizer.encode("[user]Hi"),
        tokenizer.encode("[user]Hi[assistant]Ho"),
    ]


def test_a_bad_conversation_fails_alone(llm: LLM) -> None:
    good = [{"role": "user", "content": "Hi"}]
    outputs = llm.chat([good, [{"role": "user", "content": "\ud800"}], good], GREEDY)
    assert [output.error is None for output in outputs] == [True, False, True]
    with pytest.raises((InvalidRequestError, TemplateError)):
        llm.chat([{"role": "user", "content": "\ud800"}], GREEDY)


# Ctrl-C and the end -------------------------------------------------------------------------------------------------


def interrupting(how: Callable[[], None]) -> FakeRunner:
    def hook(plan: StepPlan) -> None:
        if plan.step == 5:
            how()

    return FakeRunner(hook=hook)


def control_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def raise_at_once() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("how", [control_c, raise_at_once])
def test_ctrl_c_aborts_the_batch_and_leaves_the_llm_usable(how: Callable[[], None]) -> None:
    llm = LLM.from_engine(fake_engine(interrupting(how), max_num_seqs=2))
    with pytest.raises(KeyboardInterrupt):
        llm.generate([[1], [2], [3]], SamplingParams(max_tokens=50))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not llm.has_unfinished()
    stats = llm.stats()
    assert stats["requests_ended"]["abort"] == 3
    assert stats["blocks_used"] == 0
    assert llm.generate([1], GREEDY)[0].outputs[0].token_ids == expected_answer([1], GREEDY)


def test_ctrl_c_loses_no_output_of_requests_by_hand() -> None:
    llm = LLM.from_engine(fake_engine(interrupting(control_c)))
    rid = llm.add_request([1], GREEDY)
    for _ in range(5):
        llm.step()
    with pytest.raises(KeyboardInterrupt):
        llm.step()
    (output,) = llm.step()
    assert (output.request_id, output.finished) == (rid, True)
    assert output.outputs[0].token_ids == expected_answer([1], GREEDY)


def test_the_bar_of_a_batch_counts_requests_and_tokens(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    llm.generate([[1], [2], [3]], GREEDY, use_tqdm=True)
    assert "3/3" in screen.getvalue()
    assert "tok/s" in screen.getvalue()
    before = screen.getvalue()
    llm.generate([[1], [2], [3]], GREEDY, use_tqdm=False)
    llm.generate([1], GREEDY)
    assert screen.getvalue() == before


def test_a_second_ctrl_c_does_not_wait() -> None:
    reached = []

    def impatient() -> None:
        with interrupts_held():
            control_c()
            reached.append("after the first")
            control_c()
            reached.append("after the second")

    with pytest.raises(KeyboardInterrupt):
        impatient()
    assert reached == ["after the first"]


def test_a_handler_of_the_programs_own_is_left_alone() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_held():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_close(tokenizer: Tokenizer) -> None:
    runner = FakeRunner()
    with LLM.from_engine(fake_engine(runner, tokenizer=tokenizer)) as llm:
        stream = llm.generate_stream("abc", GREEDY)
        next(stream)
    llm.close()
    assert runner.closed == 1
    for call in (llm.stats, lambda: llm.generate("a"), lambda: next(stream)):
        with pytest.raises((KvikError, StopIteration)):
            call()
