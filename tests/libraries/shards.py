"""A job over 32 MiB of mosaicml-streaming's shards, 1 MiB each, of which the local cache holds twelve."""

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


def run(places: int, steps: int) -> None:
    """Train on shards that are read at so many places by turns."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        write(folder + "/remote")
        dataset = StreamingDataset(  # the limit
            remote=folder + "/remote",
            local=folder + "/local",
            batch_size=8,
            shuffle=True,
            cache_limit=12 << 20,
            num_canonical_nodes=places,
        )
        loader = DataLoader(dataset, batch_size=8, num_workers=1, persistent_workers=True)
        train(loader, steps, lambda batch: batch["values"].float())
