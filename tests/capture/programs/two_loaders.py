"""Two loaders without workers in turns, over several epochs: each keeps its own operators."""

import torch
from torch.utils.data import DataLoader, Dataset


class Photos(Dataset):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> torch.Tensor:
        return photo(index)


class Tables(Dataset):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> torch.Tensor:
        return table(index)


def photo(index: int) -> torch.Tensor:
    return torch.full((4,), float(sum(range(20_000)) + index))


def table(index: int) -> torch.Tensor:
    return torch.full((2,), float(sum(range(10_000)) + index))


if __name__ == "__main__":
    photos, tables = DataLoader(Photos(), batch_size=4), DataLoader(Tables(), batch_size=4)
    for _ in range(5):
        for _ in photos:
            pass
        for _ in tables:
            pass
