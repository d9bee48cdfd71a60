"""A loader that keeps up with its accelerator: nothing to change here.

Each of the two workers waits about 8 ms for every sample on a shared network disk, so together they deliver a
batch about every 50 ms, and the step takes 65 ms. Faster loading would gain nothing, and with a much faster
accelerator the loader would soon be the limit: the two are matched.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

READ_S = 0.008  # stands for the answer time of a network disk
STEP_S = 0.065  # stands for the time of a step on a remote accelerator: it needs no CPU here


def make_texts(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(count):
        label = number % 2
        np.save(folder / f"{label}_{number:04d}.npy", rng.integers(500 * label, 1000 + 500 * label, 256))


class Texts(Dataset):
    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.npy"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        time.sleep(READ_S)
        tokens = np.load(self.paths[index])
        return torch.from_numpy(tokens), int(self.paths[index].name[0])


class RemoteModel(nn.Module):
    """A model that runs elsewhere: the caller waits for its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.EmbeddingBag(1500, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        time.sleep(STEP_S)
        return self.body(tokens)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # leaves the other core to the workers; the model is tiny
    with tempfile.TemporaryDirectory() as folder:
        make_texts(Path(folder), 1200)
        texts = Texts(Path(folder))
        loader = DataLoader(texts, batch_size=12, shuffle=True, num_workers=2, persistent_workers=True)
        model = RemoteModel()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for epoch in range(2):
            for tokens, labels in loader:
                loss = nn.functional.cross_entropy(model(tokens), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            print(f"epoch {epoch}  loss {loss.item():.4f}", flush=True)


if __name__ == "__main__":
    main()
