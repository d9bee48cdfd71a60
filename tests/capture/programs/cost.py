"""Loops that cost the same each time: `cost.py samples | batches | memory | tiny | steps [PART]`, PART: a fraction of the loop.

ALTERNATE=N: N pairs of epochs, with capture off and on. PARTS=1: what each piece of capture takes. SLOWER=N: the machine is N times slower than a real one, as an
emulator is; what capture takes its own cost for is scaled, so that it stamps as many batches as on a real one.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import sys
import time
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset


def busy(seconds: float) -> None:
    """About so much of CPU: a count, not a clock."""
    for _ in range(round(seconds * 4e7)):
        pass


class Busy(Dataset):
    """Items that take so much CPU."""

    def __init__(self, count: int, seconds: float) -> None:
        self.count, self.seconds = count, seconds

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        busy(self.seconds)
        return torch.zeros(8)


class Memory(Dataset):
    """Items of about 17 µs, cut from a tensor and scaled."""

    def __init__(self, count: int) -> None:
        self.count, self.x = count, torch.rand(4096, 256)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        return ((self.x[index % 4096] - 0.5) / 0.25).clamp(-1, 1).flip(0)


@functools.cache
def loader(name: str, share: int) -> DataLoader:
    """Return the same loader for every epoch of a loop, as jobs have it."""
    if name == "samples":
        return DataLoader(Busy(6400 // share, 0.0016), batch_size=8, num_workers=2)
    if name == "batches":
        return DataLoader(Busy(32_000 // share, 0.000125), batch_size=8, num_workers=2)
    if name == "steps":
        return DataLoader(Busy(10_000 // share, 0.00001), batch_size=1, num_workers=1)
    if name == "memory":
        return DataLoader(Memory(128_000 // share), batch_size=64)
    return DataLoader(Memory(100_000 // share), batch_size=1)


def epoch(name: str, share: int) -> int:
    """Run one epoch of a loop, or such a fraction of it; return its batches."""
    taken = 0
    for _ in loader(name, share):
        if name == "steps":
            busy(0.001)
        taken += 1
    return taken


def used() -> float:
    mine, theirs = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return mine.ru_utime + mine.ru_stime + theirs.ru_utime + theirs.ru_stime


def alternate(name: str, pairs: int) -> None:
    """Print, for each pair of epochs, what the one without and the one with capture took."""
    from loaderprof.capture.process import process

    epoch(name, 10)
    for turn in range(pairs):
        costs = {}
        for off in (True, False) if turn % 2 else (False, True):
            process.off = off
            before = used()
            taken = epoch(name, 10)
            costs[off] = {"cpu_s": used() - before, "batches": taken}
        print(json.dumps([costs[True], costs[False]]))


def parts(name: str) -> None:
    """Print what the hooks' own pieces take in the main process while a loop runs, the innermost also in those around it."""
    from loaderprof import journal
    from loaderprof.capture import fetches, iterators

    spent: dict[str, list[int]] = {}

    def clocked(owner: Any, function: str) -> None:
        original, seen = getattr(owner, function), spent.setdefault(f"{owner.__name__}.{function}", [0, 0])

        def called(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter_ns()
            try:
                return original(*args, **kwargs)
            finally:
                seen[0], seen[1] = seen[0] + 1, seen[1] + time.perf_counter_ns() - begun

        setattr(owner, function, called)

    for function in ("_asked", "_taken", "_open", "_flush"):
        clocked(iterators.Iteration, function)
    for function in ("_snapshot", "_fetched", "_enter"):
        clocked(fetches.Fetches, function)
    clocked(journal.Journal, "write")
    epoch(name, 10)
    for seen in spent.values():
        seen[:] = 0, 0
    taken = epoch(name, 2)
    for piece, (calls, ns) in spent.items():
        if calls:
            print(f"{piece:22} {calls:6} calls in {taken} batches, {ns / calls / 1000:7.1f} us each")


def scale(slower: float) -> None:
    from loaderprof.capture import fetches, iterators

    for module in (iterators, fetches):
        for name in vars(module):
            if name.isupper() and name.endswith("_NS"):
                setattr(module, name, int(getattr(module, name) * slower))


if __name__ == "__main__":
    chosen = sys.argv[1]
    torch.set_num_threads(1)
    if "SLOWER" in os.environ:
        scale(float(os.environ["SLOWER"]))
    if "PARTS" in os.environ:
        parts(chosen)
    elif "ALTERNATE" in os.environ:
        alternate(chosen, int(os.environ["ALTERNATE"]))
    else:
        epoch(chosen, int(sys.argv[2]) if len(sys.argv) > 2 else 1)
