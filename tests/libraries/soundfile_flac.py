"""FLAC files: decoding them is the limit."""

import tempfile
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
from torch.utils.data import DataLoader, Dataset
from training import train


class Sounds(Dataset):
    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        samples, _rate = sf.read(self.paths[index], dtype="float32")  # the limit
        return torch.from_numpy(samples[:16000] / np.abs(samples).max())


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{number:03}.flac") for number in range(32)]
        for number, path in enumerate(paths):
            noise = np.random.default_rng(number).standard_normal(16000 * 12) * 0.1
            sf.write(path, noise, 16000)
        loader = DataLoader(Sounds(paths), batch_size=8, shuffle=True, num_workers=1, persistent_workers=True)
        train(loader, 160, lambda batch: batch)


if __name__ == "__main__":
    main()
