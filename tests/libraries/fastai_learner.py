"""fastai's DataLoaders and Learner; a transform of its rows is the limit."""

import torch
from rows import Rows
from training import ask_for_torchvision

ask_for_torchvision()
from fastai.callback import progress  # noqa: E402, F401 - gives the learner `no_bar`
from fastai.data.core import DataLoaders  # noqa: E402
from fastai.data.load import DataLoader  # noqa: E402
from fastai.learner import Learner  # noqa: E402


class Pairs(Rows):
    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        row = super().__getitem__(index)
        return row["values"], row["labels"]


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    loaders = DataLoaders(
        DataLoader(Pairs(), bs=8, shuffle=True, num_workers=1),
        DataLoader(Pairs(32), bs=8, num_workers=0),
    )
    learner = Learner(loaders, torch.nn.Linear(16, 2), loss_func=torch.nn.functional.cross_entropy, lr=0.01)
    with learner.no_bar(), learner.no_logging():
        learner.fit(2)
    print("trained")


if __name__ == "__main__":
    main()
