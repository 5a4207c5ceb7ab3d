"""Rendering: what templates may expect, and what a hostile one must not get."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from kvik.errors import TemplateError
from kvik.text.chat_template import ChatTemplate, TemplateLimits
from kvik.text.tokenizer import Tokenizer

TEMPLATES = Path("../shared/data/tokenizers")
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Wetter in <Ort> & 'überall'",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": " where "},
                "days": {"type": "array", "items": {"type": "integer"}, "description": "when"},
            },
            "required": ["place"],
        },
    },
}
TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello!"},
    {"role": "user", "content": "  and now? \n"},
]
CALLS = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"place": "Ørsta"}}}],
    },
    {"role": "tool", "content": '{"rain": true}'},
    {"role": "tool", "content": "more"},
]
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "plain": {"messages": TURNS[:1]},
    "multi-turn": {"messages": TURNS},
    "no generation prompt": {"messages": TURNS[:2], "add_generation_prompt": False},
    "system": {"messages": [{"role": "system", "content": "Be brief."}, *TURNS]},
    "tools": {"messages": [{"role": "system", "content": "S"}, *TURNS], "tools": [TOOL, TOOL]},
    "tool calls": {"messages": CALLS, "tools": [TOOL]},
    "no thinking": {"messages": TURNS, "enable_thinking": False},
}


def render(source: str, limits: TemplateLimits | None = None, **variables: Any) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}, limits=limits).render([{"role": "user"}], **variables)


@pytest.fixture(scope="module")
def theirs(qwen3_directory: Path) -> Any:
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(qwen3_directory)


@pytest.mark.torch
@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("file", [None, "template_chatml.jinja", "tool_chat_template_hermes.jinja"])
def test_renders_and_encodes_as_transformers_does(qwen3: Tokenizer, theirs: Any, name: str, file: str | None) -> None:
    source = theirs.chat_template if file is None else (TEMPLATES / file).read_text()
    ours = qwen3 if file is None else qwen3.with_chat_template(source)
    conversation = {"add_generation_prompt": True} | CONVERSATIONS[name]
    options = {key: value for key, value in conversation.items() if key != "messages"}
    expected = theirs.apply_chat_template(conversation["messages"], chat_template=source, tokenize=False, **options)
    assert ours.render_chat(**conversation) == expected
    assert ours.encode_chat(**conversation) == theirs(expected, add_special_tokens=False)["input_ids"]


def test_special_tokens_and_variables_reach_the_template() -> None:
    assert render("{{ bos_token }}{{ eos_token }}{{ add_generation_prompt }}{{ x }}", x=3) == "<s>True3"


def test_documents_and_tools_are_none_unless_given() -> None:
    assert render("{{ documents is none }} {{ tools is none }}") == "True True"
    assert render("{{ documents[0].text }}", documents=[{"text": "d"}]) == "d"


def test_tojson_keeps_characters_and_takes_options() -> None:
    value = {"b": "<ø> & 'q'", "a": [1, None, True]}
    assert render("{{ v | tojson }}", v=value) == '{"b": "<ø> & \'q\'", "a": [1, null, true]}'
    assert render("{{ v | tojson(indent=1, sort_keys=true) }}", v={"b": 1, "a": 2}) == '{\n "a": 2,\n "b": 1\n}'
    assert render("{{ v | tojson(ensure_ascii=true, separators=(',', ':')) }}", v=["ø", 1]) == '["\\u00f8",1]'


def test_strftime_now_uses_the_clock_given() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", now=lambda: datetime(2024, 7, 26))
    assert template.render([]) == "26 Jul 2024"


def test_whitespace_loop_controls_and_generation_blocks() -> None:
    source = """{% for i in range(9) %}
    {% if i == 1 %}
        {% continue %}
    {% endif %}
    {% if i == 3 %}{% break %}{% endif %}
{% generation %}
{{ i }}{{ '.' if not loop.last }}
{% endgeneration %}
{% endfor %}"""
    assert render(source) == "0.\n2.\n"


def test_loop_variables_survive_the_gates() -> None:
    source = "{% for x in v %}{{ loop.index0 }}/{{ loop.length }}{{ loop.previtem }}{{ loop.nextitem }};{% endfor %}"
    assert render(source, v=["a", "b"]) == "0/2b;1/2a;"
    assert render("{% for k, v in d.items() %}{{ k ~ v ~ 1 }}{% else %}none{% endfor %}", d={"a": None}) == "aNone1"
    assert render("{% for x in [] %}{% else %}none{% endfor %}{% for x in nothing %}{% endfor %}") == "none"


def test_namespaces_macros_and_sets() -> None:
    assert render("{% set a | upper | trim %} x{{ 1 }} {% endset %}{{ a[1:] ~ a[:1] }}") == "1X"
    source = """{%- macro m(x, y=2) %}{{ x }}{{ y }}{{ caller() if caller }}{% endmacro -%}
    {%- set ns = namespace(n=0) %}{% for i in range(4) %}{% set ns.n = ns.n + i %}{% endfor -%}
    {{- ns.n }}{{ m('a') }}{% call m(1, y=3) %}in{% endcall %}{% set t %}b{{ 1 }}{% endset %}{{ t }}
    {{- dict(a=1).a }}{{ ['x', ns.n] | join(', ') }}{{ 'a-b'.replace('-', '+').split('+') | map('upper') | join }}"""
    assert render(source) == "6a213inb11x, 6AB"


def test_refusal_by_the_template_is_its_message() -> None:
    with pytest.raises(TemplateError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for %}", "line 1"),
        ("a\n{{ x", "line 2"),
        ("{{ x | nosuchfilter }}", "nosuchfilter"),
        ("{{ messages[0].a.b }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ nothing | tojson }}", "TypeError"),
        ("{% include 'x' %}", "failed"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ ''.__class__.mro() }}", "SecurityError"),
        ("{{ (1).to_bytes(9) }}", "SecurityError"),
        ("{% for a in range(2) %}" * 25 + "{% endfor %}" * 25, "cannot be compiled"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "cannot be compiled"),
        ("x" * (2**20 + 1), "characters"),
    ],
)
def test_whatever_goes_wrong_is_a_template_error(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        render(source)


LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}"
HOSTILE = {
    "silent nested loops": LOOPS + "{% endfor %}{% endfor %}",
    "nested loops that print": LOOPS + "x{% endfor %}{% endfor %}",
    "loops hidden by a condition": "{% for a in range(99999) %}"
    "{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "loops inside a macro": "{% macro m() %}" + LOOPS + "x{% endfor %}{% endfor %}{% endmacro %}{{ m() }}",
    "loops over mapped ranges": "{% for a in range(99999) %}"
    "{{ range(99999) | map('string') | list | length }}{% endfor %}",
    "endless recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "branching recursion": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "repetition": "{{ 'x' * 10**12 }}",
    "repeated list": "{{ [0] * 10**12 }}",
    "list of long strings": "{% set s = 'x' * 1000000 %}{{ ([s] * 100000) | join }}",
    "padding": "{{ 'x'.ljust(10**12) }}",
    "padding by format": "{{ '{:999999999999}'.format(1) }}",
    "padding by a computed width": "{{ '{:{}}'.format(1, 10**12) }}",
    "padding by percent": "{{ '%999999999999d' % 1 }}",
    "percent with a starred width": "{{ '%*d' % (10**9, 1) }}",
    "indent": "{{ 'x' | indent(10**12, true) }}",
    "json indent": "{{ [1] | tojson(indent=10**12) }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "squaring": "{% set ns = namespace(n=9) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "doubling by tilde": "{% set ns = namespace(s='x') %}{% for i in range(99) %}"
    "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "doubling by plus": "{% set ns = namespace(s='x') %}{% for i in range(99) %}"
    "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "doubling by join": "{% set ns = namespace(s='x') %}{% for i in range(99) %}"
    "{% set ns.s = [ns.s, ns.s]|join %}{% endfor %}",
    "doubling by replace": "{% set ns = namespace(s='xx') %}{% for i in range(99) %}"
    "{% set ns.s = ns.s.replace('x', ns.s) %}{% endfor %}",
    "doubling by set block": "{% set ns = namespace(s='x') %}{% for i in range(99) %}"
    "{% set t %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = t %}{% endfor %}",
    "doubling lists": "{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "nested lists": "{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}",
    "nested dicts": "{% set ns = namespace(s=1) %}{% for i in range(99) %}"
    "{% set ns.s = dict(a=ns.s, b=ns.s) %}{% endfor %}"
    "{{ ns.s }}",
    "doubling by filter": "{% set ns = namespace(s='xx') %}{% for i in range(99) %}"
    "{% set ns.s = ns.s | replace('x', ns.s) %}{% endfor %}",
    "doubling by join method": "{% set ns = namespace(s='x') %}{% for i in range(99) %}"
    "{% set ns.s = ns.s.join([ns.s, ns.s, ns.s]) %}{% endfor %}",
    "splitting": "{{ ('x ' * 4000000).split(' ') | length }}",
    "many long variables": "{% set s = 'x' * 8000000 %}" + "{% set a = s[1:] %}" * 2000,
    "many long blocks": "{% set s = 'x' * 8000000 %}" + "{% set a %}{{ s }}{% endset %}" * 2000,
    "long output": "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_ends_in_a_template_error(name: str) -> None:
    with pytest.raises(TemplateError, match=r"limit|more than|too deeply"):
        render(HOSTILE[name], TemplateLimits(seconds=1.0, steps=300_000))


def test_the_deadline_holds_whatever_the_steps() -> None:
    with pytest.raises(TemplateError, match="time limit"):
        render(HOSTILE["silent nested loops"], TemplateLimits(seconds=0.05, steps=10**12))


def test_the_step_limit_holds_whatever_the_time() -> None:
    with pytest.raises(TemplateError, match="limit of steps"):
        render(HOSTILE["silent nested loops"], TemplateLimits(seconds=1e9, steps=1000))


def test_the_output_limit_is_exact() -> None:
    assert render("{{ 'x' * 10 }}", TemplateLimits(output_chars=10)) == "x" * 10
    with pytest.raises(TemplateError, match="more than 9 characters"):
        render("{{ 'x' * 10 }}", TemplateLimits(output_chars=9))


def test_templates_are_chosen_by_name() -> None:
    template = ChatTemplate({"default": "d", "tool_use": "t"})
    assert template.render([]) == "d"
    assert template.render([], tools=[{"name": "f"}]) == "t"
    assert ChatTemplate({"default": "d"}).render([], tools=[{"name": "f"}]) == "d"
    with pytest.raises(TemplateError, match="other"):
        ChatTemplate({"other": "o"}).render([])
