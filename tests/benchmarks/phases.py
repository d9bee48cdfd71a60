"""What marking the phases of a step costs: `python tests/benchmarks/phases.py`.

The hooks' pieces are clocked inside a training loop, which leaves none of them in the processor's caches: first by the
host's clock, then with a stand-in for a device, which shows the Python side of events and not what a driver takes.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from stand_in_device import Device
from torch.utils.data import DataLoader, TensorDataset

from loaderprof.capture.hooks import install, phases, steps

spent: dict[str, list[float]] = {}


def clocked(owner: Any, name: str) -> None:
    original, seen = getattr(owner, name), spent.setdefault(f"{owner.__name__}.{name}", [])

    def called(*args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            seen.append(time.perf_counter() - begun)

    setattr(owner, name, called)


def train(batches: int = 300) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(512, 2048), torch.nn.ReLU(), torch.nn.Linear(2048, 512))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for (x,) in DataLoader(TensorDataset(torch.rand(batches * 32, 512)), batch_size=32):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def message(title: str) -> None:
    print(title)
    total, measured = 0.0, len(spent["loaderprof.capture.hooks.phases.ask"])
    for name, seen in spent.items():
        if seen:
            a_step = statistics.median(seen) * round(len(seen) / measured)
            total += a_step
            print(f"  {name:38} {len(seen):5} calls, median {1e6 * statistics.median(seen):6.1f} us")
        seen.clear()
    print(f"  a measured step                        {1e6 * total:27.1f} us")


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        install.begin(folder)
        train(60)
        for owner, name in (
            (phases.Phases, "taken"),
            (phases, "ask"),
            (phases.Step, "enter"),
            (phases.Step, "leave"),
        ):
            clocked(owner, name)
        usual, phases.PHASES_BUDGET = phases.PHASES_BUDGET, 1e9
        train()
        message("every step measured, by the host's clock")
        device = Device()
        device.initialised = True
        torch.stand_in, steps.BACKENDS = device, ("stand_in",)
        train()
        message("every step measured, by the events of a stand-in")
        phases.PHASES_BUDGET, device.initialised = usual, False
        train()
        measured = len(spent["loaderprof.capture.hooks.phases.ask"])
        print(f"steps measured of 300 within the budget, by the host's clock: {measured}")
        install.end()
        begun = time.perf_counter()
        for _ in range(100_000):
            phases._optimizer_begins()
            phases._optimizer_ended()
        print(f"both hooks of an optimizer, no step measured: {(time.perf_counter() - begun) * 10:.2f} us")


if __name__ == "__main__":
    main()
