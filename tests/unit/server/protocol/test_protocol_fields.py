"""Every field of both endpoints: what is refused and by which name, what null means, what is honoured or ignored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from protocol_toys import HELLO, TERMS, chat, completion

from kvik.request import SamplingParams
from kvik.server.protocol import conversation, fields, structure
from kvik.server.protocol.chat import ChatCall, read_chat
from kvik.server.protocol.completions import read_completion
from kvik.server.protocol.errors import ApiError
from kvik.server.protocol.terms import Terms

TOOL = {"type": "function", "function": {"name": "f"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}


def refused(read: Callable[..., Any], body: dict[str, Any]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(body, TERMS)
    assert caught.value.status == 400
    assert len(caught.value.body()) <= 4096
    return caught.value


MISSING = "no such field"
"""Stands for a field that is left out."""
BOTH: list[tuple[str, Any]] = [
    *(("model", value) for value in (MISSING, None, "", 7, ["toy"], "x" * 10_000_000)),
    *(("temperature", value) for value in (-0.1, 2.1, "1", True, [], 10**400)),
    *(("top_p", value) for value in (0, 1.1, -1, "0.5")),
    *(("top_k", value) for value in (-2, 1.5, 2**31, True, "5")),
    *(("min_p", value) for value in (-1, 1.1)),
    *(("repetition_penalty", value) for value in (0, -1, 1e9)),
    *(("n", value) for value in (0, 129, 2**31, 1.0, "2")),
    *(("best_of", value) for value in (0, 2, 129, "1")),
    *(("max_tokens", value) for value in (-1, 2**63, "5", 1.5, True)),
    *(("min_tokens", value) for value in (-1, 17, "1")),
    *(("stop", value) for value in ("", [], [""], ["a"] * 5, ["x" * 2**20], 7, [7], [None], {})),
    *(("stop_token_ids", value) for value in (7, [-1], [300], [1.5], [True], ["1"], [2**63], [1] * 257)),
    *(("seed", value) for value in (2**63, -(2**63) - 1, 1.5, "1", True)),
    *(("presence_penalty", value) for value in (2.1, -2.1, "1")),
    *(("frequency_penalty", value) for value in (2.1, -2.1, False)),
    *(("logit_bias", value) for value in ([], {"foo": 1}, {"-1": 1}, {"300": 1}, {"1": 1e9}, {"1": "2"}, {"": 1})),
    *(("logit_bias", value) for value in ({str(i): 1 for i in range(300_000)}, {"99999999999": 1}, {"١": 1})),
    *(("ignore_eos", value) for value in (1, "true")),
    *(("deadline_s", value) for value in (0, -1, 1e9, "5")),
    *(("priority", value) for value in (101, -101, 1.5)),
    *(("stream", value) for value in ("yes", 1)),
    *(("stream_options", value) for value in ({"include_usage": True}, {}, 7)),
    *(("suffix", value) for value in ("x", 7)),
    *(("skip_special_tokens", value) for value in (False, 1)),
    ("prompt_logprobs", 0),
    ("cache_salt", "x"),
    ("chat_template", "{{ messages }}"),
    ("use_beam_search", True),
    ("structured_outputs", {"json": {}}),
    ("user", 7),
    ("metadata", "x"),
    ("store", "yes"),
    ("verbosity", "loud"),
]

CHAT: list[tuple[str, Any, str]] = [
    *(("messages", value, "messages") for value in (MISSING, None, [], "hi", {}, HELLO * 100_000)),
    ("messages", [123], "messages[0]"),
    ("messages", [{}], "messages[0].role"),
    ("messages", [{"role": 123, "content": "x"}], "messages[0].role"),
    ("messages", [{"role": "wizard", "content": "x"}], "messages[0].role"),
    ("messages", [{"role": "user"}], "messages[0].content"),
    ("messages", [{"role": "user", "content": None}], "messages[0].content"),
    ("messages", [*HELLO, {"role": "user", "content": 123}], "messages[1].content"),
    ("messages", [{"role": "user", "content": []}], "messages[0].content"),
    ("messages", [{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
    ("messages", [{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
    (
        "messages",
        [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
        "messages[0].content[0].type",
    ),
    ("messages", [{"role": "user", "content": [{"type": "refusal", "refusal": "x"}]}], "messages[0].content[0].type"),
    ("messages", [{"role": "user", "content": "x", "name": 5}], "messages[0].name"),
    ("messages", [{"role": "tool", "content": "x"}], "messages[0].tool_call_id"),
    ("messages", [{"role": "tool", "tool_call_id": "a"}], "messages[0].content"),
    ("messages", [{"role": "assistant"}], "messages[0].content"),
    ("messages", [{"role": "assistant", "content": "x", "audio": {"id": "a"}}], "messages[0].audio"),
    ("messages", [{"role": "assistant", "tool_calls": [{}]}], "messages[0].tool_calls[0].type"),
    ("messages", [{"role": "assistant", "tool_calls": {}}], "messages[0].tool_calls"),
    *(("max_tokens", value, "max_tokens") for value in (0,)),
    *(("max_completion_tokens", value, "max_completion_tokens") for value in (0, -1, "5", 2**63)),
    *(("logprobs", value, "logprobs") for value in (1, "true", 21)),
    *(("top_logprobs", value, "top_logprobs") for value in (1, 21, -1, True)),
    ("echo", True, "echo"),
    ("audio", {"voice": "x"}, "audio"),
    ("modalities", ["text", "audio"], "modalities"),
    ("functions", [{"name": "f"}], "functions"),
    ("function_call", "auto", "function_call"),
    ("web_search_options", {}, "web_search_options"),
    ("prediction", "x", "prediction"),
    ("reasoning_effort", "much", "reasoning_effort"),
    *(("chat_template_kwargs", value, "chat_template_kwargs") for value in (7, {"messages": []}, {"a b": 1}, {"": 1})),
    ("chat_template_kwargs", {f"x{i}": 1 for i in range(33)}, "chat_template_kwargs"),
    ("continue_final_message", True, "continue_final_message"),
    ("tools", {}, "tools"),
    ("tools", [TOOL] * 129, "tools"),
    ("tools", [7], "tools[0]"),
    ("tools", [{"type": "custom"}], "tools[0].type"),
    ("tools", [{"type": "function"}], "tools[0].function"),
    *(
        ("tools", [{"type": "function", "function": {"name": name}}], "tools[0].function.name")
        for name in ("two words", "", "x" * 65, 7, None, "naïve", "x\n")
    ),
    ("tools", [TOOL, TOOL], "tools[1].function.name"),
    ("tools", [{"type": "function", "function": {"name": "f", "parameters": 7}}], "tools[0].function.parameters"),
    ("tools", [{"type": "function", "function": {"name": "f", "strict": 1}}], "tools[0].function.strict"),
    ("tool_choice", "required", "tool_choice"),
    ("tool_choice", "maybe", "tool_choice"),
    ("tool_choice", {"type": "function"}, "tool_choice.function"),
    ("parallel_tool_calls", "no", "parallel_tool_calls"),
]

STRUCTURED: list[tuple[str, Any, str]] = [
    ("response_format", 7, "response_format"),
    ("response_format", {}, "response_format.type"),
    ("response_format", {"type": "hiccup"}, "response_format.type"),
    ("response_format", {"type": "json_schema"}, "response_format.json_schema"),
    ("response_format", {"type": "json_schema", "json_schema": {"schema": {}}}, "response_format.json_schema.name"),
    *(
        (
            "response_format",
            {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
            "response_format.json_schema.schema",
        )
        for schema in (123, "x", [], {"enum": ["x" * 100] * 10_000})
    ),
    *(("guided_json", value, "guided_json") for value in (7, "not json", "7", {"enum": ["x" * 2**20]})),
    *(("guided_choice", value, "guided_choice") for value in ("x", [], [""], [7], ["x"] * 1025)),
    *(("guided_regex", value, "guided_regex") for value in ("", 7, "x" * 2**15)),
    *(("guided_grammar", value, "guided_grammar") for value in ("", 7, "x" * 2**17)),
]

COMPLETION: list[tuple[str, Any, str]] = [
    *(("prompt", value, "prompt") for value in (MISSING, None, "", [], [[]], [""], ["a", ""], 7, {}, True)),
    *(("prompt", value, "prompt") for value in ([-1], [300], [2**63], [1.5], [True], [1, "a"], ["a", 1], ["a", [1]])),
    *(("prompt", value, "prompt") for value in ([[1], [-1]], [[1], ["a"]], [[[1]]], [None], ["a"] * 1025)),
    *(("logprobs", value, "logprobs") for value in (6, 21, -1, True, 1.5)),
    *(("echo", value, "echo") for value in (1, "yes")),
    ("add_special_tokens", 1, "add_special_tokens"),
]


def with_field(name: str, value: Any, **body: Any) -> dict[str, Any]:
    body = {"model": "toy"} | body | {name: value}
    return {key: each for key, each in body.items() if each != MISSING}


def named(row: Any) -> str:
    return repr(row)[:50].encode("ascii", "replace").decode()


@pytest.mark.parametrize(("name", "value"), BOTH, ids=named)
def test_what_both_endpoints_refuse(name: str, value: Any) -> None:
    assert refused(read_completion, with_field(name, value, prompt="x")).param == name
    if (name, value) != ("min_tokens", 17):
        assert refused(read_chat, with_field(name, value, messages=HELLO)).param == name


@pytest.mark.parametrize(("name", "value", "param"), CHAT, ids=named)
def test_what_a_chat_refuses(name: str, value: Any, param: str) -> None:
    assert refused(read_chat, with_field(name, value, messages=HELLO)).param == param


@pytest.mark.parametrize(("name", "value", "param"), STRUCTURED, ids=named)
def test_which_structures_are_refused(name: str, value: Any, param: str) -> None:
    assert refused(read_chat, with_field(name, value, messages=HELLO)).param == param
    assert refused(read_completion, with_field(name, value, prompt="x")).param == param


@pytest.mark.parametrize(("name", "value", "param"), COMPLETION, ids=named)
def test_what_a_completion_refuses(name: str, value: Any, param: str) -> None:
    error = refused(read_completion, with_field(name, value, prompt="x"))
    assert (error.param, error.code) == (param, None)


LONG = [[1] * 64, [1] * 65, [[1], [1] * 64], "x" * 50_000_000, ["x" * 2**22, "x"]]


@pytest.mark.parametrize("prompt", LONG, ids=named)
def test_prompts_that_cannot_fit_are_too_long(prompt: Any) -> None:
    error = refused(read_completion, {"model": "toy", "prompt": prompt})
    assert (error.param, error.code) == ("prompt", "context_length_exceeded")
    assert error.message.startswith("This model's maximum context length is 64 tokens")
    assert "expected at most" in error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2, "temperature": 0}, "n"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_regex"),
        ({"response_format": SCHEMA, "guided_json": {}}, "guided_json"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"logprobs": False, "top_logprobs": 2}, "top_logprobs"),
        ({"stream": False, "stream_options": {}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields: dict[str, Any], param: str) -> None:
    assert refused(read_chat, {"model": "toy", "messages": HELLO, **fields}).param == param


def test_too_much_text_is_refused_before_a_tokenizer_sees_it() -> None:
    terms = Terms(max_text_chars=10)
    for body in ({"messages": HELLO * 3}, {"messages": HELLO, "tools": [TOOL]}):
        with pytest.raises(ApiError) as caught:
            read_chat({"model": "toy", **body}, terms)
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


def test_prompts_times_choices_are_limited() -> None:
    body = {"model": "toy", "prompt": ["x"] * 9, "n": 128}
    assert refused(read_completion, body).param == "n"


CHAT_FIELDS = {*fields.SAMPLING, *fields.ONLY, *fields.ADVISORY, *structure.FIELDS, *conversation.FIELDS} - {"messages"}
CHAT_FIELDS |= {
    "best_of",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "logprobs",
    "top_logprobs",
}


@pytest.mark.parametrize("name", sorted(CHAT_FIELDS))
def test_null_means_the_default(name: str) -> None:
    assert chat(**{name: None}) == chat()
    if name not in (*conversation.FIELDS, "max_completion_tokens", "top_logprobs"):
        assert completion(**{name: None}) == completion()


def test_defaults() -> None:
    assert chat().params == SamplingParams(max_tokens=None)
    assert completion().params == SamplingParams(max_tokens=16)
    assert not chat().stream
    assert (chat().structure, chat().rules, chat().priority) == (None, None, 0)
    assert chat().conversation.add_generation_prompt
    assert completion().add_special_tokens


def test_the_makers_defaults_are_for_calls_that_say_nothing() -> None:
    terms = Terms(sampling_defaults={"temperature": 0.6, "top_k": 20})
    params = read_chat({"model": "toy", "messages": HELLO, "top_k": 5, "temperature": None}, terms).params
    assert (params.temperature, params.top_k) == (0.6, 5)


def test_several_choices_of_a_model_that_is_greedy_by_default_need_a_temperature() -> None:
    terms, body = Terms(sampling_defaults={"temperature": 0.0}), {"model": "toy", "messages": HELLO, "n": 2}
    with pytest.raises(ApiError, match="n is 2 with temperature 0, this model's default") as caught:
        read_chat(body, terms)
    assert (caught.value.status, caught.value.param) == (400, "n")
    assert read_chat({**body, "temperature": 0.5}, terms).params.temperature == 0.5


def test_everything_honoured_reaches_the_parameters() -> None:
    given = {
        **{"n": 2, "temperature": 2, "top_p": 1, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "seed": -1},
        **{"presence_penalty": -2, "frequency_penalty": 2.0, "stop": "x", "stop_token_ids": [1, 2], "min_tokens": 1},
        **{"ignore_eos": True, "logit_bias": {"7": -100, "8": 1.5}, "max_tokens": 9, "deadline_s": 2},
    }
    expected = SamplingParams(**{**given, "logit_bias": {7: -100, 8: 1.5}})
    assert completion(**given).params == expected
    assert chat(**given).params == expected
    assert chat(logprobs=True, top_logprobs=20).params.logprobs == 20
    assert chat(logprobs=True).params.logprobs == 0
    assert chat(max_tokens=5, max_completion_tokens=7).params.max_tokens == 7
    assert (completion(logprobs=5).params.logprobs, completion(logprobs=5).params.prompt_logprobs) == (5, None)
    assert completion(logprobs=1, echo=True).params.prompt_logprobs == 1
    assert completion(max_tokens=0).scoring
    assert chat(priority=-3).priority == -3
    assert chat(stream=True, stream_options={"include_usage": True, "include_obfuscation": False}).include_usage


def test_what_only_advises_is_accepted_and_what_nobody_knows_is_named() -> None:
    advice = {
        **{"user": "u", "safety_identifier": "s", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"},
        **{"prompt_cache_key": "k", "verbosity": "low", "prediction": {"type": "content", "content": "x"}},
        **{"parallel_tool_calls": True, "modalities": ["text"], "functions": [], "best_of": 1, "suffix": ""},
    }
    assert chat(**advice) == chat()
    assert chat(**advice, frobnicate=1, **{"x\n" * 100: 2}).ignored == (
        "'frobnicate'",
        chat(**{"x\n" * 100: 2}).ignored[0],
    )
    assert len(chat(**{f"x{i}": 1 for i in range(1000)}).ignored) == fields.MAX_IGNORED
    assert completion(frobnicate=1).ignored == ("'frobnicate'",)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a\0b", ["a\0b"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 299]], [[1], [2, 299]]),
        ([1] * 63, [[1] * 63]),
        ("<|im_start|></s>", ["<|im_start|></s>"]),
        (["a"] * 1024, ["a"] * 1024),
    ],
)
def test_prompts_of_all_four_kinds(prompt: Any, prompts: Any) -> None:
    assert completion(prompt=prompt).prompts == prompts


def messages(*given: Any) -> Any:
    return chat(messages=list(given)).conversation.messages


def test_messages_become_what_templates_expect() -> None:
    assert messages(
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "x": 1},
        {"role": "user", "content": "<|im_start|>\0", "name": "Ann"},
        {"role": "assistant", "content": "hm", "reasoning_content": "so", "tool_calls": []},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "content": None, "refusal": "no"},
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "7"}]},
        {"role": "function", "name": "f", "content": "8"},
    ) == [
        {"role": "system", "content": "a\nb"},
        {"role": "user", "content": "<|im_start|>\0", "name": "Ann"},
        {"role": "assistant", "content": "hm", "reasoning_content": "so"},
        {"role": "assistant", "content": "no"},
        {"role": "assistant", "content": "no"},
        {"role": "tool", "tool_call_id": "c", "content": "7"},
        {"role": "tool", "content": "8", "name": "f"},
    ]


@pytest.mark.parametrize(
    ("written", "read"),
    [('{"a": 1}', {"a": 1}), ("", {}), ({"a": 1}, {"a": 1}), ("{broken", "{broken"), ("[1]", "[1]")],
)
def test_arguments_of_earlier_calls_become_objects_where_they_are(written: Any, read: Any) -> None:
    function = {"name": "f", "arguments": written}
    call = {"id": "c", "type": "function", "function": function}
    expected = {**call, "function": {"name": "f", "arguments": read}}
    assert messages({"role": "assistant", "tool_calls": [call]}) == [
        {"role": "assistant", "content": "", "tool_calls": [expected]}
    ]
    [old] = messages({"role": "assistant", "content": None, "function_call": function})
    assert old["tool_calls"][0]["function"] == expected["function"]


def kind(call: ChatCall) -> tuple[str, Any, str] | None:
    return (call.structure.kind, call.structure.payload, call.structure.param) if call.structure else None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, ("json_object", None, "response_format")),
        ({"response_format": SCHEMA}, ("json_schema", {"type": "object"}, "response_format.json_schema.schema")),
        ({"guided_json": '{"type": "array"}'}, ("json_schema", {"type": "array"}, "guided_json")),
        ({"guided_json": {"type": "hiccup"}}, ("json_schema", {"type": "hiccup"}, "guided_json")),
        ({"guided_regex": "(a+)+$"}, ("regex", "(a+)+$", "guided_regex")),
        ({"guided_grammar": 'start: "x"'}, ("grammar", 'start: "x"', "guided_grammar")),
        ({"guided_choice": ["a", "b"]}, ("choice", ("a", "b"), "guided_choice")),
    ],
)
def test_structures(fields: dict[str, Any], expected: Any) -> None:
    call = chat(**fields)
    assert kind(call) == expected
    assert completion(**fields).structure == call.structure
    assert call.param_names == {"prompt": "messages"} | ({"grammar": expected[2]} if expected else {})


def test_tools_and_what_may_be_called() -> None:
    free = chat(tools=[TOOL])
    assert free.structure is None
    assert free.conversation.tools == [
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    ]
    assert chat(tools=[TOOL], tool_choice="none").conversation.tools is None
    assert chat(tools=[], tool_choice="auto").rules is None
    for choice in ("required", {"type": "function", "function": {"name": "f"}}):
        forced = chat(tools=[TOOL], tool_choice=choice, parallel_tool_calls=False)
        assert forced.structure is not None
        assert forced.structure.kind == "tools"
        assert forced.structure.payload == forced.rules
        assert forced.rules is not None
        assert (forced.rules.name, forced.rules.parallel) == (None if choice == "required" else "f", False)


def test_a_free_choice_of_tools_beside_a_form_for_the_text() -> None:
    strict = chat(tools=[{"type": "function", "function": {"name": "f", "strict": True}}])
    assert strict.structure is not None
    assert strict.structure.payload.strict == {"f"}
    assert strict.structure.payload.content is None
    both = chat(tools=[TOOL], response_format=SCHEMA)
    assert both.structure is not None
    assert (both.structure.kind, both.structure.payload.choice) == ("tools", "auto")
    assert both.structure.payload.content.kind == "json_schema"


def test_variables_of_the_template() -> None:
    assert chat(chat_template_kwargs={"enable_thinking": False}).conversation.variables == {"enable_thinking": False}
    none = chat(reasoning_effort="none").conversation.variables
    assert none == {"reasoning_effort": "none", "enable_thinking": False}
    given = chat(reasoning_effort="none", chat_template_kwargs={"enable_thinking": True}).conversation.variables
    assert given["enable_thinking"] is True


def test_a_conversation_may_end_with_the_assistant() -> None:
    last = [*HELLO, {"role": "assistant", "content": "Well"}]
    assert chat(messages=last).conversation.add_generation_prompt
    goes_on = chat(messages=last, continue_final_message=True).conversation
    assert (goes_on.add_generation_prompt, goes_on.continue_final_message) == (False, True)
