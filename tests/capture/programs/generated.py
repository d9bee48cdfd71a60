"""Loops over loaders whose kind and settings are drawn: `generated.py SEED COUNT [fork|spawn|forkserver]`.

As a rank of a group (`torchrun`) the model is trained by all of them, and each writes into a file `rank-N`.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import random
import sys
from pathlib import Path
from typing import Any

import loops
import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Subset,
    WeightedRandomSampler,
)

RANKS = int(os.environ.get("WORLD_SIZE", "1"))


def dataset(draw: random.Random) -> Any:
    steps = draw.choices((loops.scaled, loops.Jitter()), k=draw.randrange(1, 4))
    some = loops.Map(draw.randrange(1, 40), tuple(steps))
    return draw.choice(
        (
            some,
            loops.Many(draw.randrange(1, 40)),
            Subset(some, draw.sample(range(len(some)), draw.randrange(1, len(some) + 1))),
            ConcatDataset([some, loops.Map(5)]),
            loops.Stream(draw.randrange(1, 40)),
        )
    )


def order(draw: random.Random, data: Any, size: int) -> dict[str, Any]:
    """In which order samples are drawn, and how many make a batch."""
    if isinstance(data, loops.Stream):
        return {"batch_size": size, "drop_last": draw.random() < 0.3}
    if RANKS > 1:
        return {"batch_size": size, "sampler": DistributedSampler(data, seed=draw.randrange(9))}
    weights = [float(1 + each % 3) for each in range(len(data))]
    samplers = (
        RandomSampler(data, replacement=True, num_samples=draw.randrange(1, 30)),
        WeightedRandomSampler(weights, draw.randrange(1, 30)),
    )
    return draw.choice(
        (
            {"batch_size": size, "shuffle": draw.random() < 0.6, "drop_last": draw.random() < 0.3},
            {"batch_size": size, "sampler": draw.choice(samplers)},
            {"batch_sampler": BatchSampler(draw.choice(samplers), size, draw.random() < 0.5)},
            {"batch_size": None, "shuffle": draw.random() < 0.5},
        )
    )


def loader(draw: random.Random, method: str | None) -> tuple[Any, dict[str, Any]]:
    """Draw a loader; return it with its settings."""
    data = dataset(draw)
    options = order(draw, data, draw.randrange(1, 7))
    workers = draw.choice((0, 1, 2, 3)) if method is None else draw.choice((1, 2))
    options["num_workers"] = workers
    if workers:
        options["prefetch_factor"] = draw.randrange(1, 5)
        options["persistent_workers"] = draw.random() < 0.4
        options["multiprocessing_context"] = method
        options["worker_init_fn"] = draw.choice((None, loops.init))
        # With more workers the order of batches is a matter of time.
        in_order = workers > 1 or draw.random() < 0.5
        if "in_order" in inspect.signature(DataLoader).parameters:  # from torch 2.6 on
            options["in_order"] = in_order
        options["timeout"] = draw.choice((0, 60))
    if options.get("batch_size", 1) is not None:
        options["collate_fn"] = draw.choice((None, loops.collate))
    if draw.random() < 0.3:
        options["generator"] = loops.generator(draw.randrange(9))
    return DataLoader(data, **options), {"dataset": type(data).__name__, **options}


def use(draw: random.Random, loader: Any) -> None:
    """Take batches in one of the ways in which loops do."""
    way, epochs = draw.randrange(4), draw.randrange(1, 4)
    if way == 0:
        loops.run(loader, epochs, stop=draw.randrange(1, 5))
    elif way == 1 and RANKS == 1:
        batches = iter(loader)
        print(
            " ", [loops.digest(batch) for _, batch in zip(range(3), batches, strict=False)], next(batches, None) is None
        )
    elif way == 2 and RANKS == 1:
        print(" ", [loops.digest(batch) for batch in [*loader, *loader]])
    else:
        loops.run(loader, epochs)


def main(seed: str, count: int, method: str | None) -> None:
    for number in range(count):
        draw = random.Random(f"{seed}/{number}")
        random.seed(1)
        np.random.seed(2)
        torch.manual_seed(3)
        some, settings = loader(draw, method)
        print(
            "#", number, {name: value for name, value in settings.items() if isinstance(value, str | int)}, flush=True
        )
        use(draw, some)
        del some
        print("  after", loops.random_states(), flush=True)


def as_a_rank(*arguments: Any) -> None:
    """Train one model together with the other ranks."""
    net: Any = torch.nn.Linear
    torch.distributed.init_process_group("gloo")
    loops.torch.nn.Linear = lambda *sizes: torch.nn.parallel.DistributedDataParallel(net(*sizes))  # type: ignore[misc,assignment]
    with Path(f"rank-{os.environ['RANK']}").open("w") as file, contextlib.redirect_stdout(file):
        main(*arguments)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    seed, count, *method = sys.argv[1:]
    (main if RANKS == 1 else as_a_rank)(seed, int(count), method[0] if method else None)
