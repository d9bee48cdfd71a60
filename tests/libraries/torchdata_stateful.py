"""torchdata's StatefulDataLoader, its state saved in the midst of an epoch; a transform of its rows is the limit."""

import torch
from rows import Rows
from torchdata.stateful_dataloader import StatefulDataLoader
from training import train


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    loader = StatefulDataLoader(Rows(), batch_size=8, shuffle=True, num_workers=1)
    train(loader, 120, lambda batch: batch["values"])
    print(sorted(loader.state_dict()))


if __name__ == "__main__":
    main()
