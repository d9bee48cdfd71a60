"""Memory and shared memory that a loader's workers and batches may still take. Must not import torch."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from loaderprof.capture.running_job import loader_workers


def free_memory(root: Path = Path("/")) -> float:
    """Return bytes that processes may still take: of the machine, and of each control group above this process.

    Args:
        root: where /proc and /sys are; another folder in tests.
    """
    return min([float(psutil.virtual_memory().available), *_left_to_groups(root)])


def _left_to_groups(root: Path) -> Iterator[float]:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers == "":
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base, names = root / "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        folder = base / path.lstrip("/")
        # Inside a container the path may be the host's; the mount's root is then the container's own group.
        for place in {base, folder, *(each for each in folder.parents if base in each.parents)}:
            with suppress(OSError, ValueError):  # without a limit it says "max"
                most, used = (int((place / name).read_text()) for name in names)
                yield float(max(0, most - used))


def free_shm() -> float | None:
    """Return free bytes of /dev/shm; None where there is none."""
    try:
        return float(shutil.disk_usage("/dev/shm").free)
    except OSError:
        return None


def worker_bytes(main: int) -> float | None:
    """Return the unique memory (USS, bytes) of the largest loader worker of a process; None while it has no worker."""
    sizes = []
    for pid in loader_workers(main):
        with suppress(psutil.Error):
            sizes.append(float(psutil.Process(pid).memory_full_info().uss))
    return max(sizes, default=None)


def process_bytes(pid: int) -> float | None:
    """Return a process's resident memory in bytes: an upper bound for a worker forked from it. None: it has ended."""
    try:
        return float(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None
