"""A training job on a GPU, of one kind: `train.py KIND [--trace FILE] [--workers N] [--steps N] [--device cpu]`.

`images`: a ResNet of sorts on JPEGs that workers decode; `tokens`: a transformer; `starved`: samples that take longer than
the step; `compute`: a step that takes longer than all samples; `pageable` and `pinned`: large batches copied to the device;
`logger`: a loss read and printed at every step; `quick`: a step of about 2 ms. With `--trace` torch's own profiler watches
too, and its events are kept as JSON. `--seconds` prints what a step took, without anything that watches it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import loaderprof

KINDS = ("images", "tokens", "starved", "compute", "pageable", "pinned", "logger", "quick")
SIDE, VOCABULARY, CONTEXT = 224, 32_000, 512


class Images(Dataset):
    """JPEGs of 500 x 375 in memory, each decoded, cut and made a tensor of floats."""

    def __init__(self, count: int) -> None:
        from PIL import Image

        torch.manual_seed(0)
        self.files = []
        for _ in range(16):
            low = torch.randint(0, 256, (24, 32, 3), dtype=torch.uint8).numpy()
            file = io.BytesIO()
            Image.fromarray(low).resize((500, 375)).save(file, "JPEG", quality=90)
            self.files.append(file.getvalue())
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        import numpy
        from PIL import Image

        image = Image.open(io.BytesIO(self.files[index % len(self.files)])).convert("RGB").resize((SIDE, SIDE))
        return torch.from_numpy(numpy.asarray(image).copy()).permute(2, 0, 1).float().div(255), index % 10


class Tokens(Dataset):
    """Slices of one long row of tokens."""

    def __init__(self, count: int) -> None:
        self.count, self.row = count, torch.arange(1 << 20) % VOCABULARY

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.row[index * 97 : index * 97 + CONTEXT + 1]


class Rows(Dataset):
    """Rows of floats, each after a wait."""

    def __init__(self, count: int, width: int, seconds: float) -> None:
        self.count, self.width, self.seconds = count, width, seconds

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(self.seconds)
        return torch.full((self.width,), float(index % 7))


class Block(nn.Module):
    """Two convolutions and the way around them."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.way = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(),
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outside),
        )
        self.around = nn.Conv2d(inside, outside, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.way(x) + self.around(x))


class Language(nn.Module):
    """A small transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 512)
        layer = nn.TransformerEncoderLayer(512, 8, 2048, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 6)
        self.head = nn.Linear(512, VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.embedding(tokens)))


class Products(nn.Module):
    """Products of large matrices: as much work as is asked for, whatever the batch holds."""

    def __init__(self, count: int, size: int = 2048) -> None:
        super().__init__()
        self.count, self.weight = count, nn.Parameter(torch.randn(size, size) / size**0.5)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        size = len(self.weight)
        x = rows.flatten()[:size].repeat(size, 1) / 7
        for _ in range(self.count):
            x = torch.tanh(x @ self.weight)
        return x


def made(kind: str, steps: int, small: bool) -> tuple[Dataset, nn.Module, int]:
    """Return the dataset, the model and the size of a batch."""
    if kind == "images":
        widths = (64, 64, 128, 256, 512)
        blocks = [Block(a, b, 2) for a, b in zip((3, *widths), widths, strict=False)]
        size = 4 if small else 64
        return (
            Images(steps * size),
            nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)),
            size,
        )
    if kind == "tokens":
        size = 1 if small else 16
        return Tokens(steps * size), Language(), size
    width = (1 << 20) if kind in ("pageable", "pinned") and not small else 1024
    products = {"compute": 60, "starved": 4, "quick": 2}.get(kind, 8)
    rows = Rows(steps * 8, width, 0.004 if kind == "starved" else 0.0)
    return rows, Products(1 if small else products, 64 if small else 2048), 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--trace")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    dataset, model, size = made(options.kind, options.steps, small=not on_gpu)
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    loader = DataLoader(
        dataset,
        batch_size=size,
        num_workers=options.workers,
        pin_memory=on_gpu and options.kind not in ("pageable", "logger"),
    )
    kinds = torch.profiler.ProfilerActivity
    watched = torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA]) if options.trace else contextlib.nullcontext()
    total, begun = torch.zeros((), device=device), 0.0
    with watched as profiler:
        for number, batch in enumerate(loader):
            if number == 20 and options.seconds:
                synchronised(on_gpu)
                begun = time.perf_counter()
            loss = loss_of(options.kind, model, batch, device)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.detach()
            if options.kind == "logger":
                print(f"{loss.item():.6f}")
    synchronised(on_gpu)
    if profiler is not None:
        profiler.export_chrome_trace(options.trace)
    if options.seconds:
        print(f"{(time.perf_counter() - begun) / (options.steps - 20):.9f}")
    else:
        print(f"total {total.item():.6f}")


def loss_of(kind: str, model: nn.Module, batch: object, device: torch.device) -> torch.Tensor:
    """Move a batch to the device, and return the model's loss on it."""
    with loaderprof.stage("copy"):
        tensors = batch if isinstance(batch, list) else [batch]
        moved = [tensor.to(device, non_blocking=True) for tensor in tensors]
    if kind == "images":
        return nn.functional.cross_entropy(model(moved[0]), moved[1])
    if kind == "tokens":
        row = moved[0]
        return nn.functional.cross_entropy(model(row[:, :-1]).flatten(0, 1), row[:, 1:].flatten())
    return model(moved[0]).square().mean()


def synchronised(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
