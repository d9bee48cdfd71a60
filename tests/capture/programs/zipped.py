"""Two loaders that step together: the labelled one is always ready, the unlabelled one is waited for."""

import time

import torch
from torch.utils.data import DataLoader, Dataset


class Samples(Dataset):
    def __init__(self, pause_s: float) -> None:
        self.pause_s = pause_s

    def __len__(self) -> int:
        return 320

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(self.pause_s)
        return torch.full((16,), float(index))


if __name__ == "__main__":
    torch.set_num_threads(1)
    weights = torch.zeros(16, requires_grad=True)
    labelled = DataLoader(Samples(0.0005), batch_size=8, num_workers=1)
    unlabelled = DataLoader(Samples(0.004), batch_size=8, num_workers=1)
    for one, other in zip(labelled, unlabelled, strict=True):
        ((one * weights).sum() + (other * weights).sum()).backward()
        time.sleep(0.004)
