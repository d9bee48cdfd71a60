"""timm's own dataset, transform and loader, with its prefetcher on the CPU: RandAugment on PIL images is the limit."""

import random
import tempfile
from pathlib import Path

import numpy as np
import torch
from training import ask_for_torchvision, photograph, train

ask_for_torchvision()
from timm.data import ImageDataset, create_loader  # noqa: E402


def main() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(64):
            kind = Path(folder) / f"class{number % 4}"
            kind.mkdir(exist_ok=True)
            photograph(240, 240, number).save(kind / f"{number:03}.jpg")
        dataset = ImageDataset(folder)
        loader = create_loader(  # the limit
            dataset,
            input_size=(3, 192, 192),
            batch_size=8,
            is_training=True,
            use_prefetcher=True,
            auto_augment="rand-m9-n6-mstd0.5",
            num_workers=1,
            device=torch.device("cpu"),
            pin_memory=False,
        )
        train(loader, 64, lambda batch: batch[0])


if __name__ == "__main__":
    main()
