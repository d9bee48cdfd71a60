"""OpenCV called by hand in `__getitem__`: the bilateral filter is the limit."""

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from training import photograph, train

cv2.setNumThreads(1)


class Smoothed(Dataset):
    def __init__(self):
        self.encoded = []
        for number in range(48):
            picture = np.asarray(photograph(240, 240, number))
            self.encoded.append(cv2.imencode(".jpg", picture)[1])

    def __len__(self):
        return len(self.encoded)

    def __getitem__(self, index):
        image = cv2.imdecode(self.encoded[index], cv2.IMREAD_COLOR)
        image = cv2.resize(image, (192, 192), interpolation=cv2.INTER_AREA)
        image = cv2.bilateralFilter(image, 13, 60, 60)  # the limit
        return torch.from_numpy(image).permute(2, 0, 1).float() / 255


def main() -> None:
    torch.manual_seed(0)
    loader = DataLoader(Smoothed(), batch_size=8, shuffle=True, num_workers=1, persistent_workers=True)
    train(loader, 60, lambda batch: batch)


if __name__ == "__main__":
    main()
