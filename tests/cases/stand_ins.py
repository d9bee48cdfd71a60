"""What cases of several families use in place of a real accelerator, a real data set or real photographs."""

from __future__ import annotations

import time

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset


class Slow(nn.Module):
    """Stands for a remote accelerator: the caller waits and needs no CPU."""

    def __init__(self, seconds: float, width: int = 64) -> None:
        super().__init__()
        self.seconds = seconds
        self.head = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return self.head(x)


class Light(Dataset):
    """Cheap samples."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((64,), float(index))


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colour fields with grain: as much work for a decoder as a real photograph."""
    rng = np.random.default_rng(seed)
    colours = Image.fromarray(rng.integers(0, 256, (height // 40, width // 40, 3), dtype=np.uint8))
    grain = rng.integers(-14, 14, (height, width, 1), dtype=np.int16)
    return Image.fromarray((np.asarray(colours.resize((width, height))) + grain).clip(0, 255).astype(np.uint8))


def small_net(channels: int = 3, classes: int = 10) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 8, 7, stride=6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, classes),
    )
