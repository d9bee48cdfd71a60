"""Pipelines whose samples are cheap and whose batches are not: padding, nested samples, graphs, masks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from casework import Always, Clock, Knobs, case, main
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset


class Sentences(Dataset):
    """Token lists of many lengths."""

    def __init__(self, longest: int) -> None:
        rng = np.random.default_rng(0)
        self.rows = [rng.integers(1, 1000, rng.integers(20, longest)).tolist() for _ in range(2000)]

    def __len__(self) -> int:
        return 200_000

    def __getitem__(self, index: int) -> list[int]:
        return self.rows[index % len(self.rows)]


@case("padding", label="collate", stages="collate device")
def pad_in_python(knobs: Knobs, clock: Clock) -> None:
    def pad(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(len(row) for row in rows)
        tokens, mask = [], []
        for row in rows:
            tokens.append([row[i] if i < len(row) else 0 for i in range(longest)])
            mask.append([i < len(row) for i in range(longest)])
        return torch.tensor(tokens), torch.tensor(mask)

    dataset = Sentences(400)
    collate = knobs.pick("collate", pad, Always(pad([dataset[i] for i in range(64)])))
    loader = DataLoader(dataset, batch_size=64, shuffle=True, num_workers=1, collate_fn=collate)
    embed = nn.EmbeddingBag(1000, 8)
    for tokens, mask in loader:
        if not knobs.off("device"):
            embed(tokens, per_sample_weights=None)[mask.any(1)].mean().backward()
            embed.zero_grad()
        if clock.over():
            break


@case("many small tensors", label="collate", stages="collate device")
def dictionaries(knobs: Knobs, clock: Clock) -> None:
    """A sample is a dictionary of 200 scalars, which default_collate joins one key at a time."""
    row = {f"feature_{number}": torch.tensor(float(number)) for number in range(200)}

    class Features(Dataset):
        def __len__(self) -> int:
            return 1_000_000

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return row

    ready = {name: value.repeat(32) for name, value in row.items()}
    loader = DataLoader(Features(), batch_size=32, num_workers=0, collate_fn=knobs.pick("collate", None, Always(ready)))
    model = nn.Linear(200, 2)
    for batch in loader:
        if not knobs.off("device"):
            model(torch.stack(list(batch.values()), 1)).mean().backward()
            model.zero_grad()
        if clock.over():
            break


@case("graphs", label="collate", stages="collate device")
def block_adjacency(knobs: Knobs, clock: Clock) -> None:
    """Many graphs become one: their dense adjacency matrices along a diagonal."""
    rng = np.random.default_rng(0)
    graphs = [(rng.random((n, 16), dtype=np.float32), (rng.random((n, n)) < 0.1)) for n in rng.integers(20, 60, 200)]

    class Molecules(Dataset):
        def __len__(self) -> int:
            return 100_000

        def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            return graphs[index % 200]

    class Join:
        def __call__(self, samples: list[tuple[np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
            total = sum(len(nodes) for nodes, _ in samples)
            adjacency, at = np.zeros((total, total), np.float32), 0
            for nodes, edges in samples:
                adjacency[at : at + len(nodes), at : at + len(nodes)] = edges
                at += len(nodes)
            degree = adjacency.sum(1, keepdims=True) + 1
            sparse = torch.from_numpy(adjacency / degree).to_sparse()
            return torch.from_numpy(np.concatenate([nodes for nodes, _ in samples])), sparse.indices()

    join = Join()
    ready = join([graphs[i] for i in range(32)])
    loader = DataLoader(Molecules(), 32, num_workers=2, collate_fn=knobs.pick("collate", join, Always(ready)))
    model = nn.Linear(16, 8)
    for nodes, edges in loader:
        if not knobs.off("device"):
            model(nodes)[edges[0]].mean().backward()
            model.zero_grad()
        if clock.over():
            break


@case("masks", label="collate", stages="collate device")
def box_masks(knobs: Knobs, clock: Clock) -> None:
    """Targets drawn as dense masks while the batch is made."""

    class Boxes(IterableDataset):
        def __iter__(self) -> Iterator[torch.Tensor]:
            generator = torch.Generator().manual_seed(0)
            while True:
                corners = torch.rand(30, 2, generator=generator) * 150
                yield torch.cat([corners, corners + 40], 1)

    def draw(samples: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        masks = torch.zeros(len(samples), 30, 192, 192, dtype=torch.bool)
        for i, boxes in enumerate(samples):
            for j, (x0, y0, x1, y1) in enumerate(boxes.int().tolist()):
                masks[i, j, y0:y1, x0:x1] = True
        return torch.stack(samples), masks.float().mean(1)

    collate = knobs.pick("collate", draw, Always((torch.rand(8, 30, 4), torch.zeros(8, 192, 192))))
    model = nn.Linear(4, 1)
    for boxes, heat in DataLoader(Boxes(), batch_size=8, num_workers=1, collate_fn=collate):
        if not knobs.off("device"):
            (model(boxes).mean() + heat[:, :10, :10].mean()).backward()
            model.zero_grad()
        if clock.over():
            break


@case("rows one by one", label="read", also="collate", stages="read collate device")
def tensor_rows(knobs: Knobs, clock: Clock) -> None:
    """A table in memory, fetched row by row and stacked again: a slice would do."""
    dataset = TensorDataset(torch.randn(40_000, 24), torch.randn(40_000, 24), torch.arange(40_000) % 7)
    ready = [tensor[:1024] for tensor in dataset.tensors]

    class Rows(Dataset):
        def __len__(self) -> int:
            return len(dataset)

        def __getitem__(self, index: int) -> Any:
            return dataset[index]

        def __getitems__(self, indices: list[int]) -> list[Any]:
            return [first] * len(indices)

    first = dataset[0]
    source: Any = Rows() if knobs.off("read") else dataset
    collate = knobs.pick("collate", None, Always(ready))
    model = nn.Linear(48, 7)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    while not clock.done:
        for left, right, label in DataLoader(source, batch_size=1024, shuffle=True, collate_fn=collate):
            if not knobs.off("device"):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(torch.cat([left, right], 1)), label).backward()
                optimizer.step()
            if clock.over():
                break


if __name__ == "__main__":
    sys.exit(main())
