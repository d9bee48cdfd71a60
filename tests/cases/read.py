"""Pipelines that wait for bytes: cold disks, many small files, object stores, databases, shards."""

from __future__ import annotations

import http.client
import io
import mmap
import os
import pathlib
import sqlite3
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from casework import Always, Clock, Knobs, case, main
from store import store
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info


def read_uncached(path: pathlib.Path) -> bytes:
    """Read a file of a data set that is larger than memory: its pages never survive until the next epoch."""
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file.read()


def write_through(path: pathlib.Path, body: bytes) -> None:
    with open(path, "wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())


class Slices(Dataset):
    """Large volumes on a cold disk, of which one slice is used."""

    def __init__(self, paths: list[pathlib.Path], read: Any, augment: Any) -> None:
        self.paths, self.read, self.augment = paths, read, augment

    def __len__(self) -> int:
        return len(self.paths) * 64

    def __getitem__(self, index: int) -> torch.Tensor:
        volume = np.frombuffer(self.read(self.paths[index % len(self.paths)]), dtype=np.uint8)
        return self.augment(torch.from_numpy(volume[: 128 * 128].reshape(1, 128, 128).copy()))


def to_float(x: torch.Tensor) -> torch.Tensor:
    return x.float().div(255)


@case("cold files", label="read", stages="read transform device")
def cold_files(knobs: Knobs, clock: Clock) -> None:
    body = np.random.default_rng(0).bytes(24 << 20)
    paths = [knobs.folder / f"{i}.raw" for i in range(8)]
    for path in paths:
        write_through(path, body)
    read = knobs.pick("read", read_uncached, Always(body))
    augment = knobs.pick("transform", to_float, Always(torch.zeros(1, 128, 128)))
    loader = DataLoader(Slices(paths, read, augment), batch_size=8, shuffle=True, num_workers=1)
    model = nn.Sequential(nn.Conv2d(1, 8, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    model(torch.zeros(1, 1, 128, 128))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    while not clock.done:
        for volumes in loader:
            if not knobs.off("device"):
                loss = model(volumes).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if clock.over():
                break


class FrameFolders(Dataset):
    """A clip is a folder of tiny frames, a file each."""

    def __init__(self, folders: list[pathlib.Path], ready: bytes | None) -> None:
        self.folders, self.ready = folders, ready

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.ready is not None:
            frames = [self.ready] * 200
        else:
            frames = [path.read_bytes() for path in sorted(self.folders[index].iterdir())]
        return torch.frombuffer(bytearray(b"".join(frames)), dtype=torch.uint8).view(200, 256)


@case("small files", label="read", stages="read collate device")
def small_files(knobs: Knobs, clock: Clock) -> None:
    frame = bytes(range(256))
    for clip in range(48):
        (knobs.folder / str(clip)).mkdir()
        for number in range(200):
            (knobs.folder / str(clip) / f"{number:04}.bin").write_bytes(frame)
    dataset = FrameFolders(sorted(knobs.folder.iterdir()), knobs.pick("read", None, frame))
    options: dict[str, Any] = {"batch_size": 6, "shuffle": True, "num_workers": 2}
    if knobs.off("collate"):
        options["collate_fn"] = Always(torch.zeros(6, 200, 256, dtype=torch.uint8))
    loader = DataLoader(dataset, **options, persistent_workers=True)
    model = nn.GRU(256, 8, batch_first=True)
    while not clock.done:
        for clips in loader:
            if not knobs.off("device"):
                model(clips[:, :20].float())[0].mean().backward()
                model.zero_grad()
            if clock.over():
                break


@case("http latency", label="read", stages="read transform device")
def http_latency(knobs: Knobs, clock: Clock) -> None:
    body = np.random.default_rng(0).normal(size=(3, 32, 32)).astype(np.float32).tobytes()

    with store(lambda _: body, latency_s=0.02) as url:

        def fetch(index: int) -> bytes:
            with urllib.request.urlopen(f"{url}/train/{index}") as response:
                return response.read()

        class Remote(Dataset):
            def __len__(self) -> int:
                return 10_000

            def __getitem__(self, index: int) -> torch.Tensor:
                return jitter(torch.frombuffer(bytearray(get(index)), dtype=torch.float32).view(3, 32, 32))

        get = knobs.pick("read", fetch, Always(body))
        jitter = knobs.pick(
            "transform",
            lambda x: (x + 0.1 * torch.randn_like(x)).clamp(-2, 2),
            Always(torch.zeros(3, 32, 32)),
        )
        model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.AdamW(model.parameters())
        for images in DataLoader(Remote(), batch_size=8, shuffle=True, num_workers=2):
            if not knobs.off("device"):
                optimizer.zero_grad(set_to_none=True)
                nn.functional.cross_entropy(model(images), torch.zeros(len(images), dtype=torch.long)).backward()
                optimizer.step()
            if clock.over():
                break


@case("http latency", label="read", stages="read decode device")
def http_in_main_process(knobs: Knobs, clock: Clock) -> None:
    """The same latency paid by the training process itself: num_workers=0, a kept connection."""
    rows = io.BytesIO()
    np.save(rows, np.ones((64, 64), dtype=np.float32))
    with store(lambda _: rows.getvalue(), latency_s=0.008) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"))

        def fetch(key: int) -> bytes:
            connection.request("GET", f"/rows/{key}.npy")
            return connection.getresponse().read()

        class Rows(Dataset):
            def __init__(self) -> None:
                self.fetch = knobs.pick("read", fetch, Always(rows.getvalue()))
                self.parse = knobs.pick(
                    "decode", lambda body: np.load(io.BytesIO(body)), Always(np.ones((64, 64), np.float32))
                )

            def __len__(self) -> int:
                return 5000

            def __getitem__(self, key: int) -> np.ndarray:
                return self.parse(self.fetch(key))

        model = nn.Linear(64, 64)
        while not clock.done:
            for batch in DataLoader(Rows(), batch_size=8):
                if not knobs.off("device"):
                    model(batch).pow(2).mean().backward()
                    model.zero_grad()
                if clock.over():
                    break


class Bucket(IterableDataset):
    """Shards of raw pixels streamed over a slow line."""

    def __init__(self, url: str, fetch: Any) -> None:
        self.url, self.fetch = url, fetch

    def __iter__(self) -> Iterator[torch.Tensor]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in range(first, 100_000, stride):
            shard = torch.frombuffer(bytearray(self.fetch(f"{self.url}/shard-{number:05}.bin")), dtype=torch.uint8)
            yield from shard.view(8, 3, 128, 128)


def download(url: str) -> bytes:
    return urllib.request.urlopen(url).read()


@case("bandwidth", label="read", stages="read collate device")
def slow_line(knobs: Knobs, clock: Clock) -> None:
    body = bytes(8 * 3 * 128 * 128)
    with store(lambda _: body, bytes_per_s=8e6) as url:
        dataset = Bucket(url, knobs.pick("read", download, Always(body)))
        collate = knobs.pick("collate", None, Always(torch.zeros(16, 3, 128, 128, dtype=torch.uint8)))
        loader = DataLoader(dataset, batch_size=16, num_workers=2, collate_fn=collate)
        model = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(768, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        for step, images in enumerate(loader):
            if not knobs.off("device"):
                loss = model(images / 255).logsumexp(1).mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                if step % 50 == 0:
                    print(f"step {step} loss {loss:.3f}")
            if clock.over():
                break


@case("pipe from a command", label="read", stages="read transform device")
def pipe_command(knobs: Knobs, clock: Clock) -> None:
    """Every sample is copied from a bucket by a command, as webdataset's `pipe:` addresses do."""
    sample = knobs.folder / "sample.bin"
    sample.write_bytes(bytes(4 * 4096))

    def copy(_: int) -> bytes:
        return subprocess.run(["sh", "-c", f"sleep 0.01; cat {sample}"], capture_output=True, check=True).stdout

    copy = knobs.pick("read", copy, Always(sample.read_bytes()))
    scale = knobs.pick("transform", lambda x: (x - x.mean()) / (x.std() + 1e-6), Always(torch.zeros(4096)))

    class Piped(IterableDataset):
        def __iter__(self) -> Iterator[torch.Tensor]:
            for number in range(1_000_000):
                yield scale(torch.frombuffer(bytearray(copy(number)), dtype=torch.float32))

    model = nn.Linear(4096, 16)
    for batch in DataLoader(Piped(), batch_size=4, num_workers=2):
        if not knobs.off("device"):
            model(batch).sum().backward()
            model.zero_grad(set_to_none=True)
        if clock.over():
            return


class LmdbVolumes(Dataset):
    """Large values; a small window of each is used."""

    def __init__(self, path: str, ready: bytes | None) -> None:
        self.path, self.ready = path, ready
        self.env: Any = None

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> torch.Tensor:
        import lmdb

        if self.env is None:  # opened in the worker: an environment does not survive a fork
            self.env = lmdb.open(self.path, readonly=True, lock=False, readahead=False)
        if self.ready is not None:
            value = self.ready
        else:
            with self.env.begin() as transaction:
                value = transaction.get(f"{index:08}".encode())
        return torch.from_numpy(np.frombuffer(value, dtype=np.float32)[:1024].copy())


@case("lmdb", label="read", stages="read collate device", needs="lmdb")
def lmdb_values(knobs: Knobs, clock: Clock) -> None:
    import lmdb

    value = bytes(12 << 20)
    with lmdb.open(str(knobs.folder / "db"), map_size=1 << 30, sync=False) as env:
        for index in range(24):
            with env.begin(write=True) as transaction:
                transaction.put(f"{index:08}".encode(), value)
    dataset = LmdbVolumes(str(knobs.folder / "db"), knobs.pick("read", None, value))
    collate = knobs.pick("collate", torch.stack, Always(torch.zeros(6, 1024)))
    model = nn.Sequential(nn.Linear(1024, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    loader = DataLoader(dataset, 6, shuffle=True, num_workers=1, collate_fn=collate, persistent_workers=True)
    while not clock.done:
        for windows in loader:
            if not knobs.off("device"):
                optimizer.zero_grad()
                model(windows).abs().mean().backward()
                optimizer.step()
            if clock.over():
                break


class Hdf5Rows(Dataset):
    """Rows of a file that is chunked by columns: each row is gathered from 512 chunks."""

    def __init__(self, path: pathlib.Path, ready: np.ndarray | None) -> None:
        self.path, self.ready = path, ready
        self.file: Any = None

    def __len__(self) -> int:
        return 512

    def __getitem__(self, index: int) -> np.ndarray:
        if self.file is None:
            import h5py

            self.file = h5py.File(self.path, "r")
        return self.file["images"][index] if self.ready is None else self.ready


@case("hdf5", label="read", stages="read collate device", needs="h5py")
def hdf5_chunks(knobs: Knobs, clock: Clock) -> None:
    import h5py

    path = knobs.folder / "train.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("images", (512, 4096), "f4", chunks=(512, 8), data=np.ones((512, 4096), "f4"))
    ready = knobs.pick("read", None, np.ones(4096, "f4"))
    collate = knobs.pick("collate", None, Always(torch.ones(8, 4096)))
    loader = DataLoader(Hdf5Rows(path, ready), batch_size=8, shuffle=True, num_workers=2, collate_fn=collate)
    model = nn.Linear(4096, 32)
    optimizer = torch.optim.Adam(model.parameters())
    while not clock.done:
        for images in loader:
            if not knobs.off("device"):
                loss = nn.functional.mse_loss(model(images), torch.zeros(len(images), 32))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if clock.over():
                break


class TarMembers(Dataset):
    """Random access into a shard that was made for streaming: each sample walks the headers again."""

    def __init__(self, path: pathlib.Path, transform: Any, ready: bytes | None) -> None:
        self.path, self.transform, self.ready = path, transform, ready
        with tarfile.open(path) as shard:
            self.names = shard.getnames()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> torch.Tensor:
        body = self.ready
        if body is None:
            with tarfile.open(self.path) as shard:
                body = shard.extractfile(self.names[index]).read()
        return self.transform(np.frombuffer(body, dtype=np.int16))


@case("tar shards", label="read", stages="read transform device")
def tar_members(knobs: Knobs, clock: Clock) -> None:
    path, body = knobs.folder / "shard.tar", np.arange(2048, dtype=np.int16).tobytes()
    with tarfile.open(path, "w") as shard:
        for number in range(300):
            header = tarfile.TarInfo(f"{number:06}.pcm")
            header.size = len(body)
            shard.addfile(header, io.BytesIO(body))

    def transform(pcm: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(pcm / np.float32(32768)).view(1, -1)

    chosen = knobs.pick("transform", transform, Always(torch.zeros(1, 2048)))
    dataset = TarMembers(path, chosen, knobs.pick("read", None, body))
    model = nn.Sequential(nn.Conv1d(1, 8, 64, stride=32), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten())
    while not clock.done:
        for waves in DataLoader(dataset, batch_size=4, shuffle=True, num_workers=2):
            if not knobs.off("device"):
                model(waves).mean().backward()
                model.zero_grad()
            if clock.over():
                break


class RemoteShards(IterableDataset):
    """Shards streamed from a store, a sample per member, batches made by the data set itself."""

    def __init__(self, url: str, knobs: Knobs, ready: bytes) -> None:
        self.url = url
        self.open = knobs.pick("read", urllib.request.urlopen, lambda _: io.BytesIO(ready))

    def __iter__(self) -> Iterator[torch.Tensor]:
        for number in range(100_000):
            with (
                self.open(f"{self.url}/{number}.tar") as response,
                tarfile.open(fileobj=response, mode="r|") as shard,
            ):
                samples = [np.frombuffer(shard.extractfile(member).read(), np.uint8) for member in shard]
            yield torch.from_numpy(np.stack(samples))


@case("tar shards", label="read", stages="read device")
def tar_stream(knobs: Knobs, clock: Clock) -> None:
    buffer, body = io.BytesIO(), bytes(12_288)
    with tarfile.open(fileobj=buffer, mode="w") as shard:
        for number in range(16):
            header = tarfile.TarInfo(f"{number}.rgb")
            header.size = len(body)
            shard.addfile(header, io.BytesIO(body))
    with store(lambda _: buffer.getvalue(), latency_s=0.06) as url:
        loader = DataLoader(RemoteShards(url, knobs, buffer.getvalue()), batch_size=None, num_workers=1)
        model = nn.Sequential(nn.Linear(12_288, 16), nn.ReLU(), nn.Linear(16, 2))
        for images in loader:
            if not knobs.off("device"):
                model(images.float() / 255).mean().backward()
                model.zero_grad()
            if clock.over():
                break


class MappedTokens(Dataset):
    """Windows scattered over a memory-mapped file whose pages the system has dropped."""

    def __init__(self, path: pathlib.Path, knobs: Knobs) -> None:
        self.path = path
        self.tokens = np.memmap(path, dtype=np.uint16, mode="r")
        self.window = knobs.pick("read", self.from_disk, Always(np.ones((600, 64), np.uint16)))

    def __len__(self) -> int:
        return 100_000

    def from_disk(self, index: int) -> np.ndarray:
        starts = np.random.default_rng(index).integers(0, len(self.tokens) - 64, 600)
        return np.stack([self.tokens[start : start + 64] for start in starts])

    def __getitem__(self, index: int) -> torch.Tensor:
        if index % 8 == 0:
            drop_pages(self.tokens, self.path)
        return torch.from_numpy(self.window(index).astype(np.int32))


def drop_pages(array: np.memmap, path: pathlib.Path) -> None:
    """What a machine short of memory does by itself."""
    array._mmap.madvise(mmap.MADV_DONTNEED)
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@case("mmap", label="read", stages="read collate device")
def mmap_faults(knobs: Knobs, clock: Clock) -> None:
    path = knobs.folder / "tokens.bin"
    write_through(path, bytes(192 << 20))
    collate = knobs.pick("collate", None, Always(torch.ones(8, 600, 64, dtype=torch.int32)))
    loader = DataLoader(MappedTokens(path, knobs), batch_size=8, num_workers=1, collate_fn=collate)
    embed = nn.EmbeddingBag(70_000, 8, sparse=True)
    optimizer = torch.optim.SGD(embed.parameters(), lr=0.1)
    while not clock.done:
        for tokens in loader:
            if not knobs.off("device"):
                optimizer.zero_grad()
                embed(tokens[:, :10].flatten(0, 1)).mean().backward()
                optimizer.step()
            if clock.over():
                break


class Table(Dataset):
    """Rows of a database without an index on the column that is asked for."""

    def __init__(self, path: str, ready: list[tuple[float, ...]] | None) -> None:
        self.path, self.ready = path, ready
        self.database: sqlite3.Connection | None = None

    def __len__(self) -> int:
        return 500

    def __getitem__(self, user: int) -> torch.Tensor:
        if self.database is None:
            self.database = sqlite3.connect(self.path)
        rows = (
            self.ready or self.database.execute("SELECT a, b FROM clicks WHERE user = ? LIMIT 20", (user,)).fetchall()
        )
        return torch.tensor(rows)


@case("database", label="read", stages="read transform device")
def sql_scan(knobs: Knobs, clock: Clock) -> None:
    path = str(knobs.folder / "clicks.sqlite")
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE clicks (user INTEGER, a REAL, b REAL)")
        rows = ((number % 500, number * 0.5, number * 0.25) for number in range(60_000))
        database.executemany("INSERT INTO clicks VALUES (?, ?, ?)", rows)
    dataset = Table(path, knobs.pick("read", None, [(1.0, 2.0)] * 20))
    transforms = nn.Sequential(nn.Flatten(), nn.LayerNorm(40))

    def collate(samples: list[torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return transforms(torch.stack(samples))

    chosen = knobs.pick("transform", collate, torch.stack)
    model = nn.Linear(40, 1) if chosen is collate else nn.Sequential(nn.Flatten(), nn.Linear(40, 1))
    while not clock.done:
        for batch in DataLoader(dataset, batch_size=5, num_workers=0, shuffle=True, collate_fn=chosen):
            if not knobs.off("device"):
                model(batch).mean().backward()
                model.zero_grad()
            if clock.over():
                break


if __name__ == "__main__":
    sys.exit(main())
