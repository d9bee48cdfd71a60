"""MONAI's CacheDataset keeps what is not random; what stays is a transform of the user's own."""

import torch
from monai.data import CacheDataset, DataLoader
from monai.transforms import Compose, EnsureChannelFirstd, RandGaussianNoised, ScaleIntensityd, ToTensord
from monai.transforms.transform import RandomizableTrait
from monai.utils import set_determinism
from monai_pictures import Smoothed, pictures
from training import train


class RandSmoothed(Smoothed, RandomizableTrait):
    """Smooths every picture, and says that it is random: it is not cached."""


def main() -> None:
    set_determinism(0)
    torch.set_num_threads(1)
    transform = Compose(
        [
            EnsureChannelFirstd(keys="image", channel_dim="no_channel"),
            ScaleIntensityd(keys="image"),
            RandSmoothed(keys="image"),
            RandGaussianNoised(keys="image", prob=0.5),
            ToTensord(keys="image"),
        ]
    )
    dataset = CacheDataset(pictures(32), transform, cache_rate=1.0, num_workers=1, progress=False)
    loader = DataLoader(dataset, batch_size=4, shuffle=True, num_workers=1, persistent_workers=True)
    train(loader, 56, lambda batch: batch["image"].as_tensor())


if __name__ == "__main__":
    main()
