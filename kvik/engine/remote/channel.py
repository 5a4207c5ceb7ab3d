"""Frames over a socket: each with its length, its number and a checksum, read by type or not at all.

    0        4        8        12
    | length | number | crc32  | payload: one msgpack frame of kvik/engine/remote/frames.py, `length` bytes |

Numbers count up from 0, so that a lost, repeated or reordered frame is noticed, and the checksum finds bytes that
changed. Whatever is cut short, too long, out of order, damaged or of an unknown type is a ChannelError, after which
nothing more is read. The engine's end blocks; the front end's lives on an event loop. This file knows nothing of what
frames mean.
"""

from __future__ import annotations

import asyncio
import re
import select
import socket
import struct
import zlib
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import msgspec

from kvik.engine.remote.frames import Command, Event, Submit
from kvik.errors import EngineError, InvalidRequestError

HEADER = struct.Struct("<III")
MAX_FRAME_BYTES = 64 * 2**20
CHUNK = 1 << 18
_NUMBERS = 1 << 32
Frame = TypeVar("Frame")


class ChannelError(EngineError):
    """What arrived is not what the other side may send; the channel is closed."""


class ChannelClosedError(ChannelError):
    """The other side has closed the channel, or has gone."""


class FrameTooLargeError(InvalidRequestError):
    """A frame is larger than MAX_FRAME_BYTES; nothing of it was sent."""


class FrameWriter:
    """Frames to bytes."""

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._number = 0

    def pack(self, *frames: Command | Event) -> bytes:
        """Headers and payloads of frames, in order. Raises FrameTooLargeError, and then none of them counts."""
        parts: list[bytes] = []
        number = self._number
        for frame in frames:
            payload = self._encoder.encode(frame)
            if len(payload) > MAX_FRAME_BYTES:
                raise FrameTooLargeError(f"a frame takes {len(payload)} bytes; expected at most {MAX_FRAME_BYTES}")
            parts += (HEADER.pack(len(payload), number, zlib.crc32(payload)), payload)
            number = (number + 1) % _NUMBERS
        self._number = number
        return b"".join(parts)


class SubmitGate:
    """Refuses requests that no frame can carry: an engine that received one would take its channel for broken."""

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Submit)

    def check(self, submit: Submit) -> None:
        """Raises InvalidRequestError naming what is of another type than declared, or too large."""
        try:
            payload = self._encoder.encode(submit)
            self._decoder.decode(payload)
        except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
            match = re.search(r"`\$\.(?:params\.)?(\w+)", str(error))
            param = {"token_ids": "prompt"}.get(match[1], match[1]) if match else None
            raise InvalidRequestError(f"{param or 'the request'} cannot be sent: {error}", param=param) from error
        if len(payload) > MAX_FRAME_BYTES:
            raise FrameTooLargeError(
                f"the request takes {len(payload)} bytes; expected at most {MAX_FRAME_BYTES}", param="prompt"
            )


class FrameReader(Generic[Frame]):
    """Bytes to frames of the given type, as they arrive in pieces of any size."""

    def __init__(self, kind: Any) -> None:
        self._decoder = msgspec.msgpack.Decoder(kind)
        self._buffer = bytearray()
        self._number = 0

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are whole with these bytes. Raises ChannelError."""
        frames: list[Frame] = []
        self._buffer += data
        at = 0
        while len(self._buffer) - at >= HEADER.size:
            length, number, checksum = HEADER.unpack_from(self._buffer, at)
            self._check(length, number)
            begin, end = at + HEADER.size, at + HEADER.size + length
            if len(self._buffer) < end:
                break
            frames.append(self._decode(begin, end, checksum))
            self._number = (self._number + 1) % _NUMBERS
            at = end
        del self._buffer[:at]
        return frames

    def finish(self) -> None:
        """No byte follows. Raises ChannelError if a frame is not whole."""
        if self._buffer:
            raise ChannelError(f"the channel ended after {len(self._buffer)} bytes of a frame")

    def _check(self, length: int, number: int) -> None:
        """Before anything is kept for it."""
        if length > MAX_FRAME_BYTES:
            raise ChannelError(f"a frame of {length} bytes arrives; expected at most {MAX_FRAME_BYTES}")
        if number != self._number:
            raise ChannelError(f"frame {number} arrives; expected frame {self._number}")

    def _decode(self, begin: int, end: int, checksum: int) -> Frame:
        with memoryview(self._buffer) as whole, whole[begin:end] as payload:
            if zlib.crc32(payload) != checksum:
                raise ChannelError(f"frame {self._number} arrives damaged: its checksum is wrong")
            try:
                return cast(Frame, self._decoder.decode(payload))
            except (ValueError, RecursionError, msgspec.MsgspecError) as error:
                raise ChannelError(f"frame {self._number} cannot be read: {error}") from error


class EngineChannel:
    """The engine's end of a stream socket.

    Sending waits for the front end to read: nobody else is served by this engine, so if the front end stands still the
    engine may as well, with no more kept than the socket holds; and if the front end dies, the wait ends in an error.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._socket = sock
        self._reader: FrameReader[Command] = FrameReader(Command)
        self._writer = FrameWriter()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def receive(self, timeout_s: float | None = None) -> list[Command]:
        """What has arrived; waits at most so long for the first bytes (None: for ever). Raises ChannelError."""
        if not self._poll.poll(None if timeout_s is None else timeout_s * 1000):
            return []
        try:
            data = self._socket.recv(CHUNK)
        except OSError as error:
            raise ChannelClosedError(f"the front end has gone: {error}") from error
        if not data:
            self._reader.finish()
            raise ChannelClosedError("the front end has closed the channel")
        return self._reader.feed(data)

    def send(self, *events: Event) -> None:
        """Send events in order, in one piece. Raises FrameTooLargeError, ChannelClosedError."""
        data = self._writer.pack(*events)
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise ChannelClosedError(f"the front end has gone: {error}") from error

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()


class FrontChannel(asyncio.Protocol):
    """The front end's end of a stream socket, on an event loop.

    `received` gets every event as it comes; `lost` is told once why no further one will. Nothing here waits: what is
    sent is kept until the engine takes it, and `backlog` says how much that is.
    """

    def __init__(self, received: Callable[[Event], None], lost: Callable[[str], None]) -> None:
        self._received, self._lost = received, lost
        self._reader: FrameReader[Event] = FrameReader(Event)
        self._writer = FrameWriter()
        self._transport: asyncio.Transport | None = None
        self._is_closed = asyncio.Event()
        self._open = True

    async def connect(self, sock: socket.socket) -> None:
        """Take over a connected socket."""
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=sock)
        except BaseException:
            sock.close()
            raise

    @property
    def backlog(self) -> int:
        """Bytes that the engine has not taken yet."""
        return self._transport.get_write_buffer_size() if self._transport else 0

    def send(self, command: Command) -> None:
        """Send a command, or nothing if the channel is closed. Raises FrameTooLargeError."""
        if self._open and self._transport is not None:
            self._transport.write(self._writer.pack(command))

    def close(self) -> None:
        """Close at once, without a word to `lost`. Idempotent."""
        self._open = False
        if self._transport is not None:
            self._transport.abort()

    async def wait_closed(self) -> None:
        """Return when the socket is closed. Only after `close` or `lost`."""
        if self._transport is not None:
            await self._is_closed.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the socket is ready."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes have come."""
        try:
            for event in self._reader.feed(data):
                if self._open:
                    self._received(event)
        except ChannelError as error:
            self._lose(str(error))

    def eof_received(self) -> None:
        """asyncio: no further bytes will come."""
        try:
            self._reader.finish()
            self._lose("the engine has closed the channel")
        except ChannelError as error:
            self._lose(str(error))

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio: the socket is about to be closed."""
        self._is_closed.set()
        self._lose("the engine has gone" + (f": {error}" if error else ""))

    def _lose(self, reason: str) -> None:
        if self._open:
            self.close()
            self._lost(reason)
