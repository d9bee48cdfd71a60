"""Volumes through MONAI's dictionary transforms: the elastic deformation is the limit."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from monai.data import DataLoader, Dataset
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    Rand3DElasticd,
    RandFlipd,
    ScaleIntensityd,
    ToTensord,
)
from monai.utils import set_determinism
from training import train


def main() -> None:
    set_determinism(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number in range(24):
            path = Path(folder) / f"{number:03}.npy"
            np.save(path, np.random.default_rng(number).random((40, 40, 40), dtype=np.float32))
            files.append({"image": str(path)})
        transform = Compose(
            [
                LoadImaged(keys="image"),
                EnsureChannelFirstd(keys="image", channel_dim="no_channel"),
                ScaleIntensityd(keys="image"),
                RandFlipd(keys="image", prob=0.5, spatial_axis=0),
                Rand3DElasticd(keys="image", sigma_range=(2, 3), magnitude_range=(10, 20), prob=1.0),  # the limit
                ToTensord(keys="image"),
            ]
        )
        loader = DataLoader(Dataset(files, transform), batch_size=2, shuffle=True, num_workers=1)
        train(loader, 48, lambda batch: batch["image"].as_tensor())


if __name__ == "__main__":
    main()
