"""A loader at about 200 ms a batch, brought to about 30 ms by doing what each report advises, one change at a time.

    loaderprof run train.py                                        as it was found
    loaderprof run train.py --half-size                            decode at half size: the network sees less anyway
    loaderprof run train.py --half-size --num-workers 2            two workers
    loaderprof run train.py --half-size --num-workers 2 --cache    keep what is decoded, before what is random

`python tests/benchmarks/step_by_step.py` runs all four, and says what each report predicted of the next change.
"""

import argparse
import random
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

PHOTOS, SIZE, CROP = 240, 1120, 224


def photos(folder: Path) -> Path:
    """Smooth colour fields with film grain, as much work for the decoder as real photographs; made once."""
    folder.mkdir(exist_ok=True)
    for number in range(PHOTOS):
        path, rng = folder / f"{number % 10}_{number:04d}.jpg", np.random.default_rng(number)
        if path.exists():
            continue
        colours = Image.fromarray(rng.integers(0, 256, (25, 25, 3), dtype=np.uint8)).resize((SIZE // 2, SIZE // 2))
        grain = rng.integers(-16, 16, (SIZE // 2, SIZE // 2, 3), dtype=np.int16)
        pixels = (np.asarray(colours) + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels.repeat(2, axis=0).repeat(2, axis=1)).save(path, quality=90)
    return folder


class Photos(Dataset):
    def __init__(self, folder: Path, half_size: bool, cache: bool) -> None:
        self.paths, self.half_size = sorted(folder.glob("*.jpg")), half_size
        self.cached = [self.load(path) for path in self.paths] if cache else None

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, path: Path) -> Image.Image:
        image = Image.open(path)
        if self.half_size:
            image.draft("RGB", (SIZE // 2, SIZE // 2))
        return image.convert("RGB")

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = self.cached[index] if self.cached else self.load(self.paths[index])
        scale = random.uniform(0.6, 0.95) * image.width
        left, top = random.uniform(0, image.width - scale), random.uniform(0, image.height - scale)
        box = (left, top, left + scale, top + scale)
        pixels = np.asarray(image.resize((CROP, CROP), Image.Resampling.BILINEAR, box=box))
        if random.random() < 0.5:
            pixels = pixels[:, ::-1].copy()
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1), int(self.paths[index].name[0])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--half-size", action="store_true")
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--cache", action="store_true")
    parser.add_argument("--epochs", type=int, default=6)
    asked = parser.parse_args()
    random.seed(0)
    torch.manual_seed(0)
    folder = photos(Path(tempfile.gettempdir()) / "loaderprof-step-by-step")
    dataset = Photos(folder, asked.half_size, asked.cache)
    train_loader = DataLoader(dataset, batch_size=16, shuffle=True, num_workers=asked.num_workers)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 7, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for epoch in range(asked.epochs):
        for images, labels in train_loader:
            loss = nn.functional.cross_entropy(model(images.float() / 255), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}  loss {loss.item():.4f}", flush=True)


if __name__ == "__main__":
    main()
