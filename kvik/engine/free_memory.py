"""How many bytes this process may still take.

The least of: what the system has available, what the process's control groups (version 1 and 2, every level up) still
allow, and what is left of the address-space limit. A file tree is read, so that tests bring their own. This file
knows nothing of models.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

UNLIMITED = 1 << 60


def available_memory(root: Path = Path("/")) -> int:
    """Bytes this process may still allocate; `root` is where proc and sys lie."""
    limits = [_system(root), *_control_groups(root), _address_space(root)]
    return max(0, min(limits))


def _system(root: Path) -> int:
    """MemAvailable of Linux; elsewhere all of the physical memory."""
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _control_groups(root: Path) -> Iterator[int]:
    """What each control group above this process still allows."""
    mount = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        if number == "0":
            yield from _levels(mount, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _levels(mount / "memory", path, *names)


def _levels(mount: Path, path: str, limit_file: str, usage_file: str, cache_field: str) -> Iterator[int]:
    """Limit less usage of a group and its ancestors. File cache that nobody touches lately counts as free.

    Inside a container the path may be the host's and absent here; the mount itself is then the group.
    """
    group = mount / path.strip().lstrip("/")
    for level in (group, *group.parents):
        limit, usage = _number(level / limit_file), _number(level / usage_file)
        if limit is not None and usage is not None and limit < UNLIMITED:
            yield limit - usage + _field(level / "memory.stat", cache_field)
        if level == mount:
            return


def _address_space(root: Path) -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return UNLIMITED
    pages = [int(line.split()[0]) for line in _lines(root / "proc/self/statm")]
    return limit - sum(pages) * os.sysconf("SC_PAGE_SIZE")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    """The one number of a file; None if the file is absent or says `max`."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].strip().isdigit() else None


def _field(path: Path, name: str) -> int:
    values = [int(line.split()[1]) for line in _lines(path) if line.split(" ", 1)[0] == name]
    return values[0] if values else 0
