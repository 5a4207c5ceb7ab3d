"""`python -m tools.soak`: promises at length, one after another, a line of progress, JSON, an exit status.

The status is 0 if everything was as promised and 1 if not; what was not is printed and in the JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from tools.soak.server import SOUND, OwnServer, Server
from tools.soak.trials import CLIENTS, FLAGS, PROMISES, Play, Trial, play
from tools.soak.wire import Address

EVERY_S = 5.0


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.soak", description="Hold a server to its promises.")
    known = ",".join(map(str, PROMISES))
    parser.add_argument("--promise", default=known, help=f"numbers of docs/reliability.md; default: {known}")
    parser.add_argument("--minutes", type=float, default=10.0, help="for each trial")
    parser.add_argument("--count", type=int, default=10**9, help="most requests, clients, kills or hangs of a trial")
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", help=f"a server that runs already, with --model {SOUND} --served-model-name fake")
    where.add_argument("--own-server", action="store_true", help="start one for each trial (the default)")
    parser.add_argument("--key", help="API key of the server at --url")
    parser.add_argument("--json", type=Path, help="file for the result; default: the last line on stdout")
    return parser.parse_args()


def asked_for(text: str) -> list[Play]:
    """The trials of these promises, each once. Raises SystemExit for one that has none."""
    numbers = [int(each) for each in text.split(",")]
    unknown = [number for number in numbers if number not in PROMISES]
    if unknown:
        raise SystemExit(f"no trial for promise {unknown[0]}; expected some of {', '.join(map(str, PROMISES))}")
    return list(dict.fromkeys(PROMISES[number] for number in numbers))


async def progress(name: str, trial: Trial) -> None:
    """A line every few seconds."""
    while True:
        await asyncio.sleep(EVERY_S)
        ends = ", ".join(f"{count} {end}" for end, count in trial.ledger.ends.most_common())
        left = max(0.0, trial.left_s)
        print(f"{name}: {trial.ledger.sent} sent, {ends}; {left:.0f} s left", file=sys.stderr, flush=True)


async def attempt(server: Server, trial: Trial, what: Play) -> None:
    """One trial with its progress. Whatever it raises is a finding."""
    telling = asyncio.ensure_future(progress(what.__name__, trial))
    try:
        await play(server, trial, what)
    except Exception as error:
        trial.findings.append(f"{type(error).__name__}: {error}")
    finally:
        telling.cancel()


def main() -> int:
    """All that was asked for; the exit status."""
    args = arguments()
    results = []
    for what in asked_for(args.promise):
        trial = Trial(args.minutes * 60, args.count, args.seed, args.clients)
        with contextlib.ExitStack() as held:
            if args.url:
                url = urlsplit(args.url)
                server = Server(Address(url.hostname or "127.0.0.1", url.port or 80, args.key))
            else:
                server = held.enter_context(OwnServer(SOUND, *FLAGS.get(what, ())))
            asyncio.run(attempt(server, trial, what))
        promises = [number for number, each in PROMISES.items() if each is what]
        results.append({"trial": what.__name__, "promises": promises, "findings": trial.findings} | trial.figures)
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    result = {"held": not any(each["findings"] for each in results), "seed": args.seed, "trials": results}
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    else:
        print(json.dumps(result))
    return 0 if result["held"] else 1


if __name__ == "__main__":
    sys.exit(main())
