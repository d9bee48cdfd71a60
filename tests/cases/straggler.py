"""Pipelines that keep up on average, but for a few samples that take very long while the loader keeps order."""

from __future__ import annotations

import io
import json
import sys
import time
import urllib.request
from collections.abc import Iterator

import numpy as np
import torch
from casework import Always, Clock, Knobs, case, main
from PIL import Image
from stand_ins import Slow
from store import store
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info


@case("slow request", label="straggler", stages="straggler read device")
def slow_request(knobs: Knobs, clock: Clock) -> None:
    """One request in 96 takes 0.6 s, the others 2 ms."""
    body = bytes(256)

    def latency_s(path: str) -> float:
        return 0.6 if int(path.rsplit("/", 1)[1]) % 96 == 95 and not knobs.off("straggler") else 0.002

    with store(lambda _: body, latency_s) as url:

        def fetch(index: int) -> bytes:
            with urllib.request.urlopen(f"{url}/objects/{index}") as response:
                return response.read()

        get = knobs.pick("read", fetch, Always(body))

        class Objects(Dataset):
            def __len__(self) -> int:
                return 100_000

            def __getitem__(self, index: int) -> torch.Tensor:
                return torch.frombuffer(bytearray(get(index)), dtype=torch.float32)

        model = Slow(0.024)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for batch in DataLoader(Objects(), batch_size=8, num_workers=2):
            if not knobs.off("device"):
                optimizer.zero_grad()
                model(batch).mean().backward()
                optimizer.step()
            if clock.over():
                break


@case("retries", label="straggler", stages="straggler read device")
def retries(knobs: Knobs, clock: Clock) -> None:
    """A store that refuses a request now and then, and a client that waits before it asks again."""
    path = knobs.folder / "object.bin"
    path.write_bytes(bytes(256))
    rng = np.random.default_rng(0)
    refused = set() if knobs.off("straggler") else set(rng.choice(100_000, 1000, replace=False).tolist())

    def get(index: int) -> bytes:
        for attempt in range(3):
            if index not in refused or attempt == 2:
                break
            time.sleep(0.2 * 2**attempt)
        return path.read_bytes()

    chosen = knobs.pick("read", get, Always(bytes(256)))

    class Objects(Dataset):
        def __len__(self) -> int:
            return 100_000

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.frombuffer(bytearray(chosen(index)), dtype=torch.float32)

    model = Slow(0.02)
    for batch in DataLoader(Objects(), batch_size=8, shuffle=True, num_workers=2):
        if not knobs.off("device"):
            model(batch).mean().backward()
            model.zero_grad()
        if clock.over():
            break


@case("huge picture", label="straggler", stages="straggler decode device")
def huge_picture(knobs: Knobs, clock: Clock) -> None:
    """Thumbnails, and now and then a scan of thirty megapixels."""

    def jpeg(width: int, height: int) -> bytes:
        noise = np.random.default_rng(0).integers(0, 60, (height // 8, width // 8, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).resize((width, height), Image.Resampling.NEAREST).save(buffer, "JPEG", quality=95)
        return buffer.getvalue()

    thumbnail, scan = jpeg(128, 128), jpeg(7200, 4800)

    class Pictures(Dataset):
        def __len__(self) -> int:
            return 100_000

        def __getitem__(self, index: int) -> torch.Tensor:
            if knobs.off("decode"):
                return torch.zeros(64)
            rare = index % 120 == 60 and not knobs.off("straggler")
            image = Image.open(io.BytesIO(scan if rare else thumbnail)).convert("L")
            return torch.from_numpy(np.asarray(image)[0, :64].astype(np.float32))

    model = Slow(0.014)
    for batch in DataLoader(Pictures(), batch_size=8, num_workers=2):
        if not knobs.off("device"):
            model(batch).mean().backward()
            model.zero_grad()
        if clock.over():
            break


@case("long recording", label="straggler", stages="straggler transform device")
def long_recording(knobs: Knobs, clock: Clock) -> None:
    """Recordings of a second, and a few of minutes, in an iterable data set shared by two workers."""
    rng = np.random.default_rng(0)
    short, long = rng.normal(size=8_000), rng.normal(size=4_000_000)

    def features(wave: np.ndarray) -> torch.Tensor:
        frames = np.lib.stride_tricks.sliding_window_view(wave, 400)[::160]
        power = np.abs(np.fft.rfft(frames * np.hanning(400), 512)) ** 2
        return torch.from_numpy(np.log(power + 1e-6).mean(0)[:64].astype(np.float32))

    chosen = knobs.pick("transform", features, Always(torch.zeros(64)))

    class Recordings(IterableDataset):
        def __iter__(self) -> Iterator[torch.Tensor]:
            worker = get_worker_info()
            for number in range(worker.id, 1_000_000, worker.num_workers):
                rare = number % 81 == 32 and not knobs.off("straggler")
                yield chosen(long if rare else short)

    model = Slow(0.004)
    for batch in DataLoader(Recordings(), batch_size=8, num_workers=2):
        if not knobs.off("device"):
            model(batch).mean().backward()
            model.zero_grad()
        if clock.over():
            break


@case("huge document", label="straggler", stages="straggler decode device")
def huge_document(knobs: Knobs, clock: Clock) -> None:
    small = json.dumps({"values": [i * 0.5 for i in range(64)]})
    huge = json.dumps({"values": [i * 0.5 for i in range(64)], "rest": [[i * 0.1, str(i)] for i in range(500_000)]})

    class Documents(Dataset):
        def __len__(self) -> int:
            return 100_000

        def __getitem__(self, index: int) -> torch.Tensor:
            if knobs.off("decode"):
                return torch.zeros(64)
            text = huge if index % 200 == 100 and not knobs.off("straggler") else small
            return torch.tensor(json.loads(text)["values"])

    model = nn.Sequential(nn.Linear(64, 64), Slow(0.015))
    for batch in DataLoader(Documents(), batch_size=8, num_workers=2, prefetch_factor=2):
        if not knobs.off("device"):
            model(batch).mean().backward()
            model.zero_grad()
        if clock.over():
            break


if __name__ == "__main__":
    sys.exit(main())
