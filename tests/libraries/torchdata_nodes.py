"""torchdata.nodes without a DataLoader: threads map, a batcher collects; a transform of its rows is the limit."""

import torch
from rows import Rows
from torch.utils.data import SequentialSampler
from torchdata.nodes import Batcher, Loader, ParallelMapper, SamplerWrapper
from training import train


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = Rows()
    node = ParallelMapper(SamplerWrapper(SequentialSampler(rows)), rows.__getitem__, num_workers=1, method="thread")
    loader = Loader(Batcher(node, batch_size=8))
    train(loader, 900, lambda batch: torch.stack([row["values"] for row in batch]))


if __name__ == "__main__":
    main()
