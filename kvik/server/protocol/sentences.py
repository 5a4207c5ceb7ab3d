"""What a client is told where an error quotes a library or a chat template: our own sentence, and the place if known.

What others wrote may quote anything and means little to whoever sent the request; it is for the log. Knows nothing of
statuses or of logs.
"""

from __future__ import annotations

import re

_QUOTING = re.compile(
    r"(the grammar cannot be used|the schema is no JSON|token ids cannot be decoded"
    r"|the chat template (?:refuses this conversation|failed|cannot be compiled|has an error in line \d+)): (.*)",
    re.DOTALL,
)
"""Sentences of ours that go on with somebody else's words."""
_KNOWN = (
    "the branches of oneOf may overlap; write anyOf, or tell them apart by type or by a const",
    "an error inside the library",
)
"""What follows a colon and is ours all the same."""
_PLACE = re.compile(r"\bline (\d+)(?:,? col(?:umn)? (\d+))?|\b(?:at|on) (\d+)\((\d+)\)")
_TEMPLATE = re.compile(r"(?:the|there is no) chat template [^;:/]*[^;:/ ]")
NO_TEMPLATE = "the chat template cannot be used for this conversation"


def own_sentence(message: str) -> str:
    """An error's message without the words of others; the message itself if it has none."""
    quoting = _QUOTING.fullmatch(message)
    if quoting is None or quoting[2] in _KNOWN:
        return message
    place = _PLACE.search(quoting[2])
    if place is None:
        return quoting[1]
    line, column = place[1] or place[3], place[2] or place[4]
    return f"{quoting[1]} (line {line}, column {column})" if column else f"{quoting[1]} (line {line})"


def template_sentence(message: str) -> str:
    """The same for an error of a chat template, which may name files too."""
    own = own_sentence(message)
    begins = _TEMPLATE.match(own)
    return begins[0] if begins else NO_TEMPLATE
