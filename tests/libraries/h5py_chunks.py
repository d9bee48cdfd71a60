"""A compressed HDF5 file whose chunks hold many samples each: reading them is the limit."""

import tempfile

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from training import train


class Samples(Dataset):
    def __init__(self, path):
        self.path, self.file = path, None

    def __len__(self):
        return 512

    def __getitem__(self, index):
        if self.file is None:
            self.file = h5py.File(self.path, "r")
        values = self.file["values"][index]  # the limit
        return torch.from_numpy(values)


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = folder + "/samples.h5"
        with h5py.File(path, "w") as file:
            values = np.random.default_rng(0).integers(0, 12, (512, 64, 64)).astype(np.float32)
            file.create_dataset("values", data=values, chunks=(128, 64, 64), compression="gzip")
        loader = DataLoader(Samples(path), batch_size=8, shuffle=True, num_workers=1, persistent_workers=True)
        train(loader, 60, lambda batch: batch)


if __name__ == "__main__":
    main()
