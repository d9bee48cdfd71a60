"""A loop to be killed: says who it is, then each batch, until it has taken 100,000 or somebody ends it."""

import os

import torch
from torch.utils.data import DataLoader, Dataset


class Numbers(Dataset):
    def __len__(self) -> int:
        return 400_000

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.rand(16).sort().values + index


if __name__ == "__main__":
    torch.set_num_threads(1)
    batches = iter(DataLoader(Numbers(), batch_size=4, num_workers=2))
    print(os.getpid(), *(worker.pid for worker in batches._workers), flush=True)
    for number, _ in enumerate(batches):
        print(number, flush=True)
