"""Loops whose data is ready and whose own Python takes the time: logs, checkpoints, validation, metrics."""

from __future__ import annotations

import csv
import gc
import json
import os
import sys
from typing import Any

import numpy as np
import torch
from casework import Clock, Knobs, case, main
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset


class Points(Dataset):
    def __init__(self, knobs: Knobs) -> None:
        self.ready = torch.zeros(32) if knobs.off("read") else None

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if self.ready is not None:
            return self.ready, 0
        generator = np.random.default_rng(index)
        return torch.from_numpy(generator.random(32, dtype=np.float32)), index % 5


def network(width: int = 64, depth: int = 2) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(32, width), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 5))


@case("logging", label="host", stages="read host device")
def logging_every_step(knobs: Knobs, clock: Clock) -> None:
    """Histograms of all weights and gradients, as text, flushed to disk at every step."""
    model = network(256)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(Points(knobs), batch_size=8, shuffle=False, num_workers=1)
    with open(knobs.folder / "log.jsonl", "w") as log:
        for step, (points, labels) in enumerate(loader):
            if not knobs.off("device"):
                loss = nn.functional.cross_entropy(model(points), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if not knobs.off("host"):
                record: dict[str, Any] = {"step": step}
                for name, parameter in model.named_parameters():
                    for kind, values in (("value", parameter), ("gradient", parameter.grad)):
                        counts, edges = np.histogram(parameter.detach() if values is None else values.detach(), 60)
                        record[f"{name}.{kind}"] = {"counts": counts.tolist(), "edges": edges.tolist()}
                log.write(json.dumps(record) + "\n")
                log.flush()
                os.fsync(log.fileno())
            if clock.over():
                break


@case("checkpoint", label="host", stages="read host device")
def checkpoints(knobs: Knobs, clock: Clock) -> None:
    """A checkpoint every ten steps, of a model whose embedding is large and hardly used."""
    model = nn.ModuleDict({"table": nn.EmbeddingBag(250_000, 64, sparse=True), "head": nn.Linear(96, 5)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    path = knobs.folder / "last.pt"
    for step, (points, labels) in enumerate(DataLoader(Points(knobs), 8, num_workers=1)):
        if not knobs.off("device"):
            features = torch.cat([points, model["table"](labels[:, None])], 1)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model["head"](features), labels).backward()
            optimizer.step()
        if step % 10 == 9 and not knobs.off("host"):
            torch.save({"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
        if clock.over():
            break


class Trainer:
    """A loop in methods, with a validation of its own every 25 steps."""

    def __init__(self, model: nn.Module, knobs: Knobs, clock: Clock) -> None:
        self.model, self.knobs, self.clock = model, knobs, clock
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        held_out = TensorDataset(torch.rand(12_000, 32), torch.arange(12_000) % 5)
        self.valid = DataLoader(held_out, batch_size=400)
        self.accuracies: list[float] = []

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        points, labels = batch
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(points), labels).backward()
        self.optimizer.step()

    @torch.no_grad()
    def validate(self) -> None:
        self.model.eval()
        right = sum(int((self.model(points).argmax(1) == labels).sum()) for points, labels in self.valid)
        self.accuracies.append(right / 12_000)
        self.model.train()

    def fit(self, loader: DataLoader) -> None:
        for step, batch in enumerate(loader):
            if not self.knobs.off("device"):
                self.training_step(batch)
            if step % 25 == 24 and not self.knobs.off("host"):
                self.validate()
            if self.clock.over():
                return


@case("validation", label="host", stages="read host device")
def validation_loop(knobs: Knobs, clock: Clock) -> None:
    Trainer(network(256, 3), knobs, clock).fit(DataLoader(Points(knobs), batch_size=16, shuffle=True, num_workers=1))


@case("metrics", label="host", stages="read host device")
def python_metrics(knobs: Knobs, clock: Clock) -> None:
    """A running confusion matrix and an area under the curve, over Python lists, at every step."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    seen: list[tuple[float, int]] = []
    confusion = [[0] * 5 for _ in range(5)]
    for points, labels in DataLoader(Points(knobs), batch_size=32, num_workers=2):
        logits = torch.zeros(32, 5)
        if not knobs.off("device"):
            logits = model(points)
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, labels).backward()
            optimizer.step()
        if not knobs.off("host"):
            for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
                confusion[label][row.index(max(row))] += 1
                seen.append((row[0], int(label == 0)))
            seen = seen[-8_000:]
            ranked = sorted(seen + [(score + 1e-9, label) for score, label in seen])
            hits = area = 0
            for _, label in ranked:
                hits += label
                area += hits * (1 - label)
        if clock.over():
            break


@case("synchronisation", label="host", stages="read host device")
def item_every_parameter(knobs: Knobs, clock: Clock) -> None:
    """`.item()` for the norm, mean and extremes of each of eighty parameters, every step, into a CSV file."""
    model = network(32, 40)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, foreach=True)
    with open(knobs.folder / "norms.csv", "w", newline="") as file:
        writer = csv.writer(file)
        for points, labels in DataLoader(Points(knobs), batch_size=4, num_workers=1):
            if not knobs.off("device"):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(points), labels).backward()
                optimizer.step()
            if not knobs.off("host"):
                for number, parameter in enumerate(model.parameters()):
                    value = parameter.detach()
                    row = [
                        value.norm(),
                        value.mean(),
                        value.std(),
                        value.min(),
                        value.max(),
                        value.abs().median(),
                    ]
                    quantiles = [value.quantile(q).item() for q in (0.01, 0.05, 0.25, 0.75, 0.95, 0.99)]
                    writer.writerow([number, *(one.item() for one in row), *quantiles])
            if clock.over():
                break


@case("garbage collection", label="host", stages="read host device")
def collect_every_step(knobs: Knobs, clock: Clock) -> None:
    """`gc.collect()` after every step, "against leaks", in a process that holds many objects."""
    catalogue = [{"id": number, "tags": [number]} for number in range(80_000)]
    model = network()
    optimizer = torch.optim.RMSprop(model.parameters())
    for points, labels in DataLoader(Points(knobs), batch_size=16):
        if not knobs.off("device"):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(points), labels).backward()
            optimizer.step()
        if not knobs.off("host"):
            gc.collect()
        if clock.over():
            break
    del catalogue


if __name__ == "__main__":
    sys.exit(main())
