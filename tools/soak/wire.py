"""A plain HTTP/1.1 client for asyncio: one connection, requests one after another, bodies as they arrive.

It is written against the protocol and not against the server, and shares no code with it. It can leave as rudely as it
likes. It knows nothing of what is asked.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

WAIT_S = 120.0
"""Longest silence before a reply counts as lost."""
BUFFER = 2**20
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of no time: closing sends RST."""


class LostError(Exception):
    """A reply that did not come, or not whole."""


@dataclass(frozen=True)
class Address:
    """Where the server is, and what it wants to see."""

    host: str
    port: int
    key: str | None = None


@dataclass(frozen=True)
class Head:
    """Status and headers, names in lower case."""

    status: int
    headers: Mapping[str, str]

    @property
    def is_stream(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")


def request_bytes(
    address: Address, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> bytes:
    """A whole request; a body becomes JSON."""
    data = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(data)}"]
    lines += ["Content-Type: application/json"] if data else []
    lines += [f"Authorization: Bearer {address.key}"] if address.key else []
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + data


class Connection:
    """One connection. Raises LostError for whatever keeps a reply from being whole."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def send(self, data: bytes) -> None:
        """Bytes, on a new connection if there is none."""
        try:
            writer = self._writer or await self._open()
            writer.write(data)
            await writer.drain()
        except (OSError, asyncio.TimeoutError) as error:
            raise LostError(f"sending: {error!r}") from error

    async def _open(self) -> asyncio.StreamWriter:
        opening = asyncio.open_connection(self.address.host, self.address.port, limit=BUFFER)
        self._reader, writer = await asyncio.wait_for(opening, WAIT_S)
        self._writer = writer
        return writer

    async def head(self) -> Head:
        """The next reply's."""
        line, *rest = (await self._until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = [each.partition(":") for each in rest if each]
        return Head(int(line.split()[1]), {name.strip().lower(): value.strip() for name, _, value in fields})

    async def pieces(self, head: Head) -> AsyncIterator[bytes]:
        """Its body, in the pieces it was sent in. The connection can be used again after the last one."""
        if head.headers.get("transfer-encoding") == "chunked":
            while size := int((await self._until(b"\r\n")).strip(), 16):
                yield (await self._exactly(size + 2))[:-2]
            await self._exactly(2)
        elif size := int(head.headers.get("content-length", "0")):
            yield await self._exactly(size)
        if head.headers.get("connection", "").lower() == "close":
            self.close()

    async def body(self, head: Head) -> bytes:
        """All of it."""
        return b"".join([piece async for piece in self.pieces(head)])

    async def events(self, head: Head) -> AsyncIterator[str]:
        """The data of each event of a stream."""
        left = b""
        async for piece in self.pieces(head):
            *whole, left = (left + piece).split(b"\n\n")
            for event in whole:
                if event.startswith(b"data: "):
                    yield event[6:].decode()
        if left:
            raise LostError(f"the stream ends within an event: {left[:60]!r}")

    def close(self, reset: bool = False) -> None:
        """Leave, with FIN or with RST. Idempotent."""
        writer, self._reader, self._writer = self._writer, None, None
        if writer is None:
            return
        if reset:
            sock: socket.socket = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.transport.abort() if reset else writer.close()

    async def _until(self, separator: bytes) -> bytes:
        assert self._reader is not None, "nothing was sent"
        return await self._whole(self._reader.readuntil(separator))

    async def _exactly(self, size: int) -> bytes:
        assert self._reader is not None, "nothing was sent"
        return await self._whole(self._reader.readexactly(size))

    async def _whole(self, reading: Any) -> bytes:
        try:
            data: bytes = await asyncio.wait_for(reading, WAIT_S)
        except (OSError, EOFError, asyncio.TimeoutError, asyncio.LimitOverrunError) as error:
            self.close()
            raise LostError(f"receiving: {error!r}") from error
        return data


async def ask(
    address: Address, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> tuple[Head, Any]:
    """One request on a connection of its own; the reply's JSON."""
    connection = Connection(address)
    try:
        await connection.send(request_bytes(address, method, path, body, headers))
        head = await connection.head()
        return head, json.loads(await connection.body(head))
    finally:
        connection.close()
