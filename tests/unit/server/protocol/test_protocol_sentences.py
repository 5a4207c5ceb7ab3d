"""Clients read sentences of ours: what a library or a chat template wrote does not reach them."""

from __future__ import annotations

import pytest

from kvik.errors import InvalidRequestError, TemplateError
from kvik.server.protocol.errors import from_exception
from kvik.server.protocol.sentences import NO_TEMPLATE, own_sentence
from kvik.text import grammar
from kvik.text.chat_template import ChatTemplate

MESSAGES = [{"role": "user", "content": "my secret"}]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("{{ raise_exception('no ' + messages[0].content) }}", "the chat template refuses this conversation"),
        ("{{ messages[0].content.secret.more }}", "the chat template failed"),
        ("a\nb\n{% secret %}", "the chat template has an error in line 3"),
        ("{% for i in range(9999999) %}{% endfor %}", "the chat template failed"),
    ],
)
def test_what_a_template_says_stays_inside(source: str, told: str) -> None:
    with pytest.raises(TemplateError) as failed:
        ChatTemplate(source).render(MESSAGES)
    error = from_exception(failed.value)
    assert (error.status, error.param) == (400, "messages")
    assert error.message.startswith(told)
    assert "secret" not in error.message
    if ": " in str(failed.value):
        assert error.message == told
        assert error.detail == str(failed.value)


def test_what_is_ours_of_a_template_is_told_and_its_place_on_disk_is_not() -> None:
    limit = "the chat template wrote more than 5 characters, which is the limit"
    assert from_exception(TemplateError(limit)).message == limit
    assert from_exception(TemplateError("/home/somebody/model has no chat template")).message == NO_TEMPLATE
    named = from_exception(TemplateError("there is no chat template named 'default'; the checkpoint has: secret"))
    assert named.message == "there is no chat template named 'default'"


def test_what_the_library_says_of_a_grammar_stays_inside() -> None:
    with pytest.raises(InvalidRequestError) as failed:
        grammar.lark('start: "a" b\n', param="guided_grammar")
    assert str(failed.value).startswith("the grammar cannot be used: ")
    error = from_exception(failed.value)
    assert (error.status, error.param) == (400, "guided_grammar")
    assert error.message.partition(" (line")[0] == "the grammar cannot be used"
    assert error.detail == str(failed.value)


def test_the_place_is_told_where_it_is_known() -> None:
    assert own_sentence("the schema is no JSON: Expecting value: line 1 column 5 (char 4)") == (
        "the schema is no JSON (line 1, column 5)"
    )
    assert (
        own_sentence("the grammar cannot be used: at 3(12): unknown")
        == "the grammar cannot be used (line 3, column 12)"
    )
    assert own_sentence("the grammar cannot be used: in line 7 of it") == "the grammar cannot be used (line 7)"


def test_what_is_ours_after_a_colon_is_told() -> None:
    schema = {"oneOf": [{"type": "object", "properties": {"a": {}}}, {"type": "object", "properties": {"b": {}}}]}
    with pytest.raises(InvalidRequestError, match="branches of oneOf") as failed:
        grammar.json_schema(schema)
    error = from_exception(failed.value)
    assert error.message == str(failed.value)
    assert error.detail is None
