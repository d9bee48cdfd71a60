"""Pipelines whose augmentations take the time: PIL, NumPy, torch, torchvision, OpenCV, plain Python."""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from casework import Always, Clock, Knobs, Unchanged, ask_for_torchvision, case, main
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset


class Stored(Dataset):
    """Small arrays on disk, read whole, then a transform."""

    def __init__(self, knobs: Knobs, array: np.ndarray, transform: Callable[[Any], Any]) -> None:
        self.paths = [str(knobs.folder / f"{number}.npy") for number in range(8)]
        for path in self.paths:
            np.save(path, array)
        self.load = knobs.pick("read", np.load, Always(array))
        self.transform = transform

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.load(self.paths[index % len(self.paths)]))


def tiny_net(channels: int) -> nn.Module:
    return nn.Sequential(nn.AvgPool2d(16), nn.Conv2d(channels, 4, 2), nn.Flatten(), nn.LazyLinear(2))


def flip(image: Image.Image) -> Image.Image:
    return ImageOps.mirror(image) if random.random() < 0.5 else image


def blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(random.uniform(2, 6)))


def turn(image: Image.Image) -> Image.Image:
    return image.rotate(random.uniform(-15, 15), Image.Resampling.BICUBIC)


def colours(image: Image.Image) -> Image.Image:
    return ImageEnhance.Color(image).enhance(random.uniform(0.6, 1.4))


@case("pil operations", label="transform", stages="read transform device")
def pil_list(knobs: Knobs, clock: Clock) -> None:
    augmentations = [Image.fromarray, flip, blur, turn, colours, np.asarray]

    def augment(x: Any) -> Any:
        for one in augmentations:
            x = one(x)
        return x.transpose(2, 0, 1).copy()

    picture = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    dataset = Stored(knobs, picture, knobs.pick("transform", augment, Always(picture.transpose(2, 0, 1).copy())))
    model = tiny_net(3)
    optimizer = None
    for images in DataLoader(dataset, batch_size=8, shuffle=True, num_workers=2):
        if not knobs.off("device"):
            loss = model(images.float() / 255).square().mean()
            optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=1e-4)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if clock.over():
            break


class RandomGamma:
    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return (image / 255.0) ** np.random.uniform(self.low, self.high)


class LocalContrast:
    """Subtract the mean of a window around every pixel, divide by its deviation."""

    def __init__(self, radius: int = 4) -> None:
        self.offsets = [(dy, dx) for dy in range(-radius, radius + 1, 2) for dx in range(-radius, radius + 1, 2)]

    def __call__(self, image: np.ndarray) -> np.ndarray:
        window = np.stack([np.roll(image, offset, (0, 1)) for offset in self.offsets])
        return (image - window.mean(0)) / (window.std(0) + 1e-3)


class RandomCrop:
    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: np.ndarray) -> np.ndarray:
        top, left = np.random.randint(0, image.shape[0] - self.size, 2)
        return image[top : top + self.size, left : left + self.size]


class Chain:
    def __init__(self, *steps: Callable[[Any], Any]) -> None:
        self.steps = steps

    def __call__(self, x: Any) -> Any:
        for step in self.steps:
            x = step(x)
        return x


def as_float(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None]


@case("numpy operations", label="transform", stages="read transform collate device")
def numpy_classes(knobs: Knobs, clock: Clock) -> None:
    scan = np.random.default_rng(0).integers(0, 256, (160, 160), dtype=np.uint8)
    chain = Chain(RandomCrop(128), RandomGamma(0.8, 1.2), LocalContrast(), as_float)
    dataset = Stored(knobs, scan, knobs.pick("transform", chain, Always(torch.zeros(1, 128, 128))))
    collate = knobs.pick("collate", None, Always(torch.zeros(4, 1, 128, 128)))
    model = tiny_net(1)
    for scans in DataLoader(dataset, batch_size=4, shuffle=True, num_workers=1, collate_fn=collate):
        if not knobs.off("device"):
            model(scans).mean().backward()
            model.zero_grad()
        if clock.over():
            break


class Smooth(nn.Module):
    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        self.size, self.channels = size, channels
        self.register_buffer("kernel", torch.ones(channels, 1, size, size) / size**2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, self.kernel, padding=self.size // 2, groups=self.channels)


class AddNoise(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.05 * torch.randn_like(x)


@case("torch operations", label="transform", stages="read transform device")
def torch_sequential(knobs: Knobs, clock: Clock) -> None:
    pipeline = nn.Sequential(AddNoise(), Smooth(15, 3), nn.AvgPool2d(2), nn.InstanceNorm2d(3))

    def transform(array: np.ndarray) -> torch.Tensor:
        with torch.no_grad():
            return pipeline(torch.from_numpy(array)[None])[0]

    picture = np.random.default_rng(0).random((3, 192, 192), dtype=np.float32)
    dataset = Stored(knobs, picture, knobs.pick("transform", transform, Always(torch.zeros(3, 96, 96))))
    model = tiny_net(3)
    for images in DataLoader(Subset(dataset, range(50_000)), batch_size=4, num_workers=2, persistent_workers=True):
        if not knobs.off("device"):
            model(images).mean().backward()
            model.zero_grad()
        if clock.over():
            break


@case("torchvision v2", label="transform", stages="read transform device", needs="torchvision")
def torchvision_v2(knobs: Knobs, clock: Clock) -> None:
    ask_for_torchvision()
    from torchvision.transforms import v2

    compose = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.3, 0.3, 0.3, 0.1),
            v2.GaussianBlur(9),
            v2.CenterCrop(160),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.2] * 3),
        ]
    )
    picture = np.random.default_rng(0).integers(0, 256, (3, 224, 224), dtype=np.uint8)
    usual = Chain(torch.from_numpy, compose)
    dataset = Stored(knobs, picture, knobs.pick("transform", usual, Always(torch.zeros(3, 160, 160))))
    model = tiny_net(3)
    for images in DataLoader(dataset, batch_size=4, shuffle=True, num_workers=2):
        if not knobs.off("device"):
            model(images).mean().backward()
            model.zero_grad()
        if clock.over():
            break


@case("opencv operations", label="transform", stages="read transform device", needs="cv2")
def opencv_warp(knobs: Knobs, clock: Clock) -> None:
    import cv2

    cv2.setNumThreads(0)

    def warp(image: np.ndarray) -> np.ndarray:
        matrix = cv2.getRotationMatrix2D((192, 192), random.uniform(-30, 30), 1.0)
        image = cv2.warpAffine(image, matrix, (384, 384), flags=cv2.INTER_LANCZOS4)
        image = cv2.bilateralFilter(image, 5, 50, 50)
        return image[::3, ::3].transpose(2, 0, 1).copy()

    picture = np.random.default_rng(0).integers(0, 256, (384, 384, 3), dtype=np.uint8)
    dataset = Stored(knobs, picture, knobs.pick("transform", warp, Always(np.zeros((3, 128, 128), np.uint8))))
    model = tiny_net(3)
    for images in DataLoader(dataset, batch_size=4, num_workers=2):
        if not knobs.off("device"):
            model(images.float()).mean().backward()
            model.zero_grad()
        if clock.over():
            break


@case("float before crop", label="transform", stages="read transform device")
def float_before_crop(knobs: Knobs, clock: Clock) -> None:
    """The whole picture becomes floating point and is normalised, then a small crop of it is kept."""

    def transform(array: np.ndarray) -> torch.Tensor:
        image = torch.from_numpy(array).permute(2, 0, 1).float() / 255
        image = (image - image.mean()) / image.std()
        top, left = torch.randint(0, 1024 - 96, (2,)).tolist()
        return image[:, top : top + 96, left : left + 96].clone()

    picture = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    dataset = Stored(knobs, picture, knobs.pick("transform", transform, Always(torch.zeros(3, 96, 96))))
    model = tiny_net(3)
    batches = iter(DataLoader(dataset, batch_size=2, shuffle=True, num_workers=1))
    for images in batches:
        if not knobs.off("device"):
            model(images).mean().backward()
            model.zero_grad()
        if clock.over():
            break


def spec_augment(spectrum: list[list[float]], masks: int) -> list[list[float]]:
    """Masks of time and frequency, value by value."""
    rows, columns = len(spectrum), len(spectrum[0])
    for _ in range(masks):
        row, column = random.randrange(rows - 8), random.randrange(columns - 8)
        spectrum = [
            [0.0 if row <= i < row + 8 or column <= j < column + 8 else value for j, value in enumerate(line)]
            for i, line in enumerate(spectrum)
        ]
    return spectrum


@case("plain python", label="transform", stages="read transform device")
def python_loops(knobs: Knobs, clock: Clock) -> None:
    """num_workers=0, a function with loops over every value."""
    augment = functools.partial(spec_augment, masks=8)
    spectrum = np.random.default_rng(0).random((40, 80), dtype=np.float32)
    usual = Chain(np.ndarray.tolist, augment, torch.tensor)
    dataset = Stored(knobs, spectrum, knobs.pick("transform", usual, Always(torch.zeros(40, 80))))
    model = nn.GRU(80, 16, batch_first=True)
    optimizer = torch.optim.Adam(model.parameters())
    for spectra in DataLoader(dataset, batch_size=8):
        if not knobs.off("device"):
            optimizer.zero_grad()
            model(spectra)[1].mean().backward()
            optimizer.step()
        if clock.over():
            break


class Spectrogram:
    def __init__(self, size: int) -> None:
        self.size = size
        self.window = torch.hann_window(size)

    def __call__(self, wave: torch.Tensor) -> torch.Tensor:
        frames = torch.stft(wave, self.size, self.size // 4, window=self.window, return_complex=True)
        return frames.abs().clamp(min=1e-5).log()


@case("spectrogram", label="transform", stages="transform collate device")
def stft_iterable(knobs: Knobs, clock: Clock) -> None:
    wave = torch.randn(48_000 * 4)

    class Recordings(IterableDataset):
        def __init__(self, transform: Callable[[torch.Tensor], torch.Tensor]) -> None:
            self.transform = transform

        def __iter__(self) -> Iterator[torch.Tensor]:
            while True:
                start = random.randrange(48_000)
                yield self.transform(wave[start : start + 48_000 * 3])[:, :64]

    transform = knobs.pick("transform", Spectrogram(512), Always(torch.zeros(257, 128)))
    collate = knobs.pick("collate", torch.stack, Always(torch.zeros(4, 257, 64)))
    model = nn.Sequential(nn.Flatten(), nn.Linear(257 * 64, 4))
    for spectra in DataLoader(Recordings(transform), batch_size=4, num_workers=1, collate_fn=collate):
        if not knobs.off("device"):
            model(spectra).mean().backward()
            model.zero_grad()
        if clock.over():
            break


@case("one heavy among many", label="transform", stages="read transform device")
def median_among_light(knobs: Knobs, clock: Clock) -> None:
    """Six light augmentations and one that is not, applied in __getitem__ one after another."""
    if knobs.off("transform"):
        chain: Callable[[Any], Any] = Always(torch.zeros(1, 112, 112))
    else:
        chain = Chain(
            RandomCrop(112),
            lambda x: x[:, ::-1],
            lambda x: x.astype(np.float32),
            lambda x: x + np.random.normal(0, 2, x.shape).astype(np.float32),
            lambda x: np.median([np.roll(x, (i, j), (0, 1)) for i in range(-1, 2) for j in range(-1, 2)], axis=0),
            lambda x: (x - 128) / 64,
            as_float,
        )
    scan = np.random.default_rng(0).integers(0, 256, (160, 160), dtype=np.uint8)
    model = tiny_net(1)
    for scans in DataLoader(Stored(knobs, scan, chain), batch_size=8, num_workers=2, prefetch_factor=3):
        if not knobs.off("device"):
            model(scans).mean().backward()
            model.zero_grad()
        if clock.over():
            break


@case("batched fetch", label="transform", stages="read transform device")
def getitems(knobs: Knobs, clock: Clock) -> None:
    """A data set that is asked for a whole batch at once and transforms it as one array."""
    table = np.random.default_rng(0).random((20_000, 256), dtype=np.float32)

    def augment(batch: np.ndarray) -> np.ndarray:
        ranks = batch.argsort(axis=1).argsort(axis=1)
        return np.tanh(batch * 3) + np.sort(batch, axis=1)[:, ::-1] * (ranks % 2)

    chosen = knobs.pick("transform", augment, Unchanged())

    class Batched(Dataset):
        def __len__(self) -> int:
            return len(table)

        def __getitems__(self, indices: list[int]) -> np.ndarray:
            return chosen(table[:256] if knobs.off("read") else table[indices])

        def __getitem__(self, index: int) -> np.ndarray:
            return self.__getitems__([index])[0]

    model = nn.Linear(256, 8)
    loader = DataLoader(Batched(), batch_size=256, shuffle=True, num_workers=1, collate_fn=torch.from_numpy)
    while not clock.done:
        for rows in loader:
            if not knobs.off("device"):
                model(rows.float()).mean().backward()
                model.zero_grad()
            if clock.over():
                break


if __name__ == "__main__":
    sys.exit(main())
