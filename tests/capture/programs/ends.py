"""A loop that ends as it is told: `ends.py 0 | 7 | exception | term | kill | exit`."""

import os
import signal
import sys

import torch
from torch.utils.data import DataLoader, TensorDataset

how = sys.argv[1]
taken = 0
for _ in DataLoader(TensorDataset(torch.arange(40.0)), batch_size=4, num_workers=1):
    taken += 1
print(taken, "batches", flush=True)
if how == "exception":
    raise ValueError("as planned")
if how == "exit":
    os._exit(5)
if how in ("term", "kill"):
    os.kill(os.getpid(), signal.SIGTERM if how == "term" else signal.SIGKILL)
sys.exit(int(how))
