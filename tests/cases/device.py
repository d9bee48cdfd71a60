"""Loops whose model is the limit: the loader has far more capacity than the step needs."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import torch
from casework import Clock, Knobs, case, main
from stand_ins import Light, Slow
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset


@case("convolutions", label="device", stages="read device")
def convolutions(knobs: Knobs, clock: Clock) -> None:
    class Random(Dataset):
        def __len__(self) -> int:
            return 100_000

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return torch.zeros(3, 64, 64) if knobs.off("read") else torch.rand(3, 64, 64), index % 10

    model = nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for images, labels in DataLoader(Random(), batch_size=8, shuffle=True, num_workers=1):
        if not knobs.off("device"):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        if clock.over():
            break


class LanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4000, 128)
        self.body = nn.TransformerEncoder(nn.TransformerEncoderLayer(128, 4, 256, batch_first=True), 2)
        self.head = nn.Linear(128, 4000)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.embed(tokens)))


@case("transformer", label="device", stages="read device")
def transformer(knobs: Knobs, clock: Clock) -> None:
    class Tokens(IterableDataset):
        def __iter__(self) -> Iterator[torch.Tensor]:
            rng = np.random.default_rng(0)
            while True:
                yield (
                    torch.ones(65, dtype=torch.long)
                    if knobs.off("read")
                    else torch.from_numpy(rng.integers(0, 4000, 65))
                )

    model = LanguageModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    for tokens in DataLoader(Tokens(), batch_size=4, num_workers=2):
        if not knobs.off("device"):
            logits = model(tokens[:, :-1])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        if clock.over():
            break


@case("recurrent network", label="device", stages="collate device")
def recurrent(knobs: Knobs, clock: Clock) -> None:
    """num_workers=0 and tensors in memory: the loader is a sliver of the step."""
    data = TensorDataset(torch.randn(4000, 60, 16), torch.randn(4000, 1))
    lstm, head = nn.LSTM(16, 64, num_layers=2, batch_first=True), nn.Linear(64, 1)
    optimizer = torch.optim.Adam([*lstm.parameters(), *head.parameters()])
    ready = [tensor[:16] for tensor in data.tensors]
    collate = (lambda _: ready) if knobs.off("collate") else None
    while not clock.done:
        for series, target in DataLoader(data, batch_size=16, shuffle=True, collate_fn=collate):
            if not knobs.off("device"):
                optimizer.zero_grad()
                nn.functional.mse_loss(head(lstm(series)[0][:, -1]), target).backward()
                optimizer.step()
            if clock.over():
                break


@case("remote accelerator", label="device", stages="read device")
def remote_accelerator(knobs: Knobs, clock: Clock) -> None:
    """The model runs elsewhere; the loader is idle most of the time."""
    model = Slow(0.04)
    loader = DataLoader(Light(1_000_000), batch_size=16, shuffle=False, num_workers=2, prefetch_factor=4)
    for batch in loader:
        if not knobs.off("device"):
            model(torch.zeros(16, 64) if knobs.off("read") else batch).mean().backward()
            model.zero_grad()
        if clock.over():
            break


@case("optimizer", label="device", stages="read device")
def heavy_optimizer(knobs: Knobs, clock: Clock) -> None:
    """Small batches, many parameters: the optimizer is what takes long."""
    model = nn.Sequential(nn.Linear(64, 1500), nn.ReLU(), nn.Linear(1500, 1500), nn.ReLU(), nn.Linear(1500, 2))
    optimizer = torch.optim.Adam(model.parameters())
    for batch in DataLoader(Light(1_000_000), batch_size=4, num_workers=1):
        if not knobs.off("device"):
            optimizer.zero_grad()
            model(torch.zeros(4, 64) if knobs.off("read") else batch).mean().backward()
            optimizer.step()
        if clock.over():
            break


if __name__ == "__main__":
    sys.exit(main())
