"""A Grain dataset behind `loaderprof.watch()`: its threads map, the loop takes batches; a transform is the limit."""

import grain
import numpy as np
import torch
from rows import smoothed
from training import train

import loaderprof


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = np.random.default_rng(0).random((640, 2048), dtype=np.float32)
    dataset = grain.MapDataset.source(list(rows)).map(smoothed).batch(8).repeat(24)
    batches = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8))
    train(loaderprof.watch(batches, name="grain"), 1800, torch.from_numpy)


if __name__ == "__main__":
    main()
