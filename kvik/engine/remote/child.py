"""The engine process: `python -m kvik.engine.remote.child SOCKET PARENT`, started by process.py beside it, nobody else.

Its first frame says what to load. It ends when told to, when its channel is broken, and when its parent dies, whatever
it is doing; signals from the terminal are for the parent. SIGUSR1 makes it write the stack of every thread to stderr.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence

from kvik.config import EngineConfig
from kvik.engine.build import build_engine
from kvik.engine.engine import Engine
from kvik.engine.remote.channel import ChannelClosedError, ChannelError, EngineChannel
from kvik.engine.remote.frames import Command, Open
from kvik.engine.remote.host import serve

PR_SET_PDEATHSIG = 1
BROKEN_CHANNEL, ORPHAN = 3, 4
"""Exit statuses."""


def main(arguments: Sequence[str], build: Callable[[EngineConfig], Engine] = build_engine) -> int:
    """Serve the engine that `build` makes until told to stop. Returns the exit status."""
    number, parent = map(int, arguments)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    if not die_with(parent):
        return ORPHAN
    channel = EngineChannel(socket.socket(fileno=number))
    try:
        first = receive_open(channel)
        os.chdir(first.directory)
        serve(lambda: build(first.config), channel, beat_s=first.beat_s)
    except ChannelClosedError:
        return 0
    except ChannelError as error:
        print(f"kvik engine: {error}", file=sys.stderr, flush=True)
        return BROKEN_CHANNEL
    finally:
        channel.close()
    return 0


def die_with(parent: int) -> bool:
    """Have the kernel kill this process when the parent dies. False if it has died already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return os.getppid() == parent


def receive_open(channel: EngineChannel) -> Open:
    """The first frame. Raises ChannelError if it is another one, or not alone."""
    frames: list[Command] = []
    while not frames:
        frames = channel.receive()
    if len(frames) != 1 or not isinstance(frames[0], Open):
        raise ChannelError(f"the first frame is {type(frames[0]).__name__}; expected Open, alone")
    return frames[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
