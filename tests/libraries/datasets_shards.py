"""An iterable dataset of Hugging Face in one shard, which only one of two workers is given: its map is the limit."""

import datasets
import numpy as np
import torch
from rows import smoothed
from torch.utils.data import DataLoader
from training import train


def slow(row):
    return {"values": smoothed(np.full(2048, row["number"], np.float32))}


def main() -> None:
    torch.manual_seed(0)
    rows = datasets.Dataset.from_dict({"number": list(range(640))}).to_iterable_dataset(num_shards=1)
    loader = DataLoader(rows.map(slow).with_format("torch"), batch_size=16, num_workers=2, persistent_workers=True)
    train(loader, 160, lambda batch: batch["values"])


if __name__ == "__main__":
    main()
