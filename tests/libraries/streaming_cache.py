"""Shards of mosaicml-streaming in a local cache that holds a third of them: what fetches and unpacks them is the limit."""

import tempfile

import numpy as np
import torch
from torch.utils.data import DataLoader
from training import ask_for_torchvision, train

ask_for_torchvision()
from streaming import MDSWriter, StreamingDataset  # noqa: E402


def write(folder: str) -> None:
    rng = np.random.default_rng(0)
    columns = {"values": "ndarray"}
    with MDSWriter(out=folder, columns=columns, compression="zstd", size_limit=1 << 20) as out:
        for _ in range(512):
            out.write({"values": np.cumsum(rng.integers(-2, 3, 32768)).astype(np.int16)})


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
