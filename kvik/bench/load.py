"""What else the machine did while something was measured: cores' worth of this process, of others, idle and stolen.

Read from /proc/stat before and after; where there is none, the record is None. Time that the hypervisor gave to other
guests is `stolen`. This file knows nothing of what is measured.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STAT = Path("/proc/stat")
BUSY = (0, 1, 2, 5, 6)
"""Columns of /proc/stat after the name: user, nice, system, irq, softirq. Guest time is in user already."""
IDLE = (3, 4)
STOLEN = 7


@dataclass(frozen=True)
class Moment:
    """Processor time spent so far, in seconds, and when that was. Machine-wide figures are None where unknown."""

    at: float
    own: float
    busy: float | None
    idle: float | None
    stolen: float | None


def now(stat: Path = STAT) -> Moment:
    """The counters as they stand."""
    wall, own = time.perf_counter(), time.process_time()
    try:
        fields = [int(field) for field in stat.read_text(encoding="ascii").split("\n", 1)[0].split()[1:]]
        ticks = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return Moment(wall, own, None, None, None)
    return Moment(
        wall,
        own,
        sum(fields[column] for column in BUSY) / ticks,
        sum(fields[column] for column in IDLE) / ticks,
        fields[STOLEN] / ticks,
    )


def between(before: Moment, after: Moment) -> dict[str, Any]:
    """Mean number of cores that did each thing between two moments; a process that was measured elsewhere counts as
    others. The counters tick a hundred times a second, so what is shorter than that is rough.
    """
    seconds = after.at - before.at
    own = (after.own - before.own) / seconds
    if before.busy is None or after.busy is None:
        return {"seconds": seconds, "own_cores": own, "other_cores": None, "idle_cores": None, "stolen_cores": None}
    idle, stolen = (after.idle or 0) - (before.idle or 0), (after.stolen or 0) - (before.stolen or 0)
    return {
        "seconds": seconds,
        "own_cores": own,
        "other_cores": max(0.0, (after.busy - before.busy) / seconds - own),
        "idle_cores": idle / seconds,
        "stolen_cores": stolen / seconds,
    }
