"""Large pictures through OpenCV and albumentations: reading them is the limit."""

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
        image = cv2.imread(str(self.paths[index]))  # the limit
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        augmented = self.transform(image=image)
        return augmented["image"], index % 10


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number:03}.jpg" for number in range(48)]
        for number, path in enumerate(paths):
            photograph(1600, 1200, number % 6).save(path, quality=92)
        transform = A.Compose([A.RandomCrop(224, 224), A.HorizontalFlip(p=0.5), A.Normalize(), ToTensorV2()], seed=0)
        loader = DataLoader(Pictures(paths, transform), batch_size=8, num_workers=1, persistent_workers=True)
        train(loader, 30, lambda batch: batch[0])


if __name__ == "__main__":
    main()
