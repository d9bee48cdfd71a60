"""Shards of JPEG files through WebDataset: decoding the pictures is the limit."""

import io
import random
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from training import photograph, train


def write_shards(folder: Path) -> None:
    for shard in range(2):
        with tarfile.open(folder / f"train-{shard:03}.tar", "w") as tar:
            for number in range(24):
                picture = io.BytesIO()
                photograph(1200, 900, number % 6).save(picture, "JPEG", quality=92)
                for ending, body in (("jpg", picture.getvalue()), ("cls", str(number % 10).encode())):
                    entry = tarfile.TarInfo(f"{shard}{number:04}.{ending}")
                    entry.size = len(body)
                    tar.addfile(entry, io.BytesIO(body))


def to_pixels(picture):
    crop = np.asarray(picture.crop((100, 100, 324, 324)))
    return torch.from_numpy(crop.copy()).permute(2, 0, 1)


def main() -> None:
    random.seed(0)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder))
        dataset = (
            wds.WebDataset(folder + "/train-{000..001}.tar", shardshuffle=False)
            .shuffle(10, rng=random.Random(0))
            .decode("pil")  # the limit
            .to_tuple("jpg", "cls")
            .map_tuple(to_pixels, int)
            .batched(8)
        )
        loader = wds.WebLoader(dataset, batch_size=None, num_workers=1, persistent_workers=True)
        train(loader, 36, lambda batch: batch[0])


if __name__ == "__main__":
    main()
