"""An image folder, augmented by torchvision's v2 transforms: the blur is the limit."""

import tempfile
from pathlib import Path

import torch
from training import ask_for_torchvision, photograph, train

ask_for_torchvision()
from torch.utils.data import DataLoader  # noqa: E402
from torchvision.datasets import ImageFolder  # noqa: E402
from torchvision.transforms import v2  # noqa: E402


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(64):
            kind = Path(folder) / f"class{number % 4}"
            kind.mkdir(exist_ok=True)
            photograph(160, 160, number).save(kind / f"{number:03}.png")
        augment = v2.Compose(
            [
                v2.ToImage(),
                v2.RandomResizedCrop(128, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.GaussianBlur(23, sigma=(0.1, 2.0)),  # the limit
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.5] * 3, [0.25] * 3),
            ]
        )
        dataset = ImageFolder(folder, transform=augment)
        train(DataLoader(dataset, batch_size=8, shuffle=True, num_workers=1), 80, lambda batch: batch[0])


if __name__ == "__main__":
    main()
