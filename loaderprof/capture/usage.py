"""The kernel's account of a few processes at a moment: CPU and run-queue wait of each of their threads.

Read by the supervisor at both ends of a window of stack samples, so that stacks and accounts are of the same time.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

# Of a process with more threads only these are read: 10 us each.
MAX_THREADS = 256

# By (process, thread): nanoseconds of CPU and of waiting in a run queue, so far.
Account = dict[tuple[int, int], tuple[int, int]]


def account(pids: Iterable[int]) -> Account:
    """Return the account of every thread of the processes; what is gone, or not told by the kernel, is left out."""
    told: Account = {}
    for pid in pids:
        try:
            threads = sorted(int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir())
        except OSError:
            continue
        for thread in threads[:MAX_THREADS]:
            used = _used(pid, thread)
            if used is not None:
                told[pid, thread] = used
    return told


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
