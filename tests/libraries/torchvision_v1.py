"""A folder of large JPEG files, read by torchvision's own dataset: decoding them is the limit."""

import tempfile
from pathlib import Path

import torch
from training import ask_for_torchvision, photograph, train

ask_for_torchvision()
from torch.utils.data import DataLoader  # noqa: E402
from torchvision import datasets, transforms  # noqa: E402


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "cat").mkdir()
        for number in range(48):
            photograph(1600, 1200, number % 6).save(Path(folder) / "cat" / f"{number:03}.jpg", quality=92)
        normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        crop = transforms.Compose([transforms.CenterCrop(224), transforms.ToTensor(), normalize])
        dataset = datasets.ImageFolder(folder, crop)  # the limit
        loader = DataLoader(dataset, batch_size=8, shuffle=True, num_workers=1, persistent_workers=True)
        train(loader, 30, lambda batch: batch[0])


if __name__ == "__main__":
    main()
