"""All trials by name: the promises that each is for, and the server that it needs.

A trial of one server gets a running one; a trial that starts servers itself, or needs none, stands alone. Knows
nothing of what happens in a trial.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tools.soak import bad_inputs, books, ends, guarded, hostile, inside, load, slow, words
from tools.soak.server import SOUND
from tools.soak.trials import SMALL, Play, Trial, faults, hang, kill, mixed, overload, vanish

Alone = Callable[[Trial], Awaitable[None]]


@dataclass(frozen=True)
class Entry:
    """One trial."""

    promises: tuple[int, ...]
    play: Play | None = None
    """With a server of this model and these flags."""
    alone: Alone | None = None
    model: str = SOUND
    flags: tuple[str, ...] = ()
    files: int | None = None
    """Most that the server may open."""
    key: str | None = None

    @property
    def says(self) -> str:
        """In a line."""
        return ((self.play or self.alone).__doc__ or "").split("\n")[0]


TRIALS: dict[str, Entry] = {
    "mixed": Entry((1, 2, 7), mixed),
    "texts": Entry((5,), words.texts),
    "stops": Entry((6,), words.stops),
    "surge": Entry((10,), load.surge, model=load.SURGE, flags=load.SURGE_FLAGS),
    "overload": Entry((11,), overload, flags=SMALL),
    "slow_clients": Entry((12,), slow.slow_clients),
    "stalled": Entry((13,), slow.stalled, model=slow.ENDLESS),
    "files": Entry((14,), slow.files, files=slow.FEW_FILES),
    "fairness": Entry((15,), load.fairness, model=load.SHARED, flags=load.SHARED_FLAGS, key=load.KEYS[0]),
    "long_prompts": Entry((15,), load.long_prompts, model=load.LONG, flags=load.LONG_FLAGS),
    "scheduler": Entry((16,), alone=books.scheduler),
    "unfit": Entry((17,), load.unfit, flags=load.CLOSE_FLAGS),
    "tight": Entry((18,), load.tight, flags=load.TIGHT_FLAGS),
    "leave": Entry((19,), slow.leave, model=slow.STEPPED),
    "vanish": Entry((20,), vanish),
    "deadlines": Entry((21,), slow.deadlines, model=slow.STEPPED),
    "terminate": Entry((22,), alone=ends.terminate),
    "murder": Entry((23,), alone=ends.murder),
    "starts": Entry((24,), alone=ends.starts),
    "kill": Entry((25, 32), kill),
    "hang": Entry((26, 32), hang),
    "faults": Entry((27, 28), faults),
    "no_memory": Entry((29,), alone=books.no_memory),
    "full_disk": Entry((30,), alone=inside.full_disk),
    "frames": Entry((31,), alone=inside.frames),
    "pauses": Entry((33,), inside.pauses),
    "jumping_clock": Entry((33,), alone=inside.jumping_clock),
    "fuzz": Entry((34,), hostile.fuzz, flags=hostile.FUZZ_FLAGS),
    "bad_table": Entry((35,), hostile.bad_table, model=bad_inputs.SETTING, flags=bad_inputs.FLAGS),
    "limits": Entry((36,), hostile.limits, flags=hostile.LIMIT_FLAGS),
    "large_ones": Entry((37,), hostile.large_ones),
    "doors": Entry((42,), guarded.doors, flags=guarded.KEY_FLAGS, key=guarded.KEY),
    "lines": Entry((43,), guarded.lines),
}


def asked_for(names: list[str], promises: str) -> list[str]:
    """The trials of these names, and of these promises (numbers and commas). Raises SystemExit for one there is not."""
    unknown = [name for name in names if name not in TRIALS]
    if unknown:
        raise SystemExit(f"no trial {unknown[0]!r}; expected some of {', '.join(TRIALS)}")
    numbers = {int(each) for each in promises.split(",") if each}
    known = {number for entry in TRIALS.values() for number in entry.promises}
    if numbers - known:
        raise SystemExit(f"no trial for promise {min(numbers - known)}; expected some of {sorted(known)}")
    if not names and not numbers:
        return list(TRIALS)
    return [name for name, entry in TRIALS.items() if name in names or numbers & set(entry.promises)]
