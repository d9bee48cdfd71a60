"""Local chunks of litdata with a transform of the user's: ranking the values is the limit."""

import tempfile

import numpy as np
import torch
from litdata import StreamingDataLoader, StreamingDataset
from litdata.streaming.writer import BinaryWriter
from training import train


class Ranked(StreamingDataset):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return self.ranks(sample["values"]), sample["label"]

    def ranks(self, values):
        order = np.sort(np.asarray(values).reshape(16, -1), axis=1)
        return torch.from_numpy(np.quantile(order, np.linspace(0, 1, 64), axis=1))  # the limit


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        writer = BinaryWriter(folder, chunk_bytes="16MB")
        for number in range(96):
            writer[number] = {"values": np.random.default_rng(number).standard_normal(128_000), "label": number % 10}
        writer.done()
        writer.merge()
        dataset = Ranked(folder, shuffle=False)
        loader = StreamingDataLoader(dataset, batch_size=8, num_workers=1)
        train(loader, 48, lambda batch: batch[0])


if __name__ == "__main__":
    main()
