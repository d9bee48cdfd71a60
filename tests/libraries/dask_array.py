"""A dataset over a Dask array, of which each sample computes its rows; the transform in its graph is the limit."""

import dask
import dask.array
import numpy as np
import torch
from rows import smoothed
from torch.utils.data import DataLoader, Dataset
from training import train


class Blocks(Dataset):
    """One block of a lazy array a sample."""

    def __init__(self) -> None:
        rows = dask.array.from_array(np.random.default_rng(0).random((160, 2048), dtype=np.float32), chunks=(4, 2048))
        self.blocks = rows.map_blocks(block, dtype=np.float32, chunks=(4, 16)).blocks

    def __len__(self) -> int:
        return self.blocks.shape[0]

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.blocks[index].compute())


def block(rows: np.ndarray) -> np.ndarray:
    return np.stack([smoothed(row) for row in rows])


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with dask.config.set(scheduler="synchronous"):
        loader = DataLoader(Blocks(), batch_size=2, num_workers=1, persistent_workers=True)
        train(loader, 400, lambda batch: batch)


if __name__ == "__main__":
    main()
