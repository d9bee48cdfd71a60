"""Loops that cost the same each time: `cost.py samples | batches | memory | tiny | steps [PART]`, PART: a fraction of the loop.

ALTERNATE=N: N pairs of blocks of batches of one loop, with capture off and on. STARTS=N: the same of epochs of one batch, each of
which starts its workers. PARTS=1: what each piece of capture takes. SLOWER=N: the machine is
N times slower than a real one, as an emulator is; what capture takes its own cost for is scaled, so that it stamps as many
batches as on a real one.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.data import DataLoader, Dataset, dataloader

# Batches of each loop that take about 0.2 s. The first of an epoch are stamped oftener than those after.
BLOCK = {"samples": 25, "batches": 200, "steps": 150, "memory": 250, "tiny": 7000}
FIRST = 100
# What capture replaces in the classes and modules of a DataLoader.
HOOKED = ("__init__", "_reset", "_next_data", "_next_index", "fetch", "_worker_loop", "_pin_memory_loop")


def busy(seconds: float) -> None:
    """About so much of CPU: a count, not a clock."""
    for _ in range(round(seconds * 4e7)):
        pass


# Whether the hooks are to stand, as this process set them and as its workers find it.
standing, wanted = True, multiprocessing.RawValue("b", 1)


class Busy(Dataset):
    """Items that take so much CPU."""

    def __init__(self, count: int, seconds: float) -> None:
        self.count, self.seconds = count, seconds

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        if standing != wanted.value:
            stand(bool(wanted.value))
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
def loader(name: str, share: int, kept: bool = False) -> DataLoader:
    """Return the same loader for every epoch of a loop, as jobs have it; its workers are kept, or made anew."""
    if name == "samples":
        return DataLoader(Busy(6400 // share, 0.0016), batch_size=8, num_workers=2, persistent_workers=kept)
    if name == "batches":
        return DataLoader(Busy(32_000 // share, 0.000125), batch_size=8, num_workers=2, persistent_workers=kept)
    if name == "steps":
        return DataLoader(Busy(10_000 // share, 0.00001), batch_size=1, num_workers=1, persistent_workers=kept)
    if name == "memory":
        return DataLoader(Memory(128_000 // share), batch_size=64)
    return DataLoader(Memory(100_000 // share), batch_size=1)


def epoch(name: str, share: int, kept: bool = False) -> int:
    """Run one epoch of a loop, or such a fraction of it; return its batches."""
    taken = 0
    for _ in loader(name, share, kept):
        if name == "steps":
            busy(0.001)
        taken += 1
    return taken


def used() -> float:
    """Seconds of CPU of this process and its workers, those that live included."""
    mine, theirs = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    living = 0
    for child in psutil.Process().children():
        for task in Path(f"/proc/{child.pid}/task").iterdir():
            living += int((task / "schedstat").read_text().split()[0])
    return mine.ru_utime + mine.ru_stime + theirs.ru_utime + theirs.ru_stime + living / 1e9


@functools.cache
def hooks() -> list[tuple[Any, str, Any, Any]]:
    """Return each hook that stands in torch: where, under which name, and what it stands for."""
    from multiprocessing import queues

    from torch.utils.data import _utils

    iterators = [getattr(dataloader, f"_{kind}DataLoaderIter") for kind in ("Base", "SingleProcess", "MultiProcessing")]
    owners = [*iterators, _utils.fetch._MapDatasetFetcher, _utils.worker, _utils.pin_memory]
    found = [
        (owner, name, hook, hook.__wrapped__)
        for owner in owners
        for name, hook in vars(owner).items()
        if not isinstance(hook, type) and hasattr(hook, "__wrapped__") and name in HOOKED
    ]
    pickler: Any = queues._ForkingPickler  # type: ignore[attr-defined]
    found.append((queues, "_ForkingPickler", pickler, pickler.__mro__[1]))
    assert len(found) == 10
    return found


def stand(on: bool) -> None:
    """Put the hooks in this process, or take them out."""
    global standing
    from loaderprof.capture.hooks.process import process

    standing, process.off = on, not on
    for owner, name, hook, original in hooks():
        setattr(owner, name, hook if on else original)


def alternate(name: str, pairs: int) -> None:
    """Print, for each pair of blocks of batches, what the one without any hook and the one with capture took.

    They are of one epoch and one set of workers: of two sets one is quicker by some percent, for where its memory lies. And
    they are short, for the machine's own pace drifts.
    """
    while True:
        stand_everywhere(True)
        costs: dict[bool, float] = {}
        first, taken, begun = True, 0, 0.0
        for _ in loader(name, 1, kept=True):
            if name == "steps":
                busy(0.001)
            taken += 1
            done, left = divmod(taken - FIRST, BLOCK[name])
            if left or done < 0:
                continue
            now = used()
            if done:
                costs[standing] = (now - begun) / BLOCK[name]
            if len(costs) == 2:
                print(json.dumps([costs[False], costs[True]]), flush=True)
                pairs, first = pairs - 1, not first
                costs.clear()
                if not pairs:
                    return
            stand_everywhere(first if not costs else not standing)
            begun = used()


def starts(name: str, pairs: int) -> None:
    """Print, for each pair of epochs of a batch or two, what the one without any hook and the one with capture took."""

    def take(on: bool) -> float:
        stand_everywhere(on)
        before = used()
        epoch(name, 4000)
        return used() - before

    for on in (True, False):
        take(on)
    for turn in range(pairs):
        costs = {on: take(on) for on in ((False, True) if turn % 2 else (True, False))}
        print(json.dumps([costs[False], costs[True]]))


def stand_everywhere(on: bool) -> None:
    """Put the hooks in this process and, with their next sample, in its workers; or take them out."""
    wanted.value = on
    stand(on)


def parts(name: str) -> None:
    """Print the CPU that the hooks' own pieces take while a loop runs, in its process and in its workers, the innermost also in
    those around it."""
    from loaderprof.capture.hooks import fetches, iteration
    from loaderprof.recording import journal

    # Shared with the workers, which are forked.
    spent: dict[str, Any] = {}

    def clocked(owner: Any, function: str) -> None:
        original = getattr(owner, function)
        seen = spent[f"{owner.__name__}.{function}"] = multiprocessing.Array("q", 2)

        def called(*args: Any, **kwargs: Any) -> Any:
            begun = time.thread_time_ns()
            try:
                return original(*args, **kwargs)
            finally:
                took = time.thread_time_ns() - begun
                with seen:
                    seen[0], seen[1] = seen[0] + 1, seen[1] + took

        setattr(owner, function, called)

    for function in ("_asked", "_taken", "_open", "_flush"):
        clocked(iteration.Iteration, function)
    for function in ("_snapshot", "_fetched", "_enter", "put"):
        clocked(fetches.Fetches, function)
    clocked(journal.Journal, "write")
    epoch(name, 10)
    for seen in spent.values():
        seen[:] = 0, 0
    before = used()
    taken = epoch(name, 2)
    whole_ns = 1e9 * (used() - before)
    print(f"{taken} batches of {whole_ns / taken / 1000:.1f} us of CPU")
    for piece, (calls, ns) in spent.items():
        if calls:
            print(f"{piece:22} {calls:6} calls, {ns / calls / 1000:7.1f} us of CPU each: {ns / whole_ns:6.2%}")


def scale(slower: float) -> None:
    from loaderprof.capture.hooks import fetches, iteration

    for module in (iteration, fetches):
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
    elif "STARTS" in os.environ:
        starts(chosen, int(os.environ["STARTS"]))
    else:
        epoch(chosen, int(sys.argv[2]) if len(sys.argv) > 2 else 1)
