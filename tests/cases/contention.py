"""Pipelines whose work is small but whose threads and processes stand in each other's way."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import timeit

import numpy as np
import torch
from casework import Always, Clock, Knobs, case, main
from stand_ins import Slow
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Augmented(Dataset):
    def __init__(self, augment: object, sample: torch.Tensor) -> None:
        self.augment, self.sample = augment, sample

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.augment(self.sample)


def many_threads(_: int) -> None:
    torch.set_num_threads(8)


@case("torch threads", label="contention", stages="contention transform device")
def torch_threads(knobs: Knobs, clock: Clock) -> None:
    """Each worker runs eight torch threads, which meet at the end of every small operation."""

    def augment(x: torch.Tensor) -> torch.Tensor:
        for _ in range(30):
            x = x.add(0.1).mul(0.9)
        return x[0, :64].clone()

    dataset = Augmented(knobs.pick("transform", augment, Always(torch.zeros(64))), torch.randn(300, 128))
    start = knobs.pick("contention", many_threads, None)
    model = Slow(0.012)
    for batch in DataLoader(dataset, batch_size=8, num_workers=2, worker_init_fn=start):
        if not knobs.off("device"):
            model(batch).mean().backward()
            model.zero_grad()
        if clock.over():
            break


def burn(_: int) -> None:
    while True:
        sum(range(10_000))


@case("busy helpers", label="contention", stages="contention transform device")
def busy_helpers(knobs: Knobs, clock: Clock) -> None:
    """The job starts six processes of its own beside training (a feature extractor); they take its CPUs."""
    helpers = [multiprocessing.Process(target=burn, args=(i,), daemon=True) for i in range(6)]
    for helper in knobs.pick("contention", helpers, []):
        helper.start()
    scale = knobs.pick("transform", lambda x: (x - x.mean()) / x.std(), Always(torch.zeros(3, 64, 64)))
    model = nn.Sequential(nn.Conv2d(3, 16, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 2))
    for images in DataLoader(Augmented(scale, torch.randn(3, 64, 64)), batch_size=8, num_workers=1):
        if not knobs.off("device"):
            model(images).mean().backward()
            model.zero_grad()
        if clock.over():
            break
    for helper in helpers:
        if helper.pid:
            helper.kill()


def one_cpu() -> set[int]:
    return {min(os.sched_getaffinity(0))}


def pin_worker(_: int) -> None:
    os.sched_setaffinity(0, one_cpu())


@case("affinity", label="contention", also="transform", stages="contention transform device")
def pinned_workers(knobs: Knobs, clock: Clock) -> None:
    """Every worker is bound to the same CPU; free, two of them keep up."""
    matrix = np.random.default_rng(0).random((300, 300))

    def augment(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.sort(matrix, axis=0)[0, :64].astype(np.float32)) + x

    chosen = knobs.pick("transform", augment, Always(torch.zeros(64)))
    sample_s = min(timeit.repeat(lambda: augment(torch.zeros(64)), number=1, repeat=60))  # others may be busy
    model = Slow(16 * sample_s * 0.7)  # two workers deliver in 0.5 of this, one CPU in 1.0
    start = knobs.pick("contention", pin_worker, None)
    loader = DataLoader(Augmented(chosen, torch.zeros(64)), batch_size=16, num_workers=2, worker_init_fn=start)
    for batch in loader:
        if not knobs.off("device"):
            model(batch).mean().backward()
            model.zero_grad()
        if clock.over():
            break


@case("global lock", label="contention", also="device", stages="contention transform device")
def exporter_thread(knobs: Knobs, clock: Clock) -> None:
    """A thread of the training process computes without a pause: every call of torch waits for the lock again."""
    stop = threading.Event()

    def export() -> None:
        values: dict[str, int] = {}
        while not stop.is_set():
            for number in range(1000):
                values[str(number)] = values.get(str(number), 0) + number

    thread = threading.Thread(target=export, daemon=True)
    if not knobs.off("contention"):
        thread.start()

    def augment(x: torch.Tensor) -> torch.Tensor:
        return (x + torch.randn_like(x) * 0.1).clamp(-1, 1)

    chosen = knobs.pick("transform", augment, Always(torch.zeros(64)))
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for batch in DataLoader(Augmented(chosen, torch.zeros(64)), batch_size=2):
        if not knobs.off("device"):
            optimizer.zero_grad()
            model(batch).mean().backward()
            optimizer.step()
        if clock.over():
            break
    stop.set()


class Jitter(nn.Module):
    """Random gain and offset in many small steps."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for gain, offset in torch.rand(20, 2).tolist():
            x = (x * (0.9 + 0.1 * gain)).sub_(0.1 * offset).clamp_(-3, 3)
        return x.view(-1)[:64].clone()


@case("torch threads", label="contention", stages="contention transform device")
def jitter_threads(knobs: Knobs, clock: Clock) -> None:
    """Workers that ask for as many threads as the server the script was written on has CPUs."""

    def start(worker: int) -> None:
        torch.set_num_threads(32)
        torch.manual_seed(worker)

    chosen = knobs.pick("transform", nn.Sequential(Jitter(), nn.Identity()), Always(torch.zeros(64)))
    loader = DataLoader(
        Augmented(chosen, torch.randn(3, 112, 112)),
        batch_size=4,
        num_workers=3,
        worker_init_fn=knobs.pick("contention", start, None),
        persistent_workers=True,
    )
    model = Slow(0.014)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for batch in loader:
        if not knobs.off("device"):
            optimizer.zero_grad()
            model(batch).mean().backward()
            optimizer.step()
        if clock.over():
            break


if __name__ == "__main__":
    sys.exit(main())
