"""Pipelines with two limits of about the same size: naming either is right, and naming a third is wrong."""

from __future__ import annotations

import io
import sys
import urllib.request
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from casework import Always, Clock, Knobs, case, main
from PIL import Image, ImageFilter
from stand_ins import Slow, photograph, small_net
from store import store
from torch import nn
from torch.utils.data import DataLoader, Dataset


def jpeg(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    photograph(width, height).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def decoded(body: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(body)))


class Pipeline(Dataset):
    def __init__(self, *stages: Callable[[Any], Any]) -> None:
        self.stages = stages

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> Any:
        x: Any = index
        for stage in self.stages:
            x = stage(x)
        return x


def to_pixels(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image[:96, :96].transpose(2, 0, 1).astype(np.float32))


@case("half and half", label="read", also="decode", stages="read decode device")
def read_and_decode(knobs: Knobs, clock: Clock) -> None:
    """Pictures from a store: 12 ms to fetch one, as long to decode it."""
    body = jpeg(1280, 960)
    with store(lambda _: body, latency_s=0.009) as url:

        def fetch(index: int) -> bytes:
            with urllib.request.urlopen(f"{url}/{index}") as response:
                return response.read()

        dataset = Pipeline(
            knobs.pick("read", fetch, Always(body)),
            knobs.pick("decode", decoded, Always(decoded(body))),
            to_pixels,
        )
        model = small_net()
        for images in DataLoader(dataset, batch_size=6, num_workers=1):
            if not knobs.off("device"):
                model(images).mean().backward()
                model.zero_grad()
            if clock.over():
                break


@case("half and half", label="decode", also="transform", stages="decode transform device")
def decode_and_transform(knobs: Knobs, clock: Clock) -> None:
    body = jpeg(960, 720)

    def soften(image: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(image[:480, :480]).filter(ImageFilter.GaussianBlur(3)))

    picture = decoded(body)
    decode = knobs.pick("decode", lambda _: decoded(body), Always(picture))
    blur = knobs.pick("transform", soften, Always(picture[:480, :480]))
    model = small_net()
    for images in DataLoader(Pipeline(decode, blur, to_pixels), batch_size=8, num_workers=2):
        if not knobs.off("device"):
            model(images).mean().backward()
            model.zero_grad()
        if clock.over():
            break


@case("half and half", label="decode", also="device", stages="decode device")
def loader_and_step(knobs: Knobs, clock: Clock) -> None:
    """num_workers=0: decoding and the model take turns, about as long each."""
    body = jpeg(800, 640)
    picture = decoded(body)
    decode = knobs.pick("decode", lambda _: decoded(body), Always(picture))
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for images in DataLoader(Pipeline(decode, to_pixels), batch_size=8):
        if not knobs.off("device"):
            model(images).mean().backward()
            model.zero_grad()
        if clock.over():
            break


@case("half and half", label="transform", also="collate", stages="transform collate device")
def transform_and_collate(knobs: Knobs, clock: Clock) -> None:
    values = [float(number % 97) for number in range(1500)]

    def smooth(_: int) -> list[float]:
        return [(values[i] + values[i - 1] + values[i - 2]) / 3 for i in range(len(values))]

    def pad(rows: list[list[float]]) -> torch.Tensor:
        return torch.tensor([[row[i] if i < len(row) else 0.0 for i in range(2000)] for row in rows])

    chosen = knobs.pick("transform", smooth, Always(values))
    collate = knobs.pick("collate", pad, Always(torch.zeros(16, 2000)))
    model = Slow(0.0, width=2000)
    for rows in DataLoader(Pipeline(chosen), batch_size=16, num_workers=1, collate_fn=collate):
        if not knobs.off("device"):
            model(rows).mean().backward()
            model.zero_grad()
        if clock.over():
            break


@case("half and half", label="read", also="host", stages="read host device")
def read_and_host(knobs: Knobs, clock: Clock) -> None:
    """num_workers=0: a request for every batch, then Python statistics of it, as long each."""
    body = np.arange(4000, dtype=np.float32).tobytes()
    with store(lambda _: body, latency_s=0.008) as url:

        def fetch(index: int) -> bytes:
            with urllib.request.urlopen(f"{url}/{index}") as response:
                return response.read()

        get = knobs.pick("read", fetch, Always(body))
        dataset = Pipeline(get, lambda raw: torch.frombuffer(bytearray(raw), dtype=torch.float32).view(40, 100))
        model = Slow(0.0, width=100)
        history: dict[int, float] = {}
        for rows in DataLoader(dataset, batch_size=None):
            if not knobs.off("device"):
                model(rows).mean().backward()
                model.zero_grad()
            if not knobs.off("host"):
                for row in rows.tolist() * 20:
                    ordered = sorted(row)
                    history[int(ordered[50])] = sum(ordered) / len(ordered)
            if clock.over():
                break


if __name__ == "__main__":
    sys.exit(main())
