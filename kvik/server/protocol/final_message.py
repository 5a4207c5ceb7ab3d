"""Continuing the final message: a prompt that ends inside the last message instead of opening a new one.

A template closes every message it writes. So the conversation is rendered without an opening for an answer, and the
tokens that stand for what comes after the last message's text are cut off. Where no token ends at that place the
template cannot be continued, which is said rather than approximated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvik.server.protocol.errors import bad_request

PARAM = "continue_final_message"


def cut_after_text(
    token_ids: Sequence[int], rendered: str, text: str, token_bytes: Callable[[int], bytes]
) -> list[int]:
    """The token ids of a conversation up to the end of its last message's text.

    `rendered` is the whole conversation as text and `token_ids` its tokens. Space at the end of the message is not
    kept: templates strip it, and models do not begin with it. Raises ApiError.
    """
    place = rendered.rfind(text.strip())
    if place < 0:
        raise bad_request("the chat template changes the last message, so it cannot be continued", PARAM)
    excess = len(rendered[place + len(text.strip()) :].encode())
    end = len(token_ids)
    while end and excess > 0:
        end -= 1
        excess -= len(token_bytes(token_ids[end]))
    if excess or not end:
        raise bad_request("the chat template joins the last message to what follows, so it cannot be continued", PARAM)
    return list(token_ids[:end])
