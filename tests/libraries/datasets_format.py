"""Rows of Hugging Face's datasets as tensors: taking long nested lists out of Arrow is the limit."""

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader
from training import train


def main() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    values = [rng.standard_normal((60, 60)).tolist() for _ in range(200)]
    rows = datasets.Dataset.from_dict({"values": values, "label": list(range(200))}).with_format("torch")
    loader = DataLoader(rows, batch_size=8, shuffle=True, num_workers=1)  # the limit
    train(loader, 125, lambda batch: batch["values"])


if __name__ == "__main__":
    main()
