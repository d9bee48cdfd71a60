"""Pipelines whose batches are soon ready in the worker and slow to reach the loop."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from casework import Always, Clock, Knobs, case, main
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset


@case("big arrays", label="handover", stages="handover device")
def big_batches(knobs: Knobs, clock: Clock) -> None:
    """Windows of 48 MB on an array in memory; each is copied into shared memory to reach the loop."""
    series = np.random.default_rng(0).random(16_000_000, dtype=np.float32)

    class Windows(IterableDataset):
        def __iter__(self) -> Iterator[np.ndarray]:
            start = 0
            while True:
                start = (start + 4096) % 1_000_000
                window = series[start : start + 12_000_000].reshape(-1, 1000)
                yield window[:1] if knobs.off("handover") else window

    ready = torch.rand(12_000, 1000)
    model = nn.Linear(1000, 2)
    for batch in DataLoader(Windows(), batch_size=None, num_workers=1):
        if not knobs.off("device"):
            rows = ready if knobs.off("handover") else batch
            model(rows[:512]).mean().backward()
            model.zero_grad()
        if clock.over():
            break


@case("numpy through the pipe", label="handover", stages="handover device")
def numpy_lists(knobs: Knobs, clock: Clock) -> None:
    """collate_fn keeps NumPy arrays, which travel by pickle through a pipe instead of shared memory."""
    picture = np.random.default_rng(0).random((3, 384, 384), dtype=np.float32)

    class Pictures(Dataset):
        def __len__(self) -> int:
            return 100_000

        def __getitem__(self, index: int) -> np.ndarray:
            return picture

    keep = knobs.pick("handover", lambda samples: samples, Always(0))
    model = nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(432, 2))
    for batch in DataLoader(Pictures(), batch_size=16, num_workers=2, collate_fn=keep):
        images = [picture] * 16 if knobs.off("handover") else batch
        if not knobs.off("device"):
            model(torch.from_numpy(images[0])[None]).mean().backward()
            model.zero_grad()
        if clock.over():
            break


@dataclass
class Box:
    x: float
    y: float
    label: str
    scores: list[float]


@case("python objects", label="handover", stages="handover device")
def object_batches(knobs: Knobs, clock: Clock) -> None:
    """Annotations as thousands of small objects: pickled in the worker, unpickled in the training loop."""
    annotations = [Box(i * 0.1, i * 0.2, f"class {i % 80}", [i * 0.01] * 8) for i in range(1200)]

    class Annotated(Dataset):
        def __len__(self) -> int:
            return 100_000

        def __getitem__(self, index: int) -> list[Box]:
            return annotations

    collate = knobs.pick("handover", list, Always(None))
    model = nn.Linear(2, 2)
    for batch in DataLoader(Annotated(), batch_size=24, num_workers=2, collate_fn=collate):
        boxes = annotations if batch is None else batch[0]
        if not knobs.off("device"):
            model(torch.tensor([[box.x, box.y] for box in boxes[:50]])).mean().backward()
            model.zero_grad()
        if clock.over():
            break


@case("many tensors", label="handover", stages="handover device")
def tensor_lists(knobs: Knobs, clock: Clock) -> None:
    """A batch is a list of 120 tensors: a shared-memory file and a descriptor for every one."""
    crops = [torch.randn(3, 12, 12) for _ in range(120)]

    class Crops(IterableDataset):
        def __iter__(self) -> Iterator[Any]:
            while True:
                made = [crop.clone() for crop in crops]
                yield None if knobs.off("handover") else made

    model = nn.Sequential(nn.Flatten(), nn.Linear(432, 2))
    for batch in DataLoader(Crops(), batch_size=None, num_workers=1):
        if not knobs.off("device"):
            model(torch.stack((batch or crops)[:64])).mean().backward()
            model.zero_grad()
        if clock.over():
            break


if __name__ == "__main__":
    sys.exit(main())
