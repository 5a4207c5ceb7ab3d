"""One bad input sent, and whether its reply is the one that its row says.

Every refusal has the four keys of an error and is small, whatever was sent. Knows nothing of which inputs there are.
"""

from __future__ import annotations

import json
from typing import Any

from tools.soak.bad_inputs import ANY, GOOD, Row
from tools.soak.replies import check_error, require
from tools.soak.wire import Address, Connection, Head, LostError

LARGEST = 4096
"""Bytes of a refusal."""


async def check_row(address: Address, row: Row) -> None:
    """Send it and read all replies to it. Raises WrongError for another one than it must get, LostError for none."""
    connection = Connection(address)
    try:
        await connection.send(row.data)
        if row.status is None:
            await check_closed(connection, row)
            return
        for _ in range(row.data.count(GOOD) if row.name == "requests in a pipe" else 1):
            head, body = await reply(connection)
            check_reply(row, head, body)
    finally:
        connection.close()


async def reply(connection: Connection) -> tuple[Head, Any]:
    """The next one that is not `100 Continue`."""
    head = await connection.head()
    if head.status == 100:
        head = await connection.head()
    return head, json.loads(await connection.body(head))


async def check_closed(connection: Connection, row: Row) -> None:
    """That the connection ends without a word."""
    try:
        head = await connection.head()
    except LostError:
        return
    require(False, row.name, "got", head)


def check_reply(row: Row, head: Head, body: Any) -> None:
    """One reply."""
    require(head.status == row.status, row.name, "got", head.status, body)
    if head.status == 200:
        usage = body["usage"]
        for name, right in (("prompt_tokens", row.prompt_tokens), ("completion_tokens", row.completion_tokens)):
            require(right in (None, usage[name]), row.name, "has", usage, "instead of", name, right)
        return
    check_error(head.status, head.headers, body)
    error = body["error"]
    require(len(json.dumps(body)) <= LARGEST, row.name, "got", len(json.dumps(body)), "bytes")
    require(error["type"] == "invalid_request_error", row.name, "got", error)
    if row.param is not ANY:
        require((error["param"], error["code"]) == (row.param, row.code), row.name, "got", error)
