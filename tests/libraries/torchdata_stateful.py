"""torchdata's StatefulDataLoader, its state saved in the midst of an epoch; the script's transform is the limit."""

import numpy as np
import torch
from rows import Rows, smoothed
from torchdata.stateful_dataloader import StatefulDataLoader
from training import train


class Smooth:
    def __call__(self, row: np.ndarray) -> np.ndarray:
        return smoothed(row)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    loader = StatefulDataLoader(Rows(Smooth()), batch_size=8, shuffle=True, num_workers=1)
    train(loader, 120, lambda batch: batch["values"])
    print(sorted(loader.state_dict()))


if __name__ == "__main__":
    main()
