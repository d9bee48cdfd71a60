"""skorch's NeuralNetClassifier, which makes the loader from its own arguments; a transform of its rows is the limit."""

import torch
from rows import Rows
from skorch import NeuralNetClassifier
from torch.utils.data import Dataset


class Pairs(Dataset):
    def __init__(self) -> None:
        self.rows = Rows()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        row = self.rows[index]
        return row["values"], row["labels"]


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(16, 2)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.layer(values), -1)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = NeuralNetClassifier(
        Model,
        max_epochs=3,
        batch_size=8,
        train_split=None,
        verbose=0,
        iterator_train__num_workers=1,
        iterator_train__shuffle=True,
    )
    net.fit(Pairs(), y=None)
    print(f"loss {net.history[-1]['train_loss']:.6f}")


if __name__ == "__main__":
    main()
