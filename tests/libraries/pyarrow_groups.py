"""A Parquet file read one row group a sample: reading and decoding the columns is the limit."""

import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset
from training import train


class Groups(Dataset):
    def __init__(self, path):
        self.path, self.file = path, None

    def __len__(self):
        return 64

    def __getitem__(self, index):
        if self.file is None:
            self.file = pq.ParquetFile(self.path)
        table = self.file.read_row_group(index, use_threads=False)  # the limit
        return torch.from_numpy(table.column("x0").to_numpy()[:256].copy())


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = folder + "/rows.parquet"
        rng = np.random.default_rng(0)
        table = pa.table({f"x{number}": rng.integers(0, 1000, 64 * 4096) * 0.5 for number in range(24)})
        pq.write_table(table, path, row_group_size=4096, compression="zstd")
        loader = DataLoader(Groups(path), batch_size=8, shuffle=True, num_workers=1, persistent_workers=True)
        train(loader, 250, lambda batch: batch)


if __name__ == "__main__":
    main()
