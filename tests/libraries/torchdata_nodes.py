"""torchdata.nodes without a DataLoader: threads map, a batcher collects; the script's transform is the limit."""

import numpy as np
import torch
from rows import Rows, smoothed
from torch.utils.data import SequentialSampler
from torchdata.nodes import Batcher, Loader, ParallelMapper, SamplerWrapper
from training import train


class Smooth:
    def __call__(self, row: np.ndarray) -> np.ndarray:
        return smoothed(row)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = Rows(Smooth())
    node = ParallelMapper(SamplerWrapper(SequentialSampler(rows)), rows.__getitem__, num_workers=1, method="thread")
    loader = Loader(Batcher(node, batch_size=8))
    train(loader, 900, lambda batch: torch.stack([row["values"] for row in batch]))


if __name__ == "__main__":
    main()
