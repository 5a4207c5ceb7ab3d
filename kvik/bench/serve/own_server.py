"""A server of our own for a measurement: `kvik serve` as a process of its own on a free port, ended afterwards.

A client in the server's own process would wait for it, and it for the client. This file knows nothing of what the
server is asked.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import kvik
from kvik.bench.peers import Peer, PeerProgram
from kvik.bench.serve.connection import Pool
from kvik.bench.serve.replies import Document, LoadError
from kvik.bench.serve.target import Target
from kvik.config import EngineConfig
from kvik.errors import KvikError

HOST = "127.0.0.1"
PATIENCE_S = 600.0
"""A large model may take minutes to load."""
LOOK_S = 0.05
PACKAGE_ROOT = str(Path(kvik.__file__).parents[1])
KVIK = (sys.executable, "-c", f"import sys; sys.path[0] = {PACKAGE_ROOT!r}; from kvik.cli.main import main; main()")
"""The command line of this very package: `-m kvik` would look in the current folder first, where another may lie."""


def engine_flags(config: EngineConfig) -> list[str]:
    """The options of an engine as flags of `kvik serve`; those that are as by default are left out."""
    flags: list[str] = []
    for part in dataclasses.fields(config):
        options = getattr(config, part.name)
        for field in dataclasses.fields(options):
            value = getattr(options, field.name)
            if value != field.default:
                flags += _flag(field.name, value)
    return flags


def _flag(name: str, value: Any) -> list[str]:
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", str(value)]


@contextmanager
def own_server(config: EngineConfig, *more: str) -> Iterator[Target]:
    """A server with these options (and further flags) that is ready. Raises KvikError if it does not get there."""
    port, key = free_port(), secrets.token_hex(16)
    where = ["--host", HOST, "--port", str(port), "--api-key", key, "--log-level", "error"]
    flags = [*where, *engine_flags(config), *more]
    peer = Peer(PeerProgram("server", (*KVIK, "serve", *flags)), label="kvik serve")
    target = Target(HOST, port, key=key)
    try:
        asyncio.run(_until_ready(target, peer.pid))
        yield target
    finally:
        with suppress(ProcessLookupError):
            os.kill(peer.pid, signal.SIGTERM)
        peer.close()


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


async def _until_ready(target: Target, pid: int) -> None:
    pool = Pool(target, time.perf_counter, PATIENCE_S)
    end = time.monotonic() + PATIENCE_S
    try:
        while not await _is_ready(pool):
            if not is_alive(pid):
                raise KvikError("kvik serve ended while it was starting; start it by hand to see why")
            if time.monotonic() > end:
                raise KvikError(f"kvik serve was not ready within {PATIENCE_S:g} s")
            await asyncio.sleep(LOOK_S)
    finally:
        pool.close()


async def _is_ready(pool: Pool) -> bool:
    try:
        await pool.ask(pool.target.get("/health/ready"), Document())
    except LoadError:
        return False
    return True


def is_alive(pid: int) -> bool:
    """Whether a child of ours still runs: one that has ended stays listed until it is waited for."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")
