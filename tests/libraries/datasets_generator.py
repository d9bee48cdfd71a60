"""An iterable dataset made of generator functions, as many write them: what the last one does itself is the limit."""

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset
from training import train


class Stream(IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def records(self):
        for row in self.rows:
            yield np.asarray(row["values"], dtype=np.float32)

    def __iter__(self):
        for values in self.records():
            order = np.sort(np.tile(values, (40, 1)), axis=1)  # the limit
            yield torch.from_numpy(order[:, ::50].copy())


def main() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    rows = datasets.Dataset.from_dict({"values": [rng.random(2000).tolist() for _ in range(200)]})
    loader = DataLoader(Stream(rows.with_format("numpy")), batch_size=8, num_workers=1, persistent_workers=True)
    train(loader, 300, lambda batch: batch)


if __name__ == "__main__":
    main()
