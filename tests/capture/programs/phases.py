"""Training loops of every kind whose phases are known, on the host's clock and on a stand-in for a device.

Prints what the stand-in refused, and whether a device of torch's own was initialised.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from stand_in_device import Device
from torch.utils.data import DataLoader, Dataset

import loaderprof
from loaderprof.capture.hooks import phases, steps

BATCHES = 12
device = Device()
torch.stand_in = device
steps.BACKENDS = ("cuda", "stand_in")
# Every step is measured.
phases.PHASES_BUDGET = 1e9


def lasts(ms: float) -> None:
    """Work of the model: on the device, or on the host where there is none."""
    device.launch(ms) if device.initialised else time.sleep(ms / 1e3)


class Model(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
        lasts(5)
        return x * 1

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
        lasts(10)
        return gradient


class Optimizer(torch.optim.SGD):
    fails = False

    def step(self, closure: Any = None) -> Any:
        value = closure() if closure is not None else None
        lasts(3)
        if self.fails:
            raise ArithmeticError
        return value


class Data(Dataset):
    load_ms = 1.0

    def __len__(self) -> int:
        return BATCHES

    def __getitem__(self, index: int) -> torch.Tensor:
        device.host(self.load_ms)
        return torch.zeros(4)


weights = torch.zeros(4, requires_grad=True)
first, second = Optimizer([weights], lr=0.1), Optimizer([weights], lr=0.1)


def forward_and_backward() -> torch.Tensor:
    loss = Model.apply(weights).sum()
    loss.backward()
    return loss


def train(step: Any, load_ms: float = 1.0, host_ms: float = 40.0) -> None:
    data = Data()
    data.load_ms = load_ms
    for number, batch in enumerate(named(step.__name__, data)):
        step(number, batch)
        if device.initialised:
            device.host(host_ms)


def named(name: str, data: Data) -> DataLoader:
    class Loader(DataLoader):
        pass

    Loader.__qualname__ = name
    return Loader(data, batch_size=1, num_workers=0)


def plain(_: int, batch: torch.Tensor) -> None:
    with loaderprof.stage("copy"):
        lasts(2)
    forward_and_backward()
    lasts(1)
    first.step()
    lasts(4)


def starved(number: int, batch: torch.Tensor) -> None:
    plain(number, batch)


def accumulating(number: int, batch: torch.Tensor) -> None:
    forward_and_backward()
    if number % 2:
        first.step()


def closing(_: int, batch: torch.Tensor) -> None:
    first.step(forward_and_backward)


def adversarial(_: int, batch: torch.Tensor) -> None:
    for optimizer in (first, second):
        forward_and_backward()
        optimizer.step()


def capturing(number: int, batch: torch.Tensor) -> None:
    device.capturing = number % 2 == 0
    forward_and_backward()
    device.capturing = False
    first.step()


def failing(_: int, batch: torch.Tensor) -> None:
    first.fails = True
    try:
        first.step()
    except ArithmeticError:
        first.fails = False
    forward_and_backward()


def beside(_: int, batch: torch.Tensor) -> None:
    forward_and_backward()
    thread = threading.Thread(target=first.step)
    thread.start()
    thread.join()


def evaluating(_: int, batch: torch.Tensor) -> None:
    lasts(5)


def moving(number: int, batch: torch.Tensor) -> None:
    device.index = number % 2
    forward_and_backward()
    device.index = 0


def prefetching(_: int, batch: torch.Tensor) -> None:
    device.stream = 1
    with loaderprof.stage("copy"):
        device.launch(100)
    device.stream = 0
    forward_and_backward()
    first.step()


def validating(number: int, batch: torch.Tensor) -> None:
    forward_and_backward()
    if number % 4 == 3:
        for _ in named("validation", Data()):
            lasts(5)


def on_the_host(number: int, batch: torch.Tensor) -> None:
    plain(number, batch)


train(on_the_host)
untouched = device.made == 0
device.initialised = True
# The host comes back just before the device is done with a step of 25 ms; and well after that.
train(plain, host_ms=24.0)
train(starved, load_ms=40.0, host_ms=1.0)
for each in (
    accumulating,
    closing,
    adversarial,
    capturing,
    failing,
    beside,
    evaluating,
    moving,
    prefetching,
    validating,
):
    train(each)
print(json.dumps({"faults": device.faults, "untouched": untouched, "cuda": torch.cuda.is_initialized()}))
