"""Promise 35 over HTTP: the table of bad inputs, each with the status and the field that it must be told.

The table is `tools/soak/bad_inputs.py`. The server is one for all rows, so none of them may harm it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tools.soak.bad_inputs import FLAGS, SETTING, Row, rows
from tools.soak.replies import WrongError
from tools.soak.row_check import check_row
from tools.soak.server import OwnServer
from tools.soak.wire import LostError

TABLE = rows()


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    """With a limit that fits the largest row."""
    with OwnServer(SETTING, *FLAGS) as running:
        asyncio.run(running.until_ready())
        yield running


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name.encode("ascii", "replace").decode())
def test_a_bad_input_gets_its_status_and_the_name_of_its_field(server: OwnServer, row: Row) -> None:
    asyncio.run(check_row(server.address, row))


def test_a_field_that_nobody_knows_is_logged_once_for_each_request(server: OwnServer) -> None:
    (row,) = (row for row in TABLE if row.name == "chat frobnicate 1")
    before = server.log.count("frobnicate")
    asyncio.run(check_row(server.address, row))
    asyncio.run(server.until(lambda stats: stats["server"]["requests_open"] <= 1))
    assert server.log.count("frobnicate") == before + 1


def test_what_is_not_http_floods_no_log(server: OwnServer) -> None:
    """A line of a request before these may come late."""
    (row,) = (row for row in TABLE if row.status is None)
    before = len(server.log.splitlines())
    for _ in range(20):
        asyncio.run(check_row(server.address, row))
    assert len(server.log.splitlines()) - before < 5


@pytest.mark.parametrize(
    "change", [{"status": 404}, {"status": 200}, {"param": "prompt"}, {"param": None}, {"code": "x"}], ids=str
)
def test_a_reply_that_is_not_the_rows_is_found(server: OwnServer, change: dict[str, object]) -> None:
    (row,) = (row for row in TABLE if row.name == "chat top_p 0")
    with pytest.raises(WrongError):
        asyncio.run(check_row(server.address, replace(row, **change)))  # type: ignore[arg-type]


def test_a_count_that_is_not_the_rows_and_a_silence_are_found(server: OwnServer) -> None:
    (row,) = (row for row in TABLE if row.name == "body with NUL in a string")
    with pytest.raises(WrongError):
        asyncio.run(check_row(server.address, replace(row, prompt_tokens=4)))
    with pytest.raises(WrongError):
        asyncio.run(check_row(server.address, replace(row, status=None)))
    (tls,) = (row for row in TABLE if row.status is None)
    with pytest.raises(LostError):
        asyncio.run(check_row(server.address, replace(tls, status=400)))


def test_the_table_is_whole() -> None:
    """It was 184 rows when every line of the list had its own."""
    assert len(TABLE) >= 184
    assert {row.status for row in TABLE} == {None, 200, 400, 404, 405, 408, 413, 414, 415, 431}
