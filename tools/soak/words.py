"""Trials of texts: a stream, a whole reply and the bytes of its tokens are one text, and stop strings are found in it.

Stop strings are taken from the answer that is to come, so that each is there to be found, mostly across tokens.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from typing import Any

from tools.soak.asks import Ask, make_ask
from tools.soak.crowd import run_crowd
from tools.soak.replies import check_whole, require
from tools.soak.server import Server
from tools.soak.trials import Trial
from tools.soak.wire import Connection, request_bytes

STRIDE = 16
"""Clients that ask at the same time."""


async def texts(server: Server, trial: Trial) -> None:
    """5: every answer streamed and whole, with the bytes of its tokens; all three are the text that it must be."""
    rng, numbers = random.Random(trial.seed), iter(range(trial.count))
    characters = 0

    async def client() -> None:
        nonlocal characters
        connection = Connection(server.address)
        for number in numbers:
            if trial.left_s <= 0:
                break
            trial.ledger.sent += 1
            length = await same_text(connection, number, rng)
            characters += length
            trial.ledger.ends["the same"] += 1
        connection.close()

    await asyncio.gather(*(client() for _ in range(STRIDE)))
    trial.figures["characters"] = characters


async def same_text(connection: Connection, number: int, rng: random.Random) -> int:
    """One answer in its three forms; its length."""
    fields = {"temperature": rng.choice([0, 1.0]), "seed": rng.randrange(2**63), "max_tokens": rng.randint(1, 60)}
    text = f"words {number}"
    whole = make_ask(text, chat=True, logprobs=True, **fields)
    said = json.loads(await exchange(connection, whole))
    check_whole(whole, said)
    (choice,) = said["choices"]
    (right,) = whole.expected
    spelled = b"".join(bytes(entry["bytes"] or ()) for entry in choice["logprobs"]["content"])
    require(spelled.decode("utf-8", "replace") == right.text, "the bytes of tokens spell", spelled, "not", right.text)
    require(len(choice["logprobs"]["content"]) >= len(right.text) / 30, "tokens are missing:", choice)
    streamed = make_ask(text, chat=True, stream=True, **fields)
    require(joined(await exchange(connection, streamed)) == right.text, "the stream of", right.text, "is another")
    return len(right.text)


async def exchange(connection: Connection, asked: Ask) -> bytes:
    """The body of a reply that must be one."""
    await connection.send(request_bytes(connection.address, "POST", asked.path, asked.body))
    head = await connection.head()
    body = await connection.body(head)
    require(head.status == 200, head.status, body)
    return body


def joined(body: bytes) -> str:
    """The text of a stream of chat events."""
    events = [json.loads(line[6:]) for line in body.decode().split("\n\n") if line.startswith("data: {")]
    require(body.endswith(b"data: [DONE]\n\n"), "no end:", body[-80:])
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])


async def stops(server: Server, trial: Trial) -> None:
    """6: stop strings that stand in the answer, across its tokens; the earliest wins, none is shown, all is counted."""
    rng = random.Random(trial.seed)

    def asks() -> Iterator[Ask]:
        for number in range(trial.count):
            if trial.left_s <= 0:
                return
            yield with_stops(rng, f"{trial.seed} stop {number}")

    await run_crowd(server.address, asks(), STRIDE, trial.ledger)
    trial.findings += trial.ledger.problems()


def with_stops(rng: random.Random, text: str) -> Ask:
    """A request whose answer holds its stop strings, or a beginning of them."""
    fields: dict[str, Any] = {
        "stream": rng.random() < 0.7,
        "max_tokens": 60,
        "ignore_eos": True,
        "chat": rng.random() < 0.5,
    }
    answer = make_ask(text, **fields).expected[0].uncut
    found = []
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(answer))
        piece = answer[start : start + rng.randint(1, 12)]
        found.append(piece if rng.random() < 0.7 else piece + "?")
    usable = [each for each in found if each and "\ufffd" not in each]
    return make_ask(text, stop=usable or ["?"], **fields)
