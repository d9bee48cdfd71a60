"""A convolutional network trained on the CPU from tensors in memory: the model is the limit."""

import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def make_data(path: Path, count: int) -> None:
    """Noise with a brighter quarter; which quarter it is, is the label."""
    labels = torch.arange(count) % 4
    images = torch.randn(count, 3, 48, 48)
    for label in range(4):
        row, column = divmod(label, 2)
        images[labels == label, :, 24 * row : 24 * row + 24, 24 * column : 24 * column + 24] += 0.05
    torch.save({"images": images, "labels": labels}, path)


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.body(x))


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # one core for the model, the other for the loader
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder) / "train.pt", 800)
        data = torch.load(Path(folder) / "train.pt")
    dataset = TensorDataset(data["images"], data["labels"])
    loader = DataLoader(dataset, batch_size=20, shuffle=True, num_workers=1)
    model = nn.Sequential(
        nn.Conv2d(3, 48, 3, stride=2, padding=1),
        nn.ReLU(),
        Block(48),
        Block(48),
        Block(48),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 48, 4),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for epoch in range(4):
        for images, labels in loader:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}  loss {loss.item():.4f}", flush=True)


if __name__ == "__main__":
    main()
