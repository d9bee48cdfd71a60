"""Jobs that end as those of many end: `endings.py KIND`. Loops in a script without a guard, on purpose."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time

import torch
from torch.utils.data import DataLoader, Dataset

KIND = sys.argv[1]
grown: list[bytearray] = []


class Numbers(Dataset):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> object:
        if KIND in ("killed-worker", "shared-memory"):
            time.sleep(0.5)  # the loop waits for its first batch by then
        if KIND == "killed-worker":
            os.kill(os.getpid(), signal.SIGKILL)
        if KIND == "shared-memory":
            os.kill(os.getpid(), signal.SIGBUS)  # as the kernel does to whoever writes to a full /dev/shm
        if KIND == "large-batches":
            return torch.zeros(1 << 20)
        if KIND == "grows":
            grown.append(bytearray(60 << 20))
        if KIND == "timed-out":
            time.sleep(30)
        if KIND == "own":
            raise ValueError("Can the user explain this?")
        return [torch.zeros(2) for _ in range(40)] if KIND == "open-files" else torch.zeros(2)


options = {
    "missing-guard": {"multiprocessing_context": "spawn"},
    "unpicklable": {"multiprocessing_context": "spawn"},
    "timed-out": {"timeout": 1},
}.get(KIND, {})
if KIND == "open-files":
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, most))
    options = {"worker_init_fn": lambda _: resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))}
dataset = Numbers()
if KIND == "unpicklable":
    dataset.opened = open(__file__)  # noqa: SIM115 - as datasets hold an archive or a database open
kept = list(DataLoader(dataset, batch_size=4, num_workers=2, **options))
