"""A job that times its own waiting: workers, CPU ms a sample, sleep ms a sample, step ms, file for (asked, taken) in ns.

Trains until its standard input closes, then says how many batches it took.
"""

import select
import sys
import time

import torch
from torch.utils.data import DataLoader, Dataset

WORKERS, CPU_S, SLEEP_S, STEP_S = int(sys.argv[1]), *(float(word) / 1e3 for word in sys.argv[2:5])


class Samples(Dataset):
    def __len__(self) -> int:
        return 10_000_000

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(SLEEP_S)
        decode(index)
        return torch.full((8,), float(index))


def decode(index: int) -> None:
    end = time.thread_time() + CPU_S
    while time.thread_time() < end:
        sum(range(index % 100, 200))


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batches, total = iter(DataLoader(Samples(), batch_size=8, shuffle=False, num_workers=WORKERS)), 0.0
    taken = 0
    # By lines: the file is read while the job goes on.
    with open(sys.argv[5], "w", buffering=1) as log:
        sys.stdout.write("training\n")
        sys.stdout.flush()
        while not select.select([sys.stdin], [], [], 0)[0]:
            asked = time.perf_counter_ns()
            total += float(next(batches).sum())
            log.write(f"{asked} {time.perf_counter_ns()}\n")
            taken += 1
            time.sleep(STEP_S)
    # The sum over batches of eight rows of eight: what comes out is known from the number of batches alone.
    rows = taken * 8
    sys.stdout.write(f"{taken} batches, {total == 8 * sum(range(rows))}\n")


if __name__ == "__main__":
    main()
