"""A WebDataset pipeline with a map function and a filter of the user's own: the function is the limit."""

import io
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from torch.utils.data import DataLoader
from training import train


def write_shard(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for number in range(96):
            sound = io.BytesIO()
            np.save(sound, np.random.default_rng(number).standard_normal(8000).astype(np.float32))
            entry = tarfile.TarInfo(f"{number:04}.npy")
            entry.size = len(sound.getvalue())
            tar.addfile(entry, io.BytesIO(sound.getvalue()))


def loud(sample):
    return float(np.abs(sample["npy"]).max()) > 0.1


def features(sample):  # the limit
    wave = sample["npy"]
    frames = np.lib.stride_tricks.sliding_window_view(wave, 512)[::16]
    spectrum = np.abs(np.fft.rfft(frames * np.hanning(512)))  # the limit
    return torch.from_numpy(np.log1p(spectrum).mean(0).astype(np.float32))


def batches(samples):
    batch = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == 8:
            yield torch.stack(batch)
            batch = []


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        write_shard(Path(folder) / "train.tar")
        dataset = wds.DataPipeline(
            wds.SimpleShardList(folder + "/train.tar"),
            wds.tarfile_to_samples(),
            wds.decode(),
            wds.select(loud),
            wds.map(features),
            batches,
        )
        train(DataLoader(dataset, batch_size=None, num_workers=1, persistent_workers=True), 80, lambda batch: batch)


if __name__ == "__main__":
    main()
