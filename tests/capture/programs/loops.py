"""Seeded loops over loaders of every kind: `loops.py SCENARIO...` prints what each of them saw and left behind.

Everything that a guest could disturb is in the lines: every batch's bytes, each sample's random states, worker and
thread count in the worker, the model's weights, the random states of the main process at the end, warnings and where.
"""

from __future__ import annotations

import copy
import hashlib
import os
import pickle
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

SCENARIOS: dict[str, Callable[[], Any]] = {}


def scenario(function: Callable[[], Any]) -> Callable[[], Any]:
    SCENARIOS[function.__name__] = function
    return function


def random_states() -> int:
    """One number for the random states of this process and thread; asking draws nothing."""
    state = hashlib.sha256(torch.get_rng_state().numpy().tobytes())
    name, keys, *rest = np.random.get_state()
    state.update(repr((name, keys.tobytes(), rest, random.getstate())).encode())
    return int.from_bytes(state.digest()[:6], "big")


def digest(item: Any) -> str:
    """A digest of a batch's structure, types and bytes."""
    seen = hashlib.sha256()

    def add(part: Any) -> None:
        seen.update(type(part).__name__.encode())
        if isinstance(part, torch.Tensor):
            seen.update(str((part.dtype, part.shape, part.stride(), part.is_shared())).encode())
            seen.update(part.detach().contiguous().numpy().tobytes())
        elif isinstance(part, dict):
            for key, value in part.items():
                add(key)
                add(value)
        elif isinstance(part, list | tuple):
            for value in part:
                add(value)
        else:
            seen.update(repr(part).encode())

    add(item)
    return seen.hexdigest()[:16]


def sample(index: int) -> dict[str, Any]:
    """One sample and the circumstances in which it was made."""
    info = get_worker_info()
    before = random_states()
    value = torch.full((3,), float(index)) + torch.rand(3)
    value += float(np.random.rand()) + random.random()
    return {
        "x": value,
        "states": before,
        "worker": (info.id, info.seed) if info else (-1, 0),
        "threads": torch.get_num_threads(),
        "index": index,
    }


def scaled(item: dict[str, Any]) -> dict[str, Any]:
    return {**item, "x": item["x"] * 2}


class Jitter:
    """A seeded random augmentation."""

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        if random.random() < 0.5:
            item["x"] = item["x"].flip(0)
        return {**item, "x": item["x"] + torch.randn(3) * 0.1}


class Map(Dataset):
    def __init__(self, count: int = 24, transforms: tuple[Callable[..., Any], ...] = ()) -> None:
        self.count = count
        self.transforms = list(transforms) or [scaled]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = sample(index)
        for transform in self.transforms:
            item = transform(item)
        return item


class Many(Map):
    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        return [sample(index) for index in indices]


class Stream(IterableDataset):
    def __init__(self, count: int = 24, length: int | None = None) -> None:
        self.count, self.length = count, length

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        yield from map(sample, range(info.id if info else 0, self.count, info.num_workers if info else 1))


class Sized(Stream):
    def __len__(self) -> int:
        return 10


class Momentum:
    """SGD with momentum by hand: torch's own imports the compiler, which takes longer than all of the fast loops."""

    def __init__(self, parameters: Iterator[torch.nn.Parameter]) -> None:
        self.speeds = [(each, torch.zeros_like(each)) for each in parameters]

    def zero_grad(self) -> None:
        for parameter, _ in self.speeds:
            parameter.grad = None

    def step(self) -> None:
        with torch.no_grad():
            for parameter, speed in self.speeds:
                parameter -= 1e-4 * speed.mul_(0.9).add_(parameter.grad)


class Model:
    """A linear model trained on what the loader gives."""

    def __init__(self) -> None:
        self.net = torch.nn.Linear(3, 1)
        parameters = self.net.parameters()
        by_hand = "STEP_BY_HAND" in os.environ
        self.optimizer = Momentum(parameters) if by_hand else torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)

    def train(self, batch: Any) -> None:
        x = batch["x"].reshape(-1, 3)
        loss = self.net(x).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        print("  loss", repr(loss.item()), digest(batch))

    def weights(self) -> str:
        return digest(dict(self.net.state_dict()))


def run(loader: Any, epochs: int = 1, stop: int | None = None) -> None:
    model = Model()
    for epoch in range(epochs):
        print("  epoch", epoch)
        for number, batch in enumerate(loader):
            model.train(batch)
            if stop is not None and number + 1 >= stop:
                break
    print("  weights", model.weights())


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@scenario
def map_style() -> None:
    run(DataLoader(Map(), batch_size=4, shuffle=True), epochs=2)


@scenario
def map_workers() -> None:
    run(DataLoader(Map(), batch_size=4, shuffle=True, num_workers=2), epochs=2)


@scenario
def iterable() -> None:
    run(DataLoader(Stream(), batch_size=4))


@scenario
def iterable_workers() -> None:
    run(DataLoader(Stream(), batch_size=4, num_workers=2))


@scenario
def getitems() -> None:
    run(DataLoader(Many(), batch_size=4, shuffle=True))
    run(DataLoader(Many(), batch_size=4, num_workers=2))


@scenario
def persistent() -> None:
    loader = DataLoader(Map(), batch_size=4, shuffle=True, num_workers=2, persistent_workers=True)
    run(loader, epochs=3)


@scenario
def spawn() -> None:
    run(DataLoader(Map(transforms=(scaled, Jitter())), batch_size=6, num_workers=2, multiprocessing_context="spawn"))


@scenario
def forkserver() -> None:
    context = "forkserver"
    loader = DataLoader(Map(), batch_size=6, num_workers=2, multiprocessing_context=context, persistent_workers=True)
    run(loader, epochs=2)


@scenario
def fork() -> None:
    run(DataLoader(Map(), batch_size=4, num_workers=2, multiprocessing_context="fork"))


@scenario
def prefetch_generator() -> None:
    run(DataLoader(Map(), batch_size=2, shuffle=True, num_workers=2, prefetch_factor=4, generator=generator()))


@scenario
def no_batching() -> None:
    run(DataLoader(Map(6), batch_size=None))
    run(DataLoader(Map(6), batch_size=None, num_workers=2))


@scenario
def weighted() -> None:
    sampler = WeightedRandomSampler([float(i + 1) for i in range(24)], 20, generator=generator())
    run(DataLoader(Map(), batch_size=4, sampler=sampler, num_workers=2))


class Pairs(BatchSampler):
    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, 24, 2):
            yield [start, (start + random.randrange(24)) % 24]


@scenario
def batch_sampler() -> None:
    run(DataLoader(Map(), batch_sampler=Pairs(SequentialSampler(range(24)), 2, False), num_workers=2))


class Own(DataLoader):
    """A subclass with state and an `__init__` of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.taken = 0

    @property
    def total(self) -> int:
        print("  never to be asked for")
        return self.taken


class Doubling(Own):
    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            self.taken += 1
            yield batch
            yield scaled(batch)


@scenario
def subclass() -> None:
    run(Own(Map(), batch_size=4, num_workers=2))
    loader = Doubling(Map(8), batch_size=4)
    run(loader)
    print("  taken", loader.taken, sorted(vars(loader)))


@scenario
def early_break() -> None:
    run(DataLoader(Map(), batch_size=2, num_workers=2), epochs=2, stop=3)
    run(DataLoader(Map(), batch_size=2, num_workers=2, persistent_workers=True), epochs=3, stop=3)


@scenario
def nested_validation() -> None:
    train = DataLoader(Map(), batch_size=6, shuffle=True, num_workers=2)
    val = DataLoader(Map(8), batch_size=4)
    model = Model()
    for batch in train:
        model.train(batch)
        with torch.no_grad():
            print("  val", [repr(model.net(each["x"]).sum().item()) for each in val])


@scenario
def zipped() -> None:
    left, right = DataLoader(Map(12), batch_size=4, num_workers=1), DataLoader(Map(9), batch_size=3)
    for a, b in zip(left, right, strict=False):
        print(" ", digest(a), digest(b))


@scenario
def iterator_reuse() -> None:
    loader = DataLoader(Map(), batch_size=4, num_workers=2)
    batches = iter(loader)
    print(" ", digest(next(batches)), len(batches), iter(batches) is batches, type(batches).__name__)
    print(" ", [digest(batch) for batch in batches], next(batches, None))


@scenario
def alternating() -> None:
    one, two = iter(DataLoader(Map(), batch_size=4, num_workers=1)), iter(DataLoader(Map(8), batch_size=2))
    for _ in range(4):
        print(" ", digest(next(one)), digest(next(two)))


@scenario
def stateful() -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchdata.stateful_dataloader import StatefulDataLoader
    except ImportError:
        print("  no torchdata")
        return
    for workers in (0, 2):
        loader = StatefulDataLoader(Map(), batch_size=4, shuffle=True, num_workers=workers, generator=generator())
        batches = iter(loader)
        print(" ", [digest(next(batches)) for _ in range(3)])
        state = loader.state_dict()
        print("  state", digest(state))
        again = StatefulDataLoader(Map(), batch_size=4, shuffle=True, num_workers=workers, generator=generator())
        again.load_state_dict(state)
        print(" ", [digest(batch) for batch in again])


class Broken(Map):
    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 9:
            raise ValueError(f"sample {index} is broken")
        return super().__getitem__(index)


@scenario
def raising() -> None:
    broken(0)
    broken(2)


def broken(workers: int) -> None:
    try:
        run(DataLoader(Broken(), batch_size=2, num_workers=workers))
    except ValueError as error:
        last = str(error).strip().splitlines()
        print("  raised", last[0], "|", last[-1], error.__cause__, error.__context__)


def outdated() -> None:
    warnings.warn("this reader is outdated", DeprecationWarning, stacklevel=2)


class Outdated(Map):
    def __getitem__(self, index: int) -> dict[str, Any]:
        outdated()
        warnings.warn("the caller's place", UserWarning, stacklevel=2)
        return super().__getitem__(index)


@scenario
def warning() -> None:
    def show(message: Any, category: Any, filename: str, lineno: int, *_: Any) -> None:
        print("  warns", category.__name__, message, os.path.basename(filename), lineno)

    with warnings.catch_warnings():
        warnings.showwarning = show
        warnings.simplefilter("default")
        run(DataLoader(Outdated(), batch_size=4))
        for batch in DataLoader(Sized(24), batch_size=4):
            print(" ", digest(batch))
        for batch in DataLoader(Sized(24), batch_size=4, num_workers=2):
            print(" ", digest(batch))


@scenario
def augmented() -> None:
    run(DataLoader(Map(transforms=(Jitter(), scaled, Jitter())), batch_size=4, shuffle=True, num_workers=2))
    run(DataLoader(Map(transforms=(Jitter(), scaled)), batch_size=4, shuffle=True, generator=generator()))


class Pooled(Map):
    def __init__(self) -> None:
        super().__init__()
        self.transform = scaled

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = sample(index)
        with ThreadPoolExecutor(2) as pool:
            parts = list(pool.map(self.transform, [item, {**item, "x": item["x"] + 1}]))
        return {**item, "x": parts[0]["x"] + parts[1]["x"]}


@scenario
def thread_pool() -> None:
    run(DataLoader(Pooled(), batch_size=4))
    run(DataLoader(Pooled(), batch_size=4, num_workers=2))


class Inner(Map):
    def __getitem__(self, index: int) -> dict[str, Any]:
        parts = [batch["x"].sum() for batch in DataLoader(Map(4), batch_size=2)]
        return {**sample(index), "parts": parts}


@scenario
def inner_loader() -> None:
    run(DataLoader(Inner(8), batch_size=2))
    run(DataLoader(Inner(8), batch_size=2, num_workers=2))


@scenario
def forking() -> None:
    loader = DataLoader(Map(), batch_size=4)
    batches = iter(loader)
    print(" ", digest(next(batches)), digest(next(batches)))
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        random.seed(1)  # Python seeds it anew after a fork
        print("  child", [digest(batch) for batch in batches])
        print("  child", [digest(batch) for batch in loader])
        sys.stdout.flush()
        os._exit(3)
    print("  code", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    print("  parent", [digest(batch) for batch in batches])


@scenario
def copies() -> None:
    loader = DataLoader(Map(transforms=(Jitter(),)), batch_size=4)
    run(loader)
    for other in (pickle.loads(pickle.dumps(loader)), copy.deepcopy(loader)):
        print(" ", sorted(vars(other)), len(pickle.dumps(other)))
        run(other)


class Curious(Map):
    """Looks at its own functions, copies and keeps them, and changes them on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.table = {scaled: 3}
        self.transform, self.turn = scaled, 0
        self.kept: list[Any] = []

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "transform" and "transform" in vars(self):
            print("  set", type(value).__name__ == "Jitter")
        super().__setattr__(name, value)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.turn += 1
        item = self.transform(sample(index))
        # No lambda: pickling one by name fails bare, too.
        blob = pickle.dumps((self.transform, self.transforms))
        self.kept.append(self.transform)
        if self.turn % 7 == 0:
            self.transform = Jitter() if self.transform == scaled else scaled
        if self.turn == 9:
            self.transforms.insert(0, scaled)
        same = self.transform is scaled, self.table.get(self.transform), self.transforms[-1] is scaled
        return {**item, "about": repr((same, len(blob), len(self.transforms), self.transform == scaled))}


@scenario
def curious() -> None:
    dataset = Curious()
    dataset.transform = scaled
    for batch in DataLoader(dataset, batch_size=3):
        print(" ", digest(batch), batch["about"])
    print("  kept", [each is scaled for each in dataset.kept if not isinstance(each, Jitter)].count(False) >= 0)
    print("  now", dataset.transforms == [scaled, scaled], len(dataset.transforms))


class Alive:
    """Says when it goes."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __del__(self) -> None:
        print("  gone", self.name)


class Talking(Map):
    def __init__(self) -> None:
        super().__init__(8)
        self.alive = Alive("dataset")

    def __len__(self) -> int:
        print("  length asked for")
        return super().__len__()


@scenario
def lifetimes() -> None:
    before = locals()
    loader = DataLoader(Talking(), batch_size=4, shuffle=True)
    print("  batches", len([batch for batch in loader]), sorted(before))  # noqa: C416 - iterated, not copied

    def inside() -> None:
        mine = DataLoader(Talking(), batch_size=4, num_workers=1, persistent_workers=True)
        for batch in mine:
            print(" ", digest(batch))
        del mine, batch
        print("  deleted")

    inside()
    del loader
    print("  end of", sorted(before))


class Lazy(list):  # type: ignore[type-arg]
    """A list whose items are made when asked for."""

    def __getitem__(self, index: Any) -> Any:
        return sample(int(index))

    def __iter__(self) -> Iterator[Any]:
        print("  iterated")
        return super().__iter__()


class Hidden:
    """Loads what it stands for when touched."""

    def __getattr__(self, name: str) -> Any:
        print("  touched", name)
        raise AttributeError(name)

    @property
    def __class__(self) -> Any:
        print("  asked what it is")
        return Hidden

    @__class__.setter
    def __class__(self, value: Any) -> None: ...


class Holder(Map):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = Hidden()


def countdown(left: int) -> int:
    return 0 if not left else 1 + countdown(left - 1)


class Deep(Map):
    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**super().__getitem__(index), "depth": countdown(800)}


@scenario
def odd_objects() -> None:
    run(DataLoader(Lazy(range(12)), batch_size=4))
    run(DataLoader(Holder(), batch_size=4))
    run(DataLoader(Deep(), batch_size=4))


@scenario
def compositions() -> None:
    parts = ConcatDataset([Subset(Map(), [3, 1, 2]), Map(5)])
    run(DataLoader(parts, batch_size=2, sampler=RandomSampler(parts, replacement=True, num_samples=10), num_workers=2))
    x, y = torch.arange(12.0).reshape(6, 2), torch.arange(6)
    print(" ", [digest(batch) for batch in DataLoader(TensorDataset(x, y), batch_size=2, shuffle=True)])


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {"x": torch.stack([item["x"] for item in samples]) + torch.rand(1), "n": len(samples)}


def init(worker: int) -> None:
    random.seed(worker)
    np.random.seed(worker)


@scenario
def own_functions() -> None:
    run(DataLoader(Map(), batch_size=4, collate_fn=collate, worker_init_fn=init, num_workers=2, shuffle=True))
    run(DataLoader(Map(), batch_size=4, collate_fn=lambda samples: collate(samples)))


def main(names: list[str]) -> None:
    for name in names:
        random.seed(1)
        np.random.seed(2)
        torch.manual_seed(3)
        print("#", name, flush=True)
        SCENARIOS[name]()
        if os.environ.get("DISTURB") == name:
            torch.rand(1)
        print("  after", random_states(), torch.get_num_threads(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(SCENARIOS))
