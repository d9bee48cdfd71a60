"""A Grain DataLoader, whose threads read and transform ahead of the loop; a transform of its rows is the limit."""

import grain
import numpy as np
import torch
from rows import smoothed
from training import train


class Smooth(grain.transforms.Map):
    def map(self, row: np.ndarray) -> np.ndarray:
        return smoothed(row)


class Source:
    def __init__(self) -> None:
        self.rows = np.random.default_rng(0).random((640, 2048), dtype=np.float32)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.rows[index]


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    sampler = grain.samplers.IndexSampler(640, shuffle=False, num_epochs=1)
    loader = grain.DataLoader(
        data_source=Source(),
        sampler=sampler,
        operations=[Smooth(), grain.transforms.Batch(8)],
        worker_count=0,
        read_options=grain.ReadOptions(num_threads=1),
    )
    train(loader, 900, torch.from_numpy)


if __name__ == "__main__":
    main()
