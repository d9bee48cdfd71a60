"""Small arrays, many augmentations in NumPy: one of them, the elastic warp, is the limit."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


def make_scans(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(count):
        scan = rng.integers(0, 200, (160, 160), dtype=np.uint8)
        scan[40:120, 40:120] += np.uint8(number % 4 * 15)
        np.save(folder / f"{number % 4}_{number:04d}.npy", scan)


def flip(scan: np.ndarray) -> np.ndarray:
    return scan[:, ::-1] if torch.rand(()) < 0.5 else scan


def crop(scan: np.ndarray, size: int = 144) -> np.ndarray:
    top, left = torch.randint(0, 160 - size, (2,)).tolist()
    return scan[top : top + size, left : left + size]


def gamma(scan: np.ndarray) -> np.ndarray:
    return (scan / 255.0) ** (0.8 + 0.4 * torch.rand(()).item())


def elastic_warp(scan: np.ndarray, waves: int = 12) -> np.ndarray:
    """Move every pixel along a random sum of waves and read the image there, bilinearly."""
    rows, columns = np.mgrid[: scan.shape[0], : scan.shape[1]].astype(np.float64)
    y, x = rows.copy(), columns.copy()
    for angle, phase in (2 * np.pi * torch.rand(waves, 2)).tolist():
        wave = np.sin(0.05 * (np.cos(angle) * rows + np.sin(angle) * columns) + phase)
        y, x = y + 1.5 * wave * np.cos(angle), x + 1.5 * wave * np.sin(angle)
    y, x = y.clip(0, scan.shape[0] - 1.001), x.clip(0, scan.shape[1] - 1.001)
    top, left = y.astype(int), x.astype(int)
    down, right = y - top, x - left
    upper = scan[top, left] * (1 - right) + scan[top, left + 1] * right
    lower = scan[top + 1, left] * (1 - right) + scan[top + 1, left + 1] * right
    return upper * (1 - down) + lower * down


def normalise(scan: np.ndarray) -> np.ndarray:
    return ((scan - scan.mean()) / scan.std()).astype(np.float32)


class Scans(Dataset):
    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.npy"))
        self.augmentations = [flip, crop, gamma, elastic_warp, normalise]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        scan = np.load(self.paths[index])
        for augment in self.augmentations:
            scan = augment(scan)
        return torch.from_numpy(scan)[None], int(self.paths[index].name[0])


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        make_scans(Path(folder), 640)
        loader = DataLoader(Scans(Path(folder)), batch_size=16, shuffle=True, num_workers=1)
        model = nn.Sequential(nn.Conv2d(1, 8, 7, stride=6), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.005)
        model(torch.zeros(1, 1, 144, 144))
        for epoch in range(5):
            for scans, labels in loader:
                loss = nn.functional.cross_entropy(model(scans), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            print(f"epoch {epoch}  loss {loss.item():.4f}", flush=True)


if __name__ == "__main__":
    main()
