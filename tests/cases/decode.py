"""Pipelines that spend their time turning bytes into values: pictures, sound, archives, rows, text."""

from __future__ import annotations

import base64
import csv
import functools
import gzip
import io
import itertools
import json
import pathlib
import pickle
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from casework import Always, Clock, Knobs, ask_for_torchvision, case, main
from PIL import Image
from stand_ins import photograph, small_net
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset


def save_photographs(folder: pathlib.Path, kind: str, width: int, height: int, **options: Any) -> list[pathlib.Path]:
    """The same photograph in a dozen files: the decoder works as hard on each."""
    body = io.BytesIO()
    photograph(width, height).save(body, kind, **options)
    paths = [folder / f"{number:04}.{kind}" for number in range(12)]
    for path in paths:
        path.write_bytes(body.getvalue())
    return paths


class ImageFolder(Dataset):
    def __init__(self, paths: list[pathlib.Path], loader: Callable[[Any], Image.Image], transform: Any = None) -> None:
        self.paths, self.loader, self.transform = paths * 40, loader, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.loader(self.paths[index])
        return (self.transform(image) if self.transform else image), index % 10


def pil_loader(path: pathlib.Path) -> Image.Image:
    with open(path, "rb") as file:
        return Image.open(file).convert("RGB")


def crop_to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.crop((100, 100, 228, 228)))).permute(2, 0, 1).float() / 255


@case("jpeg", label="decode", stages="decode transform collate device")
def jpeg_pil(knobs: Knobs, clock: Clock) -> None:
    paths = save_photographs(knobs.folder, "jpeg", 1280, 960, quality=92)
    decode = knobs.pick("decode", pil_loader, Always(photograph(1280, 960)))
    transform = knobs.pick("transform", crop_to_tensor, Always(torch.zeros(3, 128, 128)))
    ready = [torch.zeros(8, 3, 128, 128), torch.zeros(8, dtype=torch.long)]
    collate = knobs.pick("collate", None, Always(ready))
    loader = DataLoader(
        ImageFolder(paths, decode, transform),
        batch_size=8,
        shuffle=True,
        num_workers=2,
        drop_last=True,
        collate_fn=collate,
    )
    model, criterion = small_net(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    while not clock.done:
        for images, target in loader:
            if not knobs.off("device"):
                optimizer.zero_grad()
                loss = criterion(model(images), target)
                loss.backward()
                optimizer.step()
            if clock.over():
                break


@case("jpeg", label="decode", stages="decode transform device", needs="torchvision")
def jpeg_lazy_in_compose(knobs: Knobs, clock: Clock) -> None:
    """`Image.open` reads a header only: the decoder runs inside the first transform that wants pixels."""
    ask_for_torchvision()
    from torchvision import transforms

    paths = save_photographs(knobs.folder, "jpeg", 1600, 1200, quality=95)
    usual = transforms.Compose(
        [
            transforms.RandomCrop(256),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    transform = knobs.pick("transform", usual, lambda image: (image.load(), torch.zeros(3, 256, 256))[1])
    decode = knobs.pick("decode", Image.open, Always(photograph(1600, 1200)))
    model = small_net()
    for images, labels in DataLoader(ImageFolder(paths * 9, decode, transform), batch_size=6, num_workers=1):
        if not knobs.off("device"):
            nn.functional.cross_entropy(model(images), labels).backward()
            model.zero_grad()
        if clock.over():
            break


@case("jpeg", label="decode", stages="read decode transform device", needs="cv2")
def jpeg_imread(knobs: Knobs, clock: Clock) -> None:
    """One call that reads and decodes."""
    import cv2

    cv2.setNumThreads(0)
    paths = save_photographs(knobs.folder, "jpeg", 1280, 960, quality=90)
    body, picture = np.fromfile(paths[0], np.uint8), np.asarray(photograph(1280, 960))

    class Pictures(Dataset):
        def __len__(self) -> int:
            return 4000

        def __getitem__(self, index: int) -> np.ndarray:
            path = str(paths[index % len(paths)])
            if knobs.off("decode"):
                image = np.fromfile(path, np.uint8) is not None and picture
            elif knobs.off("read"):
                image = cv2.imdecode(body, cv2.IMREAD_COLOR)
            else:
                image = cv2.imread(path)
            if knobs.off("transform"):
                return np.zeros((3, 160, 160), np.float32)
            image = cv2.cvtColor(image[:640, :640], cv2.COLOR_BGR2RGB)
            return cv2.resize(image, (160, 160)).transpose(2, 0, 1).astype(np.float32)

    model = small_net()
    for images in DataLoader(Pictures(), batch_size=8, shuffle=True, num_workers=2):
        if not knobs.off("device"):
            model(images).sum().backward()
            model.zero_grad()
        if clock.over():
            break


@case("png", label="decode", stages="decode transform device")
def png_pil(knobs: Knobs, clock: Clock) -> None:
    paths = save_photographs(knobs.folder, "png", 640, 480, compress_level=1)

    def decode(path: pathlib.Path) -> np.ndarray:
        return np.asarray(Image.open(path))

    chosen = knobs.pick("decode", decode, Always(np.asarray(photograph(640, 480))))
    steps: list[Any] = [
        lambda a: a[100:228, 100:228],
        lambda a: np.ascontiguousarray(a.transpose(2, 0, 1)),
        torch.from_numpy,
        lambda t: t.float() / 255,
    ]

    class Screenshots(Dataset):
        def __len__(self) -> int:
            return len(paths) * 100

        def __getitem__(self, index: int) -> torch.Tensor:
            x = chosen(paths[index % len(paths)])
            for step in knobs.pick("transform", steps, [Always(torch.zeros(3, 128, 128))]):
                x = step(x)
            return x

    model = small_net()
    optimizer = torch.optim.RMSprop(model.parameters())
    for images in DataLoader(Screenshots(), 8, True, num_workers=4, prefetch_factor=4):
        if not knobs.off("device"):
            loss = -nn.functional.log_softmax(model(images), dim=1)[:, 0].mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if clock.over():
            break


@case("webp", label="decode", stages="read decode device")
def webp_iterable(knobs: Knobs, clock: Clock) -> None:
    """Batches made by the data set itself, in the training process."""
    paths = save_photographs(knobs.folder, "webp", 640, 480, quality=80)
    body, picture = paths[0].read_bytes(), np.asarray(photograph(640, 480))

    def batches() -> Iterator[torch.Tensor]:
        start = 0
        while True:
            bodies = [body if knobs.off("read") else path.read_bytes() for path in paths[start : start + 4]]
            if knobs.off("decode"):
                images = [picture] * 4
            else:
                images = [np.asarray(Image.open(io.BytesIO(one))) for one in bodies]
            yield torch.stack([torch.from_numpy(image[::4, ::4].copy()) for image in images]).permute(0, 3, 1, 2)
            start = (start + 4) % len(paths)

    class Webp(IterableDataset):
        def __iter__(self) -> Iterator[torch.Tensor]:
            return batches()

    model = small_net()
    for images in DataLoader(Webp(), batch_size=None):
        if not knobs.off("device"):
            model(images / 255.0).mean().backward()
            model.zero_grad()
        if clock.over():
            break


@case("audio", label="decode", stages="read decode transform device", needs="soundfile")
def flac_soundfile(knobs: Knobs, clock: Clock) -> None:
    import soundfile

    sound = (np.random.default_rng(0).normal(size=16_000 * 20) * 3000).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, sound, 16_000, format="FLAC")
    path = knobs.folder / "speech.flac"
    path.write_bytes(buffer.getvalue())
    ready = sound.astype(np.float32)

    class Speech(Dataset):
        def __len__(self) -> int:
            return 3000

        def __getitem__(self, index: int) -> torch.Tensor:
            body = buffer.getvalue() if knobs.off("read") else path.read_bytes()
            wave = ready if knobs.off("decode") else soundfile.read(io.BytesIO(body), dtype="float32")[0]
            if knobs.off("transform"):
                return torch.zeros(16_000)
            start = index * 37 % (len(wave) - 16_000)
            cut = wave[start : start + 16_000]
            return torch.from_numpy(cut / (np.abs(cut).max() + 1e-6))

    model = nn.Sequential(nn.Unflatten(1, (1, -1)), nn.Conv1d(1, 16, 400, 160), nn.ReLU(), nn.AdaptiveAvgPool1d(1))
    loader = DataLoader(Speech(), batch_size=8, shuffle=True, num_workers=2)
    for waves in loader:
        if not knobs.off("device"):
            model(waves).mean().backward()
            model.zero_grad()
        if clock.over():
            break


def unpack_24_bit(body: bytes) -> np.ndarray:
    """Samples of three bytes, which NumPy has no type for."""
    raw = np.frombuffer(body, np.uint8).reshape(-1, 3).astype(np.int32)
    values = raw[:, 0] | (raw[:, 1] << 8) | (raw[:, 2] << 16)
    return (values - ((values & 0x800000) << 1)).astype(np.float32) / 8_388_608


@case("audio", label="decode", stages="read decode device")
def wave_24_bit(knobs: Knobs, clock: Clock) -> None:
    import wave

    path, frames = str(knobs.folder / "take.wav"), 48_000 * 8
    with wave.open(path, "wb") as file:
        file.setparams((1, 3, 48_000, 0, "NONE", ""))
        file.writeframes(np.random.default_rng(0).bytes(3 * frames))

    def read(_: int) -> bytes:
        with wave.open(path, "rb") as file:
            return file.readframes(file.getnframes())

    read_frames = knobs.pick("read", read, Always(read(0)))
    decode = knobs.pick("decode", unpack_24_bit, Always(np.zeros(frames, np.float32)))

    class Takes(Dataset):
        def __len__(self) -> int:
            return 10_000

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.from_numpy(decode(read_frames(index))[:8000])

    model = nn.Linear(8000, 8)
    for batch in DataLoader(Takes(), batch_size=8, num_workers=1):
        if not knobs.off("device"):
            model(batch).sum().backward()
            model.zero_grad()
        if clock.over():
            break


class Archives(Dataset):
    def __init__(self, paths: list[str], load: Callable[[str], np.ndarray], crop: Any) -> None:
        self.paths, self.load, self.crop = paths, load, crop

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> np.ndarray:
        return self.crop(self.load(self.paths[index % len(self.paths)]))


@case("compressed arrays", label="decode", stages="decode transform device")
def npz_compressed(knobs: Knobs, clock: Clock) -> None:
    volume = np.random.default_rng(0).integers(0, 12, (64, 128, 128), dtype=np.uint8)
    paths = [str(knobs.folder / f"{number}.npz") for number in range(4)]
    for path in paths:
        np.savez_compressed(path, volume=volume)
    load = knobs.pick("decode", lambda path: np.load(path)["volume"], Always(volume))
    crop = knobs.pick(
        "transform",
        lambda v: v[16:48, 32:96, 32:96].astype(np.float32),
        Always(np.zeros((32, 64, 64), np.float32)),
    )
    model = nn.Sequential(nn.Conv3d(1, 4, 4, stride=4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    model(torch.zeros(1, 1, 32, 64, 64))
    for volumes in DataLoader(Archives(paths, load, crop), batch_size=4, shuffle=True, num_workers=2):
        if not knobs.off("device"):
            model(volumes.unsqueeze(1)).mean().backward()
            model.zero_grad()
        if clock.over():
            break


@case("compressed values", label="decode", stages="read decode device", needs="lmdb")
def zlib_in_lmdb(knobs: Knobs, clock: Clock) -> None:
    import lmdb

    table = np.random.default_rng(0).integers(0, 30, 400_000, dtype=np.int16)
    packed = zlib.compress(table.tobytes(), 6)
    env = lmdb.open(str(knobs.folder / "db"), map_size=1 << 28)
    with env.begin(write=True) as transaction:
        for key in range(40):
            transaction.put(b"%d" % key, packed)
    env.close()

    class Records(Dataset):
        env: Any = None

        def __len__(self) -> int:
            return 4000

        def __getitem__(self, index: int) -> torch.Tensor:
            self.env = self.env or lmdb.open(str(knobs.folder / "db"), readonly=True, lock=False)
            with self.env.begin(buffers=True) as transaction:
                value = packed if knobs.off("read") else transaction.get(b"%d" % (index % 40))
                raw = table.tobytes() if knobs.off("decode") else zlib.decompress(value)
            return torch.from_numpy(np.frombuffer(raw, np.int16)[:4096].astype(np.float32))

    model = nn.Linear(4096, 4)
    for batch in DataLoader(Records(), batch_size=8, num_workers=2, shuffle=True):
        if not knobs.off("device"):
            model(batch).mean().backward()
            model.zero_grad()
        if clock.over():
            break


@case("json rows", label="decode", stages="read decode collate device")
def json_lines(knobs: Knobs, clock: Clock) -> None:
    row = {
        "label": 1,
        "boxes": [[i * 0.37, i * 0.11, i * 1.7, i * 1.3] for i in range(1500)],
        "name": "x" * 300,
    }
    path = knobs.folder / "train.jsonl"
    with open(path, "w") as file:
        file.writelines(json.dumps(row) + "\n" for _ in range(64))
    line = json.dumps(row)
    parse = knobs.pick("decode", json.loads, Always(row))

    class JsonLines(IterableDataset):
        def __iter__(self) -> Iterator[dict[str, Any]]:
            while True:
                with open(path) as file:
                    for text in [line] * 64 if knobs.off("read") else file:
                        yield parse(text)

    def collate(rows: list[dict[str, Any]]) -> torch.Tensor:
        return torch.tensor([one["boxes"][:50] for one in rows])

    chosen = knobs.pick("collate", collate, Always(torch.zeros(16, 50, 4)))
    model = nn.Sequential(nn.Flatten(), nn.Linear(200, 4))
    for boxes in DataLoader(JsonLines(), batch_size=16, num_workers=1, collate_fn=chosen):
        if not knobs.off("device"):
            model(boxes).mean().backward()
            model.zero_grad()
        if clock.over():
            break


@case("json rows", label="decode", stages="decode transform device")
def base64_in_json(knobs: Knobs, clock: Clock) -> None:
    """A picture inside a line of JSON, as many multimodal sets are shipped; num_workers=0, plain next()."""
    picture = photograph(960, 720)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    line = json.dumps({"image": base64.b64encode(buffer.getvalue()).decode(), "text": "a photograph"})

    def decode(text: str) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(json.loads(text)["image"]))).convert("RGB")

    image_of = knobs.pick("decode", decode, Always(picture))
    pixels_of = knobs.pick(
        "transform",
        lambda image: np.array(image.resize((64, 64), Image.Resampling.NEAREST)),
        Always(np.zeros((64, 64, 3), np.uint8)),
    )

    class Conversations(Dataset):
        lines = [line] * 2000

        def __len__(self) -> int:
            return len(self.lines)

        def __getitem__(self, index: int) -> np.ndarray:
            return pixels_of(image_of(self.lines[index]))

    model = small_net()
    batches = iter(DataLoader(Conversations(), batch_size=4))
    while not clock.over():
        images = next(batches)
        if not knobs.off("device"):
            model(images.permute(0, 3, 1, 2).float()).mean().backward()
            model.zero_grad()


@case("pickled rows", label="decode", stages="decode collate device")
def pickle_rows(knobs: Knobs, clock: Clock) -> None:
    row = {"nodes": [{"id": i, "x": i * 0.5, "edges": [i + 1, i + 2]} for i in range(2500)]}
    packed = pickle.dumps(row)

    class Graphs(Dataset):
        def __init__(self, unpack: Callable[[bytes], Any]) -> None:
            self.unpack = unpack

        def __len__(self) -> int:
            return 5000

        def __getitem__(self, index: int) -> Any:
            return self.unpack(packed)["nodes"]

    def collate(graphs: list[Any]) -> torch.Tensor:
        return torch.tensor([[node["x"] for node in nodes[:100]] for nodes in graphs])

    loader = DataLoader(
        Graphs(knobs.pick("decode", pickle.loads, Always(row))),
        batch_size=16,
        num_workers=2,
        collate_fn=knobs.pick("collate", collate, Always(torch.zeros(16, 100))),
    )
    model = nn.Linear(100, 2)
    for batch in loader:
        if not knobs.off("device"):
            model(batch).mean().backward()
            model.zero_grad()
        if clock.over():
            break


@case("csv rows", label="decode", stages="decode transform device")
def gzip_csv(knobs: Knobs, clock: Clock) -> None:
    path = knobs.folder / "features.csv.gz"
    values = np.random.default_rng(0).normal(size=(500, 400)).round(4)
    with gzip.open(path, "wt", newline="") as file:
        csv.writer(file).writerows(values.tolist())
    ready = values.tolist()

    def rows() -> Iterator[list[float]]:
        with gzip.open(path, "rt", newline="") as file:
            for fields in csv.reader(file):
                yield [float(field) for field in fields]

    standardise = knobs.pick("transform", lambda row: (torch.tensor(row) - 0.1) / 1.1, Always(torch.zeros(60)))

    class Table(IterableDataset):
        def __iter__(self) -> Iterator[torch.Tensor]:
            while True:
                for row in ready if knobs.off("decode") else rows():
                    yield standardise(row[:60])

    model = nn.Linear(60, 1)
    for batch in DataLoader(Table(), batch_size=64, num_workers=1):
        if not knobs.off("device"):
            model(batch).mean().backward()
            model.zero_grad()
        if clock.over():
            break


class Tokeniser:
    """Words, then merges of pairs of pieces, as byte-pair encodings do."""

    def __init__(self) -> None:
        self.words = re.compile(r"\w+|[^\w\s]")
        self.ranks = {(a, b): ord(a) * 31 + ord(b) for a in "etaoinshrdlu" for b in "etaoinshrdlu"}

    def pieces(self, word: str) -> list[str]:
        parts = list(word)
        while len(parts) > 1:
            pairs = list(itertools.pairwise(parts))
            best = min(range(len(pairs)), key=lambda i: self.ranks.get(pairs[i], 1 << 30))
            if pairs[best] not in self.ranks:
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        return parts

    def encode(self, text: str) -> list[int]:
        return [hash(piece) % 30_000 for word in self.words.findall(text) for piece in self.pieces(word)]


@case("tokenising", label="decode", stages="decode collate device")
def tokenise_python(knobs: Knobs, clock: Clock) -> None:
    text = "the rather inhospitable shores were sounded in the dead of a restless northern night, as ordered; " * 12
    encode = knobs.pick("decode", Tokeniser().encode, Always(list(range(400))))
    limit = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)

    class Texts(Dataset):
        def __len__(self) -> int:
            return 20_000

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.tensor(encode(text)[:256])

    collate = knobs.pick("collate", limit, Always(torch.ones(8, 256, dtype=torch.long)))
    model = nn.Sequential(nn.EmbeddingBag(30_000, 16, sparse=True), nn.Linear(16, 2))
    for tokens in DataLoader(Texts(), batch_size=8, num_workers=2, collate_fn=collate):
        if not knobs.off("device"):
            model(tokens).mean().backward()
            model.zero_grad()
        if clock.over():
            break


@case("saved tensors", label="decode", also="read", stages="read decode device")
def torch_load(knobs: Knobs, clock: Clock) -> None:
    """A .pt file per sample, each with many small tensors: unpacking, not reading, is what takes long."""
    paths = [knobs.folder / f"{number}.pt" for number in range(16)]
    sample = {f"feature_{number}": torch.randn(8) for number in range(60)}
    for path in paths:
        torch.save(sample, path)
    body = io.BytesIO(paths[0].read_bytes())

    class Saved(Dataset):
        def __len__(self) -> int:
            return 16_000

        def __getitem__(self, index: int) -> torch.Tensor:
            path = paths[index % 16]
            if knobs.off("decode"):
                features = path.read_bytes() and sample
            elif knobs.off("read"):
                body.seek(0)
                features = torch.load(body)
            else:
                features = torch.load(path)
            return torch.cat(list(features.values()))

    model = nn.Linear(480, 4)
    for batch in DataLoader(Saved(), batch_size=8, shuffle=True, num_workers=2):
        if not knobs.off("device"):
            model(batch).mean().backward()
            model.zero_grad()
        if clock.over():
            break


@case("shards", label="decode", stages="read decode device")
def pickled_shards(knobs: Knobs, clock: Clock) -> None:
    """A shard is unpickled whole, then cut into batches, as a hand-made streamer does."""
    rows = [(list(np.random.default_rng(number).normal(size=64)), number % 2) for number in range(1500)]
    paths = [knobs.folder / f"shard{number}.pkl" for number in range(4)]
    for path in paths:
        path.write_bytes(pickle.dumps(rows))
    body, ready = paths[0].read_bytes(), (torch.randn(1500, 64), torch.zeros(1500, dtype=torch.long))

    class Shards(IterableDataset):
        def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            number = 0
            while True:
                raw = body if knobs.off("read") else paths[number % 4].read_bytes()
                number += 1
                if knobs.off("decode"):
                    features, labels = ready
                else:
                    parsed = pickle.loads(raw)
                    features = torch.tensor([row for row, _ in parsed], dtype=torch.float32)
                    labels = torch.tensor([label for _, label in parsed])
                shard = TensorDataset(features, labels)
                for start in range(0, 1500, 250):
                    yield shard[start : start + 250]

    model = nn.Linear(64, 2)
    for features, labels in DataLoader(Shards(), batch_size=None, num_workers=1):
        if not knobs.off("device"):
            nn.functional.cross_entropy(model(features), labels).backward()
            model.zero_grad()
        if clock.over():
            break


if __name__ == "__main__":
    sys.exit(main())
