"""Photographs straight from a camera, a small network: JPEG decoding is the limit.

The network looks at 160 x 160 pixels, yet every step decodes photographs of 1600 x 1200 pixels to get them,
in a single worker.
"""

import random
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset


def make_photos(folder: Path, count: int) -> None:
    """Smooth colour fields with film grain: as much work for the decoder as a real photograph."""
    rng = np.random.default_rng(0)
    for number in range(count):
        colours = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((800, 600))
        grain = rng.integers(-16, 16, (600, 800, 3), dtype=np.int16)
        pixels = (np.asarray(colours) + grain).clip(0, 255).astype(np.uint8)
        pixels = pixels.repeat(2, axis=0).repeat(2, axis=1)
        Image.fromarray(pixels).save(folder / f"{number % 10}_{number:04d}.jpg", quality=95)


class Photos(Dataset):
    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.jpg"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path = self.paths[index]
        image = Image.open(path).convert("RGB")
        left, top = random.randrange(1600 - 640), random.randrange(1200 - 640)
        image = image.resize((160, 160), Image.Resampling.BILINEAR, box=(left, top, left + 640, top + 640))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return pixels.float() / 255, int(path.name[0])


def main() -> None:
    random.seed(0)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        make_photos(Path(folder), 160)
        loader = DataLoader(Photos(Path(folder)), batch_size=8, shuffle=True, num_workers=1)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 5, stride=4),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 10),
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for epoch in range(4):
            for images, labels in loader:
                loss = nn.functional.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            print(f"epoch {epoch}  loss {loss.item():.4f}", flush=True)


if __name__ == "__main__":
    main()
