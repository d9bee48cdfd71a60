"""Small real pipelines for the benchmarks of prediction, each a training job of its own.

    python tests/benchmarks/pipelines.py NUMBER [--num-workers N] ... [--seconds S]

runs one of them and prints the samples per second of its whole epochs, the first left out. Sleeps stand for what needs
no core: reads, and the step of a device with room for larger batches. Other work is counted, not timed, so that it takes
longer where a core is not free; a step that computes grows with its batch.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

BATCHES = 60
_NUMBERS = np.random.default_rng(0).random(4096)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What samples and steps do: `sample` of a sample's number, `step` of a step's number and its batch's size over the usual.

    `threads`: of torch in a step.
    """

    name: str
    sample: Callable[[int], Any]
    step: Callable[[int, float], None]
    batch_size: int = 12
    batches: int = BATCHES
    threads: int = 1


class Samples(Dataset[Any]):
    """A pipeline's samples, made one by one."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def __len__(self) -> int:
        return self.pipeline.batches * self.pipeline.batch_size

    def __getitem__(self, index: int) -> Any:
        return self.pipeline.sample(index)


def train(pipeline: Pipeline, seconds: float, batch_size: int | None = None, **settings: Any) -> float:
    """Go over a pipeline's loader, epoch after epoch, for at least so long, and return samples per second.

    The first epoch, which warms up, is left out.

    Args:
        pipeline: what to run.
        seconds: of whole epochs to measure.
        batch_size: other than the pipeline's own.
        settings: of the DataLoader.
    """
    torch.set_num_threads(pipeline.threads)
    dataset = Samples(pipeline)
    train_loader = DataLoader(dataset, batch_size=batch_size or pipeline.batch_size, **settings)
    number, epochs, begun = 0, -1, time.perf_counter()
    while time.perf_counter() - begun < seconds or epochs < 1:
        if epochs < 0:
            begun = time.perf_counter()
        for batch in train_loader:
            pipeline.step(number, size_of(batch) / pipeline.batch_size)
            number += 1
        epochs += 1
        if epochs == 0:
            begun = time.perf_counter()
    return epochs * len(dataset) / (time.perf_counter() - begun)


def size_of(batch: Any) -> int:
    """Return how many samples a batch holds."""
    return len(next(iter(batch.values())) if isinstance(batch, dict) else batch)


def burn(ms: float) -> None:
    """About `ms` of real CPU work, more where the machine is slower: a count of numpy calls, not a clock."""
    for _ in range(round(ms * 100)):
        np.sqrt(_NUMBERS * _NUMBERS + 1.0).sum()


def nap(ms: float) -> None:
    time.sleep(ms / 1e3)


def jitter(index: int, shape: float) -> float:
    """A factor of mean 1 for sample `index`, gamma-distributed."""
    return float(np.random.default_rng(index).gamma(shape, 1 / shape))


def jpeg(size: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (size // 8, size // 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((size, size)).save(file, "JPEG", quality=85)
    return file.getvalue()


JPEG = jpeg(320)
LIMIT = torch.multiprocessing.get_context("fork").BoundedSemaphore(2)
SQUARE = torch.ones(440, 440)
NET = nn.Sequential(
    nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
)
PICTURES = torch.ones(4, 3, 96, 96)
CORES = os.cpu_count() or 1


def decode(_: int) -> torch.Tensor:
    return torch.from_numpy(np.asarray(Image.open(io.BytesIO(JPEG)).convert("RGB").resize((224, 224))).copy())


def mixed(read_ms: float, cpu_ms: float, shape: float | None = None) -> Callable[[int], int]:
    """A sample that reads and computes for so long, by a factor of its own where there is a shape."""

    def sample(index: int) -> int:
        factor = jitter(index, shape) if shape else 1.0
        if read_ms:
            nap(read_ms * factor)
        burn(cpu_ms * factor)
        return index

    return sample


def slow_ones(index: int) -> int:
    nap(40.0 if index % 40 == 21 else 2.0)
    return index


def limited(index: int) -> int:
    with LIMIT:
        nap(3.0)
    return index


def small_tensors(index: int) -> dict[str, torch.Tensor]:
    nap(1.0)
    return {str(key): torch.full((8,), index) for key in range(20)}


def big_tensors(index: int) -> torch.Tensor:
    return torch.full((3, 256, 256), float(index))


def tokens(index: int) -> torch.Tensor:
    words = [f"word{(index * 31 + place) % 977}" for place in range(600)]
    return torch.tensor([len(word) * 7 + sum(map(ord, word)) for word in words])


def sleeps(ms: float) -> Callable[[int, float], None]:
    return lambda _, __: nap(ms)


def burns(ms: float) -> Callable[[int, float], None]:
    return lambda _, size: burn(ms * size)


def matmul(_: int, size: float) -> None:
    for _ in range(round(5 * size)):
        SQUARE @ SQUARE


def convolutions(_: int, size: float) -> None:
    for _ in range(round(2 * size)):
        NET(PICTURES).sum().backward()


PIPELINES = (
    Pipeline("sleep read, sleep step", mixed(4, 0), sleeps(15)),
    Pipeline("slow samples, 1 in 40 x 20", slow_ones, sleeps(12)),
    Pipeline("heavy-tailed read", mixed(3, 0, 0.5), sleeps(12)),
    Pipeline("two reads at once", limited, sleeps(9)),
    Pipeline("cpu transforms", mixed(0, 2), sleeps(9)),
    Pipeline("cpu transforms, cpu step", mixed(0, 2), burns(15)),
    Pipeline("jpeg, sleep step", decode, sleeps(12), batch_size=16),
    Pipeline("jpeg, cpu step", decode, matmul, batch_size=16),
    Pipeline("read + cpu", mixed(2, 2), sleeps(12)),
    Pipeline("read + cpu jittery, cpu step", mixed(1, 2, 2.0), burns(12)),
    Pipeline("tokens, cpu step", tokens, burns(12), batch_size=32),
    Pipeline("step-bound", mixed(0.5, 0), sleeps(20)),
    Pipeline("many small tensors", small_tensors, sleeps(4), batch_size=4, batches=120),
    Pipeline("big tensors", big_tensors, sleeps(5), batch_size=16),
    Pipeline("short epochs", mixed(2, 0), sleeps(6), batches=12),
    Pipeline("jpeg, step on all cores", decode, convolutions, batch_size=16, threads=CORES),
    Pipeline("read + cpu, step on all cores", mixed(2, 1), matmul, batch_size=16, threads=CORES),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("number", type=int)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--prefetch-factor", type=int)
    parser.add_argument("--persistent-workers", action="store_true")
    parser.add_argument("--any-order", action="store_true")
    parser.add_argument("--seconds", type=float, default=math.inf)
    asked = parser.parse_args()
    print(
        train(
            PIPELINES[asked.number],
            asked.seconds,
            num_workers=asked.num_workers,
            prefetch_factor=asked.prefetch_factor,
            persistent_workers=asked.persistent_workers,
            in_order=not asked.any_order,
        )
    )


if __name__ == "__main__":
    main()
