"""The lines of `stacks.jsonl`: windows in which stacks were sampled, and what else was sampled meanwhile.

A row with impossible numbers is left out; after a row of another shape the rest of its window is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from loaderprof.recording import declared, validate
from loaderprof.recording.tables import Clock


@dataclass(frozen=True, slots=True)
class StackSamples:
    """Samples that shared one stack in one window: root-first frames `function (file:line)`, and how many."""

    t_begun: int
    t_done: int
    rate_hz: float
    pid: int
    thread: str
    frames: tuple[str, ...]
    count: int


@dataclass(frozen=True, slots=True)
class ThreadUse:
    """What one thread used of the CPU within one window of stack samples, and how long it waited for a core.

    `thread` is its name in Python, empty for a library's own.
    """

    pid: int
    thread: str
    wall_s: float
    cpu_s: float
    runq_s: float


@dataclass(frozen=True, slots=True)
class LockLooks:
    """How often it was looked, in one window of stack samples, where a thread sleeps, and how often it slept on a lock."""

    pid: int
    thread: str
    looks: int
    asleep: int


@dataclass(frozen=True, slots=True)
class OpenFiles:
    """What one process held open when a window of stack samples began: how many descriptors, and data files by size."""

    pid: int
    descriptors: int
    files: dict[str, int]


def move(line: dict[str, Any], clock: Clock) -> None:
    """Give a window of stack samples the first node's clock, and its processes their ids in the whole recording."""
    if not clock.pids:
        return
    for key in ("t0", "t1"):
        if isinstance(line.get(key), int):
            line[key] += clock.ns
    for key in ("stacks", "threads", "gil", "locks", "files"):
        for row in line[key] if isinstance(line.get(key), list) else ():
            if isinstance(row, list) and row and isinstance(row[0], int):
                row[0] += clock.pids


def samples(line: dict[str, Any]) -> Iterator[StackSamples]:
    """Yield the stacks of a window."""
    try:
        frames = [validate.printable(str(frame)) for frame in line["frames"]]
        for pid, thread, numbers, count in line["stacks"]:
            sample = StackSamples(
                int(line["t0"]),
                int(line["t1"]),
                float(line["rate"]),
                int(pid),
                str(thread),
                tuple(frames[number] for number in numbers),
                int(count),
            )
            if validate.is_stack(sample.t_begun, sample.t_done, sample.rate_hz, sample.count) and sample.frames:
                yield sample
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        return


def thread_uses(line: dict[str, Any]) -> Iterator[ThreadUse]:
    """Yield what threads used of the CPU in a window."""
    try:
        wall_ns = int(line["t1"]) - int(line["t0"])
        for pid, thread, cpu_ns, runq_ns in line.get("threads", ()):
            if 0 < wall_ns < declared.MAX_NS and 0 <= cpu_ns < declared.MAX_NS and 0 <= runq_ns < declared.MAX_NS:
                yield ThreadUse(int(pid), str(thread), wall_ns / 1e9, cpu_ns / 1e9, runq_ns / 1e9)
    except (KeyError, TypeError, ValueError, OverflowError):
        return


def lock_samples(line: dict[str, Any]) -> Iterator[tuple[int, int, int]]:
    """Yield the entries of `Recording.gil` of a window."""
    try:
        for pid, held in line.get("gil", ()):
            # Each sample has exactly one stack of the main thread, so its stacks count the samples.
            taken = sum(int(count) for of, thread, _, count in line["stacks"] if of == pid and thread == "MainThread")
            if 0 <= held < declared.MAX_COUNT and 0 < taken < declared.MAX_COUNT:
                yield int(pid), int(held), taken
    except (KeyError, TypeError, ValueError, OverflowError):
        return


def lock_looks(line: dict[str, Any]) -> Iterator[LockLooks]:
    """Yield, for each thread of a window, how often it was seen to sleep on a lock."""
    try:
        for pid, thread, looks, asleep in line.get("locks", ()):
            if 0 <= asleep <= looks < declared.MAX_COUNT:
                yield LockLooks(int(pid), str(thread), int(looks), int(asleep))
    except (KeyError, TypeError, ValueError, OverflowError):
        return


def open_files(line: dict[str, Any]) -> Iterator[OpenFiles]:
    """Yield what processes held open when a window began."""
    try:
        for pid, descriptors, files in line.get("files", ()):
            known = {validate.printable(str(path)): int(size) for path, size in files if 0 <= size < declared.MAX_NS}
            if 0 <= descriptors < declared.MAX_COUNT:
                yield OpenFiles(int(pid), int(descriptors), known)
    except (KeyError, TypeError, ValueError, OverflowError):
        return
