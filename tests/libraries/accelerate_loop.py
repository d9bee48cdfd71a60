"""accelerate: a prepared loader, which looks one batch ahead, with gradient accumulation; a transform of its rows is the limit."""

import torch
from accelerate import Accelerator
from rows import Rows
from torch.utils.data import DataLoader


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = torch.nn.Linear(16, 2)
    loader = DataLoader(Rows(), batch_size=8, shuffle=True, num_workers=1)
    model, optimizer, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.01), loader)
    for _ in range(2):
        for batch in loader:
            with accelerator.accumulate(model):
                loss = torch.nn.functional.cross_entropy(model(batch["values"]), batch["labels"])
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
    print(f"loss {loss.item():.6f}")


if __name__ == "__main__":
    main()
