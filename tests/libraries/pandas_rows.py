"""A DataFrame asked for one row at a time: `iloc` is the limit."""

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset
from training import train


class Rows(Dataset):
    def __init__(self, frame):
        self.frame = frame
        self.columns = [name for name in frame.columns if name != "label"]

    def __len__(self):
        return len(self.frame)

    def __getitem__(self, index):
        row = self.frame.iloc[index]  # the limit
        return torch.tensor(row[self.columns].to_numpy(dtype=np.float32)), int(row["label"])


def main() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    columns = {f"x{number}": rng.random(3000) for number in range(60)}
    columns.update({f"i{number}": rng.integers(0, 9, 3000) for number in range(40)}, label=0)
    train(DataLoader(Rows(pd.DataFrame(columns)), batch_size=64, shuffle=True), 90, lambda batch: batch[0])


if __name__ == "__main__":
    main()
