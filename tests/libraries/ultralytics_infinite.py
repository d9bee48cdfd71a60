"""Ultralytics' own dataset and InfiniteDataLoader, as its trainer makes them: decoding the pictures is the limit."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from training import ask_for_torchvision, photograph, train

os.environ.update(YOLO_OFFLINE="true", YOLO_VERBOSE="false")  # it prints how fast the disk is
ask_for_torchvision()
from ultralytics.cfg import get_cfg  # noqa: E402
from ultralytics.data.build import build_dataloader, build_yolo_dataset  # noqa: E402


def written(folder: Path, count: int) -> None:
    """Write pictures of a phone's size, each with one box in it."""
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for number in range(count):
        photograph(2400, 1800, number % 6).save(folder / "images" / f"{number}.jpg", quality=92)
        (folder / "labels" / f"{number}.txt").write_text("0 0.5 0.5 0.25 0.25\n")


def epochs(loader: Iterable[dict[str, torch.Tensor]], count: int) -> Iterator[dict[str, torch.Tensor]]:
    for _ in range(count):
        yield from loader  # the limit


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written(folder, 32)
        settings = get_cfg(overrides={"task": "detect", "imgsz": 320, "cache": False, "workers": 1, "augment": False})
        data = {"names": {0: "field"}, "nc": 1, "channels": 3}
        dataset = build_yolo_dataset(settings, str(folder / "images"), 4, data, mode="val", stride=32)
        loader = build_dataloader(dataset, batch=4, workers=1, shuffle=False)
        train(epochs(loader, 6), 48, lambda batch: batch["img"])


if __name__ == "__main__":
    main()
