"""What every script here shares: a model that costs next to nothing, and pictures to make data of."""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import library as torch_library
from torch import nn


def ask_for_torchvision() -> None:
    """Let a torchvision without its compiled operators import: the transforms need none of them."""
    try:
        library = torch_library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except RuntimeError:  # a complete torchvision has defined them
        return
    globals()["_torchvision_operators"] = library  # the definitions live as long as this object


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colour fields with grain: as much work for a decoder as a real photograph."""
    rng = np.random.default_rng(seed)
    colours = Image.fromarray(rng.integers(0, 256, (height // 40, width // 40, 3), dtype=np.uint8))
    grain = rng.integers(-14, 14, (height, width, 1), dtype=np.int16)
    return Image.fromarray((np.asarray(colours.resize((width, height))) + grain).clip(0, 255).astype(np.uint8))


def train(loader: Iterable[Any], steps: int, take: Callable[[Any], torch.Tensor]) -> None:
    """Take whole epochs of at least `steps` batches, and print what they held and what became of the model."""
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    seen, done = hashlib.sha256(), 0
    while done < steps:
        for batch in loader:
            values = take(batch)
            seen.update(values.flatten()[::61].contiguous().numpy().tobytes())
            loss = model(values.flatten()[:64].float().reshape(-1, 4) / 1e3).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
    print(f"{done} steps, loss {loss.item():.6f}, batches {seen.hexdigest()[:16]}", flush=True)
