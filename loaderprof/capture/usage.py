"""The kernel's account of a few processes at a moment: CPU and run-queue wait of their threads, files they hold open.

Read by the supervisor at both ends of a window of stack samples, so that stacks and accounts are of the same time.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Of a process with more threads only these are read: 10 us each.
MAX_THREADS = 256
MAX_FILES, MAX_DESCRIPTORS = 8, 4096
# Open files that are no data: devices, the program's own parts, our journals.
_NO_DATA = ("/dev/", "/proc/", "/sys/", "/memfd:")
_PROGRAM = (".so", ".py", ".pyc", ".lpj", ".log", " (deleted)")

# By (process, thread): nanoseconds of CPU and of waiting in a run queue, so far.
Account = dict[tuple[int, int], tuple[int, int]]
# By (process, thread): looks at where it sleeps, and those in which it slept on a lock.
Looks = dict[tuple[int, int], tuple[int, int]]


def account(pids: Iterable[int]) -> Account:
    """Return the account of every thread of the processes; what is gone, or not accounted for by the kernel, is left out."""
    used_by: Account = {}
    for pid in pids:
        for thread in _threads(pid):
            used = _used(pid, thread)
            if used is not None:
                used_by[pid, thread] = used
    return used_by


def _threads(pid: int) -> list[int]:
    try:
        return sorted(int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir())[:MAX_THREADS]
    except OSError:
        return []


def look(pid: int, looks: Looks) -> None:
    """Add one look at every thread of a process: whether it sleeps on a lock, where the kernel lets us see that.

    A stack cannot tell a thread that waits for its socket from one whose data have arrived and that waits for the GIL:
    both are at the same line.
    """
    for thread in _threads(pid):
        try:
            place = Path(f"/proc/{pid}/task/{thread}/wchan").read_bytes()
        except OSError:
            continue
        taken, asleep = looks.get((pid, thread), (0, 0))
        looks[pid, thread] = taken + 1, asleep + place.startswith(b"futex")


def _used(pid: int, thread: int) -> tuple[int, int] | None:
    try:
        cpu, runq, _ = Path(f"/proc/{pid}/task/{thread}/schedstat").read_bytes().split()
    except (OSError, ValueError):
        return None
    return int(cpu), int(runq)


def between(before: Account, after: Account) -> Account:
    """Return what each thread that lived at both moments used between them."""
    return {
        thread: (after[thread][0] - cpu, after[thread][1] - runq)
        for thread, (cpu, runq) in before.items()
        if thread in after
    }


def open_files(pids: Iterable[int]) -> list[list[Any]]:
    """Return [process, open descriptors, [path, bytes] of some data files among them] of each process that shows them."""
    found = []
    for pid in pids:
        try:
            entries = list(Path(f"/proc/{pid}/fd").iterdir())
        except OSError:
            continue
        files = dict(filter(None, map(_data_file, entries[:MAX_DESCRIPTORS])))
        found.append([pid, len(entries), [[path, size] for path, size in sorted(files.items())[:MAX_FILES]]])
    return found


def _data_file(entry: Path) -> tuple[str, int] | None:
    """Return the path and the size of the data file that a descriptor holds open, None for anything else."""
    try:
        target = str(entry.readlink())
        if not target.startswith("/") or target.startswith(_NO_DATA) or target.endswith(_PROGRAM):
            return None
        shown = entry.stat()
    except OSError:
        return None
    return (target, shown.st_size) if stat.S_ISREG(shown.st_mode) and shown.st_size else None
