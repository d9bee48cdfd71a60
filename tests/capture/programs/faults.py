"""Loops during which loaderprof meets with trouble: `faults.py FAULT...`. Bare, the trouble has nothing to act on.

Prints digests of what the loops saw, which must be the same with trouble as without loaderprof.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import mmap
import multiprocessing
import os
import random
import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

# The hooks' own modules, where this runs with them.
CAPTURE: dict[str, Any] = {
    name.rpartition(".")[2]: module for name, module in sys.modules.items() if name.startswith("loaderprof.")
}
JOURNALS = os.environ.get("LOADERPROF_JOURNALS")


class Numbers(Dataset):
    def __init__(self, count: int = 32) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.rand(4) + index + random.random() + float(np.random.rand())


def loader(workers: int, **options: Any) -> Any:
    return DataLoader(Numbers(), batch_size=4, shuffle=True, num_workers=workers, **options)


def epoch(batches: Any) -> None:
    seen = hashlib.sha256()
    for batch in batches:
        seen.update(batch.numpy().tobytes())
    print(" ", seen.hexdigest()[:16], flush=True)


def epochs(count: int, batches: Any) -> None:
    for _ in range(count):
        epoch(batches)


def open_files(journals: bool = False) -> int:
    """How many files this process has open, but for its journal, which grows; or those of the journal."""
    targets = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one that listed them
            targets.append(os.readlink(f"/proc/self/fd/{number}"))
    return sum(target.endswith(".lpj") == journals for target in targets)


def nothing() -> None:
    epochs(2, loader(2))


def removed() -> None:
    """The recording is gone after the first epoch: workers of the next find no place for their journals."""
    loop = loader(2)
    epoch(loop)
    if JOURNALS:
        shutil.rmtree(Path(JOURNALS).parent)
    epochs(2, loop)
    epoch(loader(0))


def no_proc() -> None:
    """A system that does not show a thread's own files."""
    if CAPTURE:
        CAPTURE["kernel"].SchedStat.path = CAPTURE["kernel"].IoStat.path = "/proc/thread-self/none"
    epochs(2, loader(2))
    epoch(loader(0))


def few_files() -> None:
    """Not one descriptor more than the job itself needs at the time."""
    epoch(loader(1))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
    epochs(2, loader(1))
    epochs(20, loader(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def no_files() -> None:
    """The limit is reached before loaderprof has opened anything."""
    with torch.autograd.profiler.record_function("imports what it needs"):
        pass
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files() + open_files(journals=True) - 1, limits[1]))
    epoch(loader(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    epoch(loader(2))


def bound() -> None:
    """More batches than a journal takes records."""
    if CAPTURE:
        CAPTURE["journal"].MAX_RECORDS = 2 * CAPTURE["journal"].SEGMENT_RECORDS
    epochs(300, loader(0))
    epoch(loader(2))


def eight() -> None:
    for batches in zip(*[loader(number % 2) for number in range(8)], strict=True):
        print(" ", hashlib.sha256(torch.stack(batches).numpy().tobytes()).hexdigest()[:16])


def two_hundred() -> None:
    epochs(3, loader(0))
    epochs(1, loader(1))
    before = open_files()
    for number in range(200):
        epoch(loader(number % 10 == 0))
    gc.collect()
    # torch closes a worker's own files a moment later: a leak would show 20 or 200 times.
    print("  files more", open_files() - before > 6, open_files(journals=True) <= 12)


def internal() -> None:
    if CAPTURE:
        CAPTURE["describe"].loader = wrong
    epochs(2, loader(2))
    epoch(loader(0))


def wrong(*_: Any) -> Any:
    raise RuntimeError("wrong on purpose")


def late() -> None:
    """A hook that fails in the middle of the loop: on asking, on taking, and in a worker."""
    loop = loader(2)
    epoch(loop)
    if CAPTURE:
        CAPTURE["iterators"].Iteration._ready = CAPTURE["iterators"].Iteration._taken = wrong
        CAPTURE["fetches"].Fetches._fetched = wrong
    epochs(2, loop)
    epoch(loader(0))


def counters() -> None:
    """Kernel counters that are not numbers."""
    if CAPTURE:
        CAPTURE["kernel"].SchedStat.read = CAPTURE["kernel"].IoStat.read = wrong
    epochs(2, loader(2))
    epoch(loader(0))


def discovery() -> None:
    """Timers that cannot be set."""
    if CAPTURE:
        CAPTURE["timers"].discover = wrong
    epochs(2, loader(2))
    epoch(loader(0))


def child() -> None:
    random.seed(1)  # Python seeds it anew after a fork
    epoch(loader(0))


def daemons() -> None:
    """A process that may have no children trains, beside the one that started it."""
    process = multiprocessing.get_context("fork").Process(target=child, daemon=True)
    process.start()
    process.join()
    epoch(loader(1))


def threads() -> None:
    """A fork while other threads run, and a loop in each."""
    end = threading.Event()
    others = [threading.Thread(target=end.wait) for _ in range(4)]
    for each in others:
        each.start()
    epoch(loader(2))
    pid = os.fork()
    if not pid:
        child()
        os._exit(0)
    os.waitpid(pid, 0)
    epoch(loader(1))
    end.set()
    for each in others:
        each.join()


def hidden() -> None:
    """Nobody may look into this process, its user's others included."""
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
    epochs(2, loader(2))


def clock() -> None:
    """The wall clock jumps a day back and two days on, where it can be set."""
    loop = loader(1)
    for jump in ("+0d", "-1d", "+1d"):
        if "FAKETIME_TIMESTAMP_FILE" in os.environ:
            Path(os.environ["FAKETIME_TIMESTAMP_FILE"]).write_text(jump + "\n")
        epoch(loop)


class Stuck(Numbers):
    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(1000 * (index == 9))
        return super().__getitem__(index)


def hangs() -> None:
    try:
        epoch(DataLoader(Stuck(), batch_size=4, num_workers=1, timeout=1))
    except RuntimeError as error:
        print(" ", error)


def sixty_four() -> None:
    epochs(2, loader(64))


FAULTS: dict[str, Callable[[], None]] = {
    each.__name__: each
    for each in (
        nothing,
        removed,
        no_proc,
        few_files,
        no_files,
        bound,
        eight,
        two_hundred,
        internal,
        late,
        counters,
        discovery,
        daemons,
        threads,
        hidden,
        clock,
        hangs,
        sixty_four,
    )
}


def alone(name: str) -> None:
    """Run one in a process of its own, so that none spoils the next; torch is imported once for all."""
    print("#", name, flush=True)
    print("#", name, file=sys.stderr, flush=True)
    pid = os.fork()
    if pid:
        if os.waitpid(pid, 0)[1]:
            sys.exit(f"{name} failed")
        return
    if CAPTURE:
        CAPTURE["process"]._said = mmap.mmap(-1, 1)
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    FAULTS[name]()
    print("  after", random.random(), float(np.random.rand()), torch.rand(1).item(), flush=True)
    os._exit(0)


if __name__ == "__main__":
    for each in sys.argv[1:]:
        alone(each)
