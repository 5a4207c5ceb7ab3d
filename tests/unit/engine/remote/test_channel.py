"""The channel carries frames unchanged, and turns everything else into an error that ends it."""

from __future__ import annotations

import asyncio
import socket
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from kvik.config import EngineConfig
from kvik.engine.remote import channel
from kvik.engine.remote.channel import (
    HEADER,
    MAX_FRAME_BYTES,
    ChannelClosedError,
    ChannelError,
    EngineChannel,
    FrameReader,
    FrameTooLargeError,
    FrameWriter,
    FrontChannel,
    SubmitGate,
)
from kvik.engine.remote.frames import (
    Abort,
    AskStats,
    Beat,
    Close,
    Command,
    Event,
    Failed,
    LoadFailed,
    ModelInfo,
    Moved,
    Open,
    Stats,
    Step,
    Submit,
    Update,
    Watch,
)
from kvik.errors import EngineError, InvalidRequestError
from kvik.request import Logprob, SamplingParams, TokenLogprobs

SUBMIT = Submit(
    "a", [1, 2, 2**31 - 1], SamplingParams(seed=2**64 - 1, stop=("x", "é"), logit_bias={3: -1.5}), -2, b"\0s"
)
COMMANDS: list[Command] = [
    Open(EngineConfig.from_options(model="dummy:tiny-llama", kv_cache_memory="1GiB", threads=3), 0.5, "/"),
    SUBMIT,
    Abort("a"),
    AskStats(7),
    Watch(True),
    Close(),
]
LOGPROBS = TokenLogprobs(5, -0.5, (Logprob(5, -0.5), Logprob(6, float("-inf"))))
EVENTS: list[Event] = [
    ModelInfo("m", 512, 256, 10, 32, 4, 64, "fake"),
    LoadFailed("CheckpointError", "no such directory"),
    Moved([Update("a", 0, "日本", [1, 2], [LOGPROBS, LOGPROBS], "stop", "x", 3, [None, LOGPROBS])] * 2),
    Failed("a", "InvalidRequestError", "no", "prompt"),
    Stats(7, {"steps": 3, "by": {"stop": 1}, "list": [1, None, 0.5]}),
    Beat(3, False, 9),
    Step({"kind": "frame"}),
]


def packed(*frames: Any) -> bytes:
    return FrameWriter().pack(*frames)


def raw(payload: bytes, number: int = 0) -> bytes:
    """A frame that is right but for what is in it."""
    return HEADER.pack(len(payload), number, zlib.crc32(payload)) + payload


def read_all(kind: Any, data: bytes) -> list[Any]:
    reader: FrameReader[Any] = FrameReader(kind)
    frames = reader.feed(data)
    reader.finish()
    return frames


# Bytes and frames ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 7, 11, 12, 13, 64, 1000, 10**6])
def test_frames_arrive_unchanged_in_pieces_of_any_size(size: int) -> None:
    for kind, frames in ((Command, COMMANDS), (Event, EVENTS)):
        data = packed(*frames)
        reader: FrameReader[Any] = FrameReader(kind)
        arrived = [frame for at in range(0, len(data), size) for frame in reader.feed(data[at : at + size])]
        reader.finish()
        assert arrived == frames


def test_a_frame_cut_anywhere_is_no_frame() -> None:
    data = packed(SUBMIT)
    for length in range(1, len(data)):
        with pytest.raises(ChannelError, match=f"ended after {length} bytes"):
            read_all(Command, data[:length])
    assert read_all(Command, b"") == []


def test_a_change_of_any_bit_is_noticed() -> None:
    data = packed(SUBMIT)
    for at in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            with pytest.raises(ChannelError):
                read_all(Command, bytes(changed))


def test_a_frame_that_is_too_long_is_refused_by_its_header() -> None:
    reader: FrameReader[Command] = FrameReader(Command)
    with pytest.raises(ChannelError, match=f"frame of {MAX_FRAME_BYTES + 1} bytes.*at most {MAX_FRAME_BYTES}"):
        reader.feed(HEADER.pack(MAX_FRAME_BYTES + 1, 0, 0))


@pytest.mark.parametrize("order", [[1, 0, 2], [0, 0, 1, 2], [0, 2], [1, 2], [0, 1, 1]])
def test_frames_that_are_reordered_repeated_or_lost_are_noticed(order: list[int]) -> None:
    writer = FrameWriter()
    parts = [writer.pack(AskStats(number)) for number in range(3)]
    with pytest.raises(ChannelError, match=r"frame \d arrives; expected frame \d"):
        read_all(Command, b"".join(parts[number] for number in order))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x80",
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 100_000,
        msgspec.msgpack.encode({"type": "system", "command": "true"}),
        msgspec.msgpack.encode({"type": "Abort"}),
        msgspec.msgpack.encode({"type": "Abort", "request_id": 5}),
        msgspec.msgpack.encode({"type": "Submit", "request_id": "a", "token_ids": [1.5], "params": {}}),
        msgspec.msgpack.encode({"type": "Submit", "request_id": "a", "token_ids": [1], "params": {"top_p": 7.0}}),
        msgspec.msgpack.encode(Beat(1, True, 1)),
        msgspec.msgpack.encode([SUBMIT, SUBMIT]),
        msgspec.msgpack.encode(Abort("a")) + b"\0",
        b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00cos\nsystem\n.",
    ],
)
def test_what_is_no_command_cannot_be_read_as_one(payload: bytes) -> None:
    with pytest.raises(ChannelError, match="cannot be read"):
        read_all(Command, raw(payload))
    assert read_all(Command, raw(msgspec.msgpack.encode(Abort("a")))) == [Abort("a")]


def test_commands_are_no_events() -> None:
    for command in COMMANDS:
        with pytest.raises(ChannelError, match="cannot be read"):
            read_all(Event, packed(command))


def test_a_frame_too_large_to_send_is_not_sent_and_takes_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "MAX_FRAME_BYTES", 100)
    writer = FrameWriter()
    with pytest.raises(FrameTooLargeError, match="at most 100"):
        writer.pack(Abort("a"), Abort("b" * 100))
    assert read_all(Command, writer.pack(Abort("c"))) == [Abort("c")]


@pytest.mark.parametrize(
    ("submit", "param"),
    [
        (Submit("a", [1, 1.5], SamplingParams()), "prompt"),  # type: ignore[list-item]
        (Submit("a", [True], SamplingParams()), "prompt"),
        (Submit("a", "abc", SamplingParams()), "prompt"),  # type: ignore[arg-type]
        (Submit("a", [1], SamplingParams(ignore_eos="yes")), "ignore_eos"),  # type: ignore[arg-type]
        (Submit(5, [1], SamplingParams()), "request_id"),  # type: ignore[arg-type]
        (Submit("a", [2**64], SamplingParams()), None),
        (Submit("a\ud800", [1], SamplingParams()), None),
        (Submit("a", [1], object()), None),  # type: ignore[arg-type]
    ],
)
def test_a_request_that_no_frame_can_carry_is_refused_where_it_is_made(submit: Submit, param: str | None) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be sent") as caught:
        SubmitGate().check(submit)
    assert caught.value.param == param


def test_a_request_that_is_too_large_is_refused_where_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "MAX_FRAME_BYTES", 1000)
    SubmitGate().check(SUBMIT)
    with pytest.raises(InvalidRequestError, match="at most 1000") as caught:
        SubmitGate().check(Submit("a", [1] * 1000, SamplingParams()))
    assert caught.value.param == "prompt"


# The engine's end ---------------------------------------------------------------------------------------------------


@pytest.fixture
def ends() -> Iterator[tuple[EngineChannel, socket.socket]]:
    ours, theirs = socket.socketpair()
    engine = EngineChannel(ours)
    yield engine, theirs
    engine.close()
    theirs.close()


def test_the_engine_takes_what_has_come_and_waits_only_if_told(ends: tuple[EngineChannel, socket.socket]) -> None:
    engine, front = ends
    assert engine.receive(0.0) == []
    front.sendall(packed(*COMMANDS))
    assert engine.receive() == COMMANDS
    engine.send(*EVENTS)
    assert read_all(Event, front.recv(1 << 20)) == EVENTS


@pytest.mark.parametrize(
    ("data", "kind"),
    [(b"", ChannelClosedError), (packed(SUBMIT)[:-1], ChannelError), (b"GET / HTTP/1.1\r\n", ChannelError)],
)
def test_the_engine_notices_the_end_and_what_is_no_frame(
    ends: tuple[EngineChannel, socket.socket], data: bytes, kind: type[Exception]
) -> None:
    engine, front = ends
    front.sendall(data)
    front.close()
    with pytest.raises(ChannelError) as caught:
        list(map(engine.receive, [None, None]))
    assert type(caught.value) is kind
    with pytest.raises(ChannelClosedError):
        engine.send(Beat(1, True, 1))


def test_the_engine_waits_for_a_front_end_that_stands_still_and_not_for_one_that_has_gone(
    ends: tuple[EngineChannel, socket.socket],
) -> None:
    engine, front = ends
    sent, raised = threading.Semaphore(0), []

    def work() -> None:
        try:
            while True:
                engine.send(Step({"x": "x" * 100_000}))
                sent.release()
        except ChannelClosedError as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    reader: FrameReader[Event] = FrameReader(Event)
    for _ in range(3):
        while sent.acquire(timeout=0.05):
            pass
        assert thread.is_alive()
        while not reader.feed(front.recv(1 << 20)):
            pass
    front.close()
    thread.join(10)
    assert len(raised) == 1


# The front end's end ------------------------------------------------------------------------------------------------


class Front:
    """A FrontChannel with what it delivered."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.reasons: list[str] = []
        self.ended = asyncio.Event()
        self.channel = FrontChannel(self.events.append, self._lost)

    def _lost(self, reason: str) -> None:
        self.reasons.append(reason)
        self.ended.set()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "closed the channel"),
        (packed(EVENTS[0])[:-1], "ended after"),
        (raw(b"\x80", 0), "cannot be read"),
        (packed(Abort("a")), "cannot be read"),
        (HEADER.pack(2**32 - 1, 0, 0), "at most"),
        (HEADER.pack(1, 5, 0) + b"\0", "expected frame 0"),
    ],
)
def test_the_front_end_is_told_once_why_nothing_further_comes(data: bytes, reason: str) -> None:
    async def scenario() -> None:
        front = Front()
        ours, theirs = socket.socketpair()
        await front.channel.connect(ours)
        theirs.sendall(data)
        theirs.close()
        await front.ended.wait()
        await front.channel.wait_closed()
        front.channel.send(Close())
        assert len(front.reasons) == 1
        assert reason in front.reasons[0]
        assert front.events == []
        await asyncio.sleep(0)
        assert ours.fileno() == -1

    asyncio.run(scenario())


def test_nothing_is_read_after_a_bad_frame() -> None:
    async def scenario() -> None:
        front = Front()
        ours, theirs = socket.socketpair()
        await front.channel.connect(ours)
        good = FrameWriter()
        with theirs:
            theirs.sendall(good.pack(EVENTS[0]))
            while not front.events:
                await asyncio.sleep(0)
            theirs.sendall(good.pack(EVENTS[1])[:-1] + b"\xff" + good.pack(EVENTS[2]))
            await front.ended.wait()
        assert front.events == [EVENTS[0]]

    asyncio.run(scenario())


def test_sending_to_an_engine_that_does_not_read_never_waits() -> None:
    async def scenario() -> None:
        front = Front()
        ours, theirs = socket.socketpair()
        engine = EngineChannel(theirs)
        await front.channel.connect(ours)
        big = Submit("a", [2**31 - 1] * 100_000, SamplingParams())
        for _ in range(4):
            front.channel.send(big)
        assert front.channel.backlog > 1_000_000
        arrived: list[Command] = []
        while len(arrived) < 4:
            arrived += await asyncio.to_thread(engine.receive)
        assert arrived == [big] * 4
        while front.channel.backlog:
            await asyncio.sleep(0)
        front.channel.close()
        front.channel.close()
        await front.channel.wait_closed()
        assert front.reasons == []
        with pytest.raises(EngineError):
            engine.receive()
        engine.close()

    asyncio.run(scenario())
