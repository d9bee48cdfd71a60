"""What the scripts of trainers share: rows that are quick to read and slow to transform."""

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset


class Rows(Dataset):
    """Rows of numbers with a label, each put through `smoothed`."""

    def __init__(self, count: int = 640) -> None:
        self.rows = np.random.default_rng(0).random((count, 2048), dtype=np.float32)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"values": torch.from_numpy(smoothed(self.rows[index])), "labels": torch.tensor(index % 2)}


def smoothed(row: np.ndarray, rounds: int = 60) -> np.ndarray:  # the limit
    """About two milliseconds of real work; 16 numbers."""
    for _ in range(rounds):
        row = np.sort(np.convolve(row, np.ones(5, np.float32) / 5, mode="same"))  # the limit
    return row[::128].astype(np.float32)
