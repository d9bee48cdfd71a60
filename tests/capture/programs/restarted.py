"""Two ranks of an elastic job; rank 1 fails in the first attempt, and the launcher starts both again."""

import os
import sys

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset


class Numbers(Dataset):
    def __len__(self) -> int:
        return 160

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((8,), float(index))


def main() -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    model = torch.nn.Linear(8, 2)
    for number, batch in enumerate(DataLoader(Numbers(), batch_size=4)):
        model(batch).sum().backward()
        dist.barrier()
        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and number == 20 and dist.get_rank() == 1:
            sys.exit("the first attempt fails")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
