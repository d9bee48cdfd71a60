"""Pipelines that take long to decide which sample comes next."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator

import numpy as np
import torch
from casework import Clock, Knobs, case, main
from stand_ins import Light, Slow
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    SequentialSampler,
    WeightedRandomSampler,
)


class ByScore(Sampler):
    """Draws by a score that may change, so it sums all scores again for every index."""

    def __init__(self, scores: list[float]) -> None:
        self.scores = scores

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[int]:
        population = range(len(self.scores))
        while True:
            yield random.choices(population, weights=self.scores)[0]


@case("python sampler", label="sampler", stages="sampler device")
def score_sampler(knobs: Knobs, clock: Clock) -> None:
    dataset = Light(60_000)
    sampler = knobs.pick("sampler", ByScore([1.0 + i % 7 for i in range(60_000)]), SequentialSampler(dataset))
    model = Slow(0.005)
    while not clock.done:
        for batch in DataLoader(dataset, batch_size=8, sampler=sampler, num_workers=2):
            if not knobs.off("device"):
                model(batch).mean().backward()
                model.zero_grad()
            if clock.over():
                break


@case("python sampler", label="sampler", stages="sampler device")
def score_sampler_in_process(knobs: Knobs, clock: Clock) -> None:
    """The loop draws its indices and makes its batches itself."""
    dataset = Light(60_000)
    sampler = knobs.pick("sampler", ByScore([1.0 + i % 7 for i in range(60_000)]), SequentialSampler(dataset))
    model = Slow(0.002)
    while not clock.done:
        for batch in DataLoader(dataset, batch_size=8, sampler=sampler):
            if not knobs.off("device"):
                model(batch).mean().backward()
                model.zero_grad()
            if clock.over():
                break


@case("weighted population", label="sampler", stages="sampler device")
def weighted_in_process(knobs: Knobs, clock: Clock) -> None:
    """Short epochs, each drawn anew by weight from ten million rows, in the loop itself."""
    dataset = Light(10_000_000)
    weighted = WeightedRandomSampler(torch.rand(10_000_000), num_samples=640, replacement=False)
    loader = DataLoader(dataset, batch_size=16, sampler=knobs.pick("sampler", weighted, range(640)))
    model = Slow(0.002)
    clock.begin()
    while not clock.done:
        for batch in loader:
            if not knobs.off("device"):
                model(batch).mean().backward()
                model.zero_grad()
            if clock.over():
                break


@case("weighted population", label="sampler", stages="sampler device")
def weighted_population(knobs: Knobs, clock: Clock) -> None:
    """Epochs of 40 batches, each drawn anew by weight from ten million rows."""
    dataset = Light(10_000_000)
    weighted = WeightedRandomSampler(torch.rand(10_000_000), num_samples=640, replacement=False)
    loader = DataLoader(dataset, batch_size=16, sampler=knobs.pick("sampler", weighted, range(640)))
    model = Slow(0.002)
    clock.begin()
    while not clock.done:
        for batch in loader:
            if not knobs.off("device"):
                model(batch).mean().backward()
                model.zero_grad()
            if clock.over():
                break


class ByLength(Sampler):
    """Batches of like lengths: all lengths are sorted again, with noise, for every few batches."""

    def __init__(self, lengths: list[int], batch_size: int) -> None:
        self.lengths, self.batch_size = lengths, batch_size

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            order = sorted(range(len(self.lengths)), key=lambda i: self.lengths[i] + random.random())
            for start in random.sample(range(0, len(order) - self.batch_size, self.batch_size), 8):
                yield order[start : start + self.batch_size]


@case("batch sampler", label="sampler", stages="sampler device")
def length_batches(knobs: Knobs, clock: Clock) -> None:
    dataset = Light(120_000)
    lengths = np.random.default_rng(0).integers(5, 500, 120_000).tolist()
    plain = BatchSampler(SequentialSampler(dataset), 16, drop_last=True)
    loader = DataLoader(dataset, batch_sampler=knobs.pick("sampler", ByLength(lengths, 16), plain), num_workers=1)
    model = Slow(0.002)
    optimizer = torch.optim.AdamW(model.parameters())
    while not clock.done:
        for batch in loader:
            if not knobs.off("device"):
                optimizer.zero_grad()
                model(batch).mean().backward()
                optimizer.step()
            if clock.over():
                break


@case("huge permutation", label="sampler", stages="sampler device")
def huge_permutation(knobs: Knobs, clock: Clock) -> None:
    """Epochs of fixed length over many rows: a permutation of all rows is drawn for 100 steps."""
    dataset = Light(8_000_000)
    sampler = knobs.pick("sampler", RandomSampler(dataset), SequentialSampler(dataset))
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), Slow(0.002))
    clock.begin()
    while not clock.done:
        for step, batch in enumerate(DataLoader(dataset, batch_size=8, sampler=sampler)):
            if not knobs.off("device"):
                model(batch).mean().backward()
                model.zero_grad()
            if clock.over() or step == 99:
                break


if __name__ == "__main__":
    sys.exit(main())
