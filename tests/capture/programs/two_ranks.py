"""Two ranks train together over gloo; the loader of rank 1 reads slowly, and rank 0 waits for it in its own step.

Under srun and mpirun the script itself says which rank it is, as users' scripts do.
"""

import os
import time

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset


class Slow(Dataset):
    def __init__(self, milliseconds: float) -> None:
        self.milliseconds = milliseconds

    def __len__(self) -> int:
        return 280

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(self.milliseconds / 1e3)
        return torch.full((8,), float(index))


def main() -> None:
    for theirs in ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK"):
        if theirs in os.environ:
            os.environ.update(RANK=os.environ[theirs], WORLD_SIZE="2")
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 2))
    for batch in DataLoader(Slow(20 if dist.get_rank() == 1 else 1), batch_size=4, num_workers=1):
        model(batch).sum().backward()
        time.sleep(0.005)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
