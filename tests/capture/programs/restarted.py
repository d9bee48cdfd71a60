"""Two ranks of an elastic job; rank 1 fails in the first attempt, and the launcher starts both again."""

import os
import sys
import time

import torch
from torch.utils.data import DataLoader, Dataset


class Numbers(Dataset):
    def __len__(self) -> int:
        return 160

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(0.002)
        return torch.full((8,), float(index))


def main() -> None:
    torch.set_num_threads(1)
    model = torch.nn.Linear(8, 2)
    for number, batch in enumerate(DataLoader(Numbers(), batch_size=4)):
        model(batch).sum().backward()
        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and number == 20:
            if os.environ["RANK"] == "1":
                sys.exit("the first attempt fails")
            time.sleep(60)  # until the launcher ends it


if __name__ == "__main__":
    main()
