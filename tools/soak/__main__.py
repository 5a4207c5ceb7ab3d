"""`python -m tools.soak`: promises at length, one trial after another, a line of progress, JSON, an exit status.

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

from tools.soak.catalogue import TRIALS, Entry, asked_for
from tools.soak.server import SOUND, OwnServer, Server
from tools.soak.trials import CLIENTS, Trial, play
from tools.soak.wire import Address

EVERY_S = 5.0


def arguments() -> argparse.Namespace:
    """Of the command line."""
    listed = "\n".join(f"  {name:14s} {entry.says}" for name, entry in TRIALS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tools.soak",
        description="Hold a server to its promises.",
        epilog=f"trials, with the promises that each is for:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("trial", nargs="*", help="names of trials; default: all")
    parser.add_argument("--promise", default="", help="numbers of docs/reliability.md instead of names, as 1,20,25")
    parser.add_argument("--minutes", type=float, default=10.0, help="for each trial")
    parser.add_argument("--count", type=int, default=10**9, help="most of what a trial counts: requests, kills, runs")
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", help=f"a server that runs already, with --model {SOUND} --served-model-name fake")
    where.add_argument("--own-server", action="store_true", help="start one for each trial (the default)")
    parser.add_argument("--key", help="API key of the server at --url")
    parser.add_argument("--json", type=Path, help="file for the result; default: the last line on stdout")
    return parser.parse_args()


async def progress(name: str, trial: Trial) -> None:
    """A line every few seconds."""
    while True:
        await asyncio.sleep(EVERY_S)
        ends = ", ".join(f"{count} {end}" for end, count in trial.ledger.ends.most_common())
        left = max(0.0, trial.left_s)
        print(f"{name}: {trial.ledger.sent} sent, {ends}; {left:.0f} s left", file=sys.stderr, flush=True)


async def attempt(name: str, entry: Entry, server: Server | None, trial: Trial) -> None:
    """One trial with its progress. Whatever it raises is a finding."""
    telling = asyncio.ensure_future(progress(name, trial))
    try:
        if entry.alone is not None:
            await entry.alone(trial)
        elif entry.play is not None and server is not None:
            await play(server, trial, entry.play)
    except Exception as error:
        trial.findings.append(f"{type(error).__name__}: {error}")
    finally:
        telling.cancel()


def hold_to(name: str, args: argparse.Namespace) -> dict[str, object]:
    """One trial from its server's start to its end; what it found."""
    entry, trial = TRIALS[name], Trial(args.minutes * 60, args.count, args.seed, args.clients)
    with contextlib.ExitStack() as held:
        server: Server | None = None
        if args.url:
            url = urlsplit(args.url)
            server = Server(Address(url.hostname or "127.0.0.1", url.port or 80, args.key), entry.model)
        elif entry.play is not None:
            server = held.enter_context(OwnServer(entry.model, *entry.flags, files=entry.files, key=entry.key))
        asyncio.run(attempt(name, entry, server, trial))
    figures = trial.figures | {"sent": trial.ledger.sent, "ends": dict(trial.ledger.ends)}
    return {"trial": name, "promises": entry.promises, "findings": trial.findings} | figures


def main() -> int:
    """All that was asked for; the exit status."""
    args = arguments()
    results = []
    for name in asked_for(args.trial, args.promise):
        results.append(hold_to(name, args))
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    result = {"held": not any(each["findings"] for each in results), "seed": args.seed, "trials": results}
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    else:
        print(json.dumps(result))
    return 0 if result["held"] else 1


if __name__ == "__main__":
    sys.exit(main())
