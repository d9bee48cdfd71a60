"""Small pictures through albumentations: the elastic transform is the limit."""

import random
import tempfile
from pathlib import Path

import albumentations as A  # noqa: N812
import cv2
import torch
from albumentations.pytorch import ToTensorV2
from torch.utils.data import DataLoader, Dataset
from training import photograph, train

cv2.setNumThreads(0)


class Pictures(Dataset):
    def __init__(self, paths, transform):
        self.paths, self.transform = paths, transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        image = cv2.cvtColor(cv2.imread(str(self.paths[index])), cv2.COLOR_BGR2RGB)
        return self.transform(image=image)["image"]


def main() -> None:
    torch.manual_seed(0)
    random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number:03}.jpg" for number in range(64)]
        for number, path in enumerate(paths):
            photograph(320, 320, number).save(path)
        transform = A.Compose(
            [
                A.HorizontalFlip(p=0.5),
                A.RandomBrightnessContrast(p=0.5),
                A.ElasticTransform(alpha=50, sigma=20, p=1.0),  # the limit
                A.Normalize(),  # the second
                ToTensorV2(),
            ],
            seed=0,
        )
        loader = DataLoader(Pictures(paths, transform), batch_size=8, num_workers=1, persistent_workers=True)
        train(loader, 32, lambda batch: batch)


if __name__ == "__main__":
    main()
