"""Pipelines that keep starting: short epochs, new workers, slow first batches, loaders made in the loop."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from casework import Clock, Knobs, case, main
from stand_ins import Light, Slow
from torch.utils.data import DataLoader


def build_index(size: int) -> dict[str, int]:
    """What many data sets do when they are opened: walk over all names."""
    return {f"images/{number:08}.jpg": hash(str(number)) for number in range(size)}


def prepare(_: int) -> None:
    """A worker_init_fn that loads a vocabulary."""
    build_index(150_000)


class Indexed(Light):
    """Cheap samples behind an index that every new worker builds for itself at its first sample."""

    index: dict[str, int] | None = None

    def __init__(self, length: int, size: int) -> None:
        super().__init__(length)
        self.size = size

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.index is None:
            self.index = build_index(self.size)
        return super().__getitem__(index)


@case("short epochs", label="startup", stages="startup device")
def short_epochs(knobs: Knobs, clock: Clock) -> None:
    loader = DataLoader(
        Light(80),
        batch_size=8,
        shuffle=True,
        num_workers=2,
        worker_init_fn=prepare,
        persistent_workers=knobs.off("startup"),
    )
    model = Slow(0.004)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    clock.begin()
    while not clock.done:
        for batch in loader:
            if not knobs.off("device"):
                optimizer.zero_grad()
                model(batch).mean().backward()
                optimizer.step()
            if clock.over():
                break


@case("spawned workers", label="startup", stages="startup device")
def spawn_every_epoch(knobs: Knobs, clock: Clock) -> None:
    """Workers that are spawned import torch again at every epoch."""
    loader = DataLoader(
        Light(240),
        batch_size=8,
        num_workers=1,
        multiprocessing_context="spawn",
        persistent_workers=knobs.off("startup"),
    )
    model = Slow(0.005)
    while not clock.done:
        for batch in loader:
            if not knobs.off("device"):
                model(batch).mean().backward()
                model.zero_grad()
            if clock.over():
                break


@case("slow first batch", label="startup", stages="startup device")
def lazy_index(knobs: Knobs, clock: Clock) -> None:
    """The index is built at the first sample, in each worker, in every epoch."""
    dataset = Indexed(160, 400_000)
    if knobs.off("startup"):
        dataset.index = {}
    model = Slow(0.01)
    clock.begin()
    while not clock.done:
        for batch in DataLoader(dataset, batch_size=8, shuffle=True, num_workers=2):
            if not knobs.off("device"):
                model(batch).mean().backward()
                model.zero_grad()
            if clock.over():
                break


@case("loader in the loop", label="startup", stages="startup device")
def loader_in_the_loop(knobs: Knobs, clock: Clock) -> None:
    """`next(iter(loader))` starts the workers again for every single step."""
    loader: Any = DataLoader(Light(4096), batch_size=16, shuffle=True, num_workers=2)
    kept = iter(DataLoader(Light(4_000_000), batch_size=16, num_workers=2)) if knobs.off("startup") else None
    model = Slow(0.004)
    clock.begin()
    while not clock.over():
        batch = next(kept) if kept else next(iter(loader))
        if not knobs.off("device"):
            model(batch).mean().backward()
            model.zero_grad()


@case("validation restarts", label="startup", stages="startup host device")
def validation_workers(knobs: Knobs, clock: Clock) -> None:
    """Training workers persist; the validation loader starts its own every 20 steps, with an index each."""
    train = DataLoader(Light(100_000), batch_size=8, shuffle=True, num_workers=1, persistent_workers=True)
    held_out = Indexed(32, 250_000)
    if knobs.off("startup"):
        held_out.index = {}
    valid = DataLoader(held_out, batch_size=8, num_workers=1, persistent_workers=knobs.off("startup"))
    model = Slow(0.006)
    history: list[float] = []
    clock.begin()
    for step, batch in enumerate(train):
        if not knobs.off("device"):
            model(batch).mean().backward()
            model.zero_grad()
        if step % 20 == 19 and not knobs.off("host"):
            model.eval()
            with torch.no_grad():
                history.append(float(np.mean([model(one).mean().item() for one in valid])))
            model.train()
        if clock.over():
            break


if __name__ == "__main__":
    sys.exit(main())
