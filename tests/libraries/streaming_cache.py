"""Shards of mosaicml-streaming in a local cache that holds a third of them: what fetches and unpacks them is the limit."""

import tempfile

import torch
from shards import StreamingDataset, write
from torch.utils.data import DataLoader
from training import train


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        write(folder + "/remote")
        dataset = StreamingDataset(  # the limit
            remote=folder + "/remote", local=folder + "/local", batch_size=8, shuffle=True, cache_limit=12 << 20,
            num_canonical_nodes=1,
        )  # fmt: skip
        loader = DataLoader(dataset, batch_size=8, num_workers=1, persistent_workers=True)
        train(loader, 512, lambda batch: batch["values"].float())


if __name__ == "__main__":
    main()
