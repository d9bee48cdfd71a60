"""A training job that prints, epoch by epoch, a digest of its batches in order, one of them in any order, and its RNG.

python streams.py KIND      `plain`, or one of the ways to make or use a loader below
"""

import hashlib
import os
import sys
import time

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

EPOCHS = int(os.environ.get("EPOCHS", "2"))


class Numbers(Dataset):
    def __init__(self, length=400):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        time.sleep(0.001)
        if "no_workers_here" in sys.argv and torch.utils.data.get_worker_info() is not None:
            raise RuntimeError("not in a worker")
        return torch.full((8,), float(index))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(100))


class Shuffling:
    """A sampler of batches that shuffles as soon as it is asked for an iterator, and remembers how often it was."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(7)

    def __iter__(self):
        order = torch.randperm(400, generator=self.generator).tolist()
        return iter([order[at : at + 4] for at in range(0, 400, 4)])


def make(kind):
    if kind == "iterable":
        return DataLoader(Stream(), batch_size=4)
    if kind == "persistent":
        return DataLoader(Numbers(), batch_size=4, shuffle=True, num_workers=1, persistent_workers=True)
    if kind == "workers":
        return DataLoader(Numbers(), batch_size=4, shuffle=True, num_workers=2, drop_last=True, timeout=60)
    if kind == "batch_sampler":
        return DataLoader(Numbers(), batch_sampler=Shuffling(), num_workers=1)
    if kind == "single":
        return DataLoader(Numbers(), batch_size=None, sampler=torch.utils.data.RandomSampler(Numbers()))
    if kind == "generator":
        return DataLoader(Numbers(), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(5))
    if kind == "short":
        return DataLoader(Numbers(32), batch_size=4, shuffle=True)
    return DataLoader(Numbers(), batch_size=4, shuffle=True)


def main():
    kind = sys.argv[1]
    torch.manual_seed(0)
    torch.set_num_threads(1)
    loader = make(kind)
    weights = torch.zeros(8, requires_grad=True)
    for epoch in range(EPOCHS):
        if kind == "made_anew":
            loader = make(kind)
        ordered, digests, batches = hashlib.sha1(), [], 0
        with torch.no_grad():
            checked = sum(len(batch) for batch in DataLoader(Numbers(8), batch_size=4))
        for batch in loader:
            digests.append(hashlib.sha1(batch.numpy().tobytes()).hexdigest())
            ordered.update(digests[-1].encode())
            batches += 1
            ((batch * weights).sum() * 1e-6).backward()
            if kind == "breaks" and batches == 60:
                break
            if kind == "nested" and batches == 50:
                inner = sum(float(batch.sum()) for batch in loader)
                ordered.update(str(inner).encode())
        unordered = hashlib.sha1("".join(sorted(digests)).encode()).hexdigest()
        print(epoch, checked, batches, ordered.hexdigest(), unordered, torch.rand(1).item(), flush=True)
    sys.exit(3)


if __name__ == "__main__":
    main()
