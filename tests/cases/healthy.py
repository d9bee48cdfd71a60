"""Loaders that keep up with a step to which they are matched: faster loading gains nothing, nor is much idle.

What paces them is latency, not computing, so that the match holds on a slower or a busier machine.
"""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Iterator

import numpy as np
import torch
from casework import Always, Clock, Knobs, Unchanged, case, main
from stand_ins import Slow
from store import store
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info


class Objects(Dataset):
    def __init__(self, url: str, knobs: Knobs, length: int = 100_000) -> None:
        self.url, self.length = url, length
        self.fetch = knobs.pick("read", self.get, Always(bytes(256)))
        self.transform = knobs.pick("transform", nn.Sequential(nn.LayerNorm(64), nn.Tanh()), Unchanged())

    def __len__(self) -> int:
        return self.length

    def get(self, index: int) -> bytes:
        with urllib.request.urlopen(f"{self.url}/{index}") as response:
            return response.read()

    @torch.no_grad()
    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(torch.frombuffer(bytearray(self.fetch(index)), dtype=torch.float32))


@case("healthy", label="none", stages="read transform device")
def matched_store(knobs: Knobs, clock: Clock) -> None:
    """Two workers, 8 requests of 12 ms a batch, a step of 70 ms."""
    with store(lambda _: bytes(256), latency_s=0.012) as url:
        model = Slow(0.07)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for batch in DataLoader(Objects(url, knobs), batch_size=8, shuffle=True, num_workers=2):
            if not knobs.off("device"):
                optimizer.zero_grad()
                model(batch).mean().backward()
                optimizer.step()
            if clock.over():
                break


@case("healthy", label="none", stages="read transform device")
def matched_many_workers(knobs: Knobs, clock: Clock) -> None:
    """More workers than CPUs, and rightly so: they wait for the network."""
    with store(lambda _: bytes(256), latency_s=0.05) as url:
        model = Slow(0.068)
        for batch in DataLoader(Objects(url, knobs), batch_size=4, num_workers=4):
            if not knobs.off("device"):
                model(batch).mean().backward()
                model.zero_grad()
            if clock.over():
                break


@case("healthy", label="none", stages="read device")
def matched_stream(knobs: Knobs, clock: Clock) -> None:
    """One worker streams shards over a line of 8 MB a second, a step for each."""
    body = bytes(400_000)

    class Stream(IterableDataset):
        def __init__(self, url: str) -> None:
            self.url = url

        def __iter__(self) -> Iterator[torch.Tensor]:
            for number in range(100_000):
                raw = body if knobs.off("read") else urllib.request.urlopen(f"{self.url}/{number}").read()
                yield torch.frombuffer(bytearray(raw), dtype=torch.float32).view(-1, 100)

    with store(lambda _: body, bytes_per_s=8e6) as url:
        model = Slow(0.066, width=100)
        for rows in DataLoader(Stream(url), batch_size=None, num_workers=1):
            if not knobs.off("device"):
                model(rows).mean().backward()
                model.zero_grad()
            if clock.over():
                break


@case("healthy", label="none", stages="read transform device")
def matched_epochs(knobs: Knobs, clock: Clock) -> None:
    """Long epochs, persistent workers, a deep queue."""
    with store(lambda _: bytes(256), latency_s=0.01) as url:
        dataset = Objects(url, knobs, length=1200)
        loader = DataLoader(
            dataset,
            batch_size=8,
            shuffle=True,
            num_workers=2,
            persistent_workers=True,
            prefetch_factor=4,
            drop_last=True,
        )
        model = Slow(0.06)
        losses: list[float] = []
        while not clock.done:
            for batch in loader:
                if not knobs.off("device"):
                    loss = model(batch).mean()
                    loss.backward()
                    model.zero_grad()
                    losses.append(loss.item())
                if clock.over():
                    break


@case("healthy", label="none", stages="read device")
def matched_text(knobs: Knobs, clock: Clock) -> None:
    """An iterable data set split among the workers, batches of tokens, an occasional longer step."""
    with store(lambda _: np.arange(64, dtype=np.int64).tobytes(), latency_s=0.011) as url:

        class Texts(IterableDataset):
            def __iter__(self) -> Iterator[torch.Tensor]:
                worker = get_worker_info()
                number = worker.id
                ready = bytes(512)
                while True:
                    raw = ready if knobs.off("read") else urllib.request.urlopen(f"{url}/{number}").read()
                    yield torch.frombuffer(bytearray(raw), dtype=torch.int64)
                    number += worker.num_workers

        embed, model = nn.Embedding(64, 16), Slow(0.064, width=16)
        for step, tokens in enumerate(DataLoader(Texts(), batch_size=8, num_workers=2)):
            if not knobs.off("device"):
                model(embed(tokens).mean(1)).mean().backward()
                model.zero_grad()
                if step % 10 == 9:
                    embed.weight.data.clamp_(-1, 1)
            if clock.over():
                break


if __name__ == "__main__":
    sys.exit(main())
