"""Shards of mosaicml-streaming that fill 32 MiB unpacked, 1 MiB each."""

import numpy as np
from training import ask_for_torchvision

ask_for_torchvision()
from streaming import MDSWriter, StreamingDataset  # noqa: E402

__all__ = ["StreamingDataset", "write"]


def write(folder: str) -> None:
    rng = np.random.default_rng(0)
    columns = {"values": "ndarray"}
    with MDSWriter(out=folder, columns=columns, compression="zstd", size_limit=1 << 20) as out:
        for _ in range(512):
            out.write({"values": np.cumsum(rng.integers(-2, 3, 32768)).astype(np.int16)})
