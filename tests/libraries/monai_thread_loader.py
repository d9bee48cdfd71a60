"""MONAI's ThreadDataLoader, whose thread takes batches ahead of the loop; a transform of its pictures is the limit."""

import torch
from monai.data import Dataset, ThreadDataLoader
from monai.transforms import Compose, EnsureChannelFirstd, ScaleIntensityd
from monai.utils import set_determinism
from monai_pictures import Smoothed, pictures
from training import train


def main() -> None:
    set_determinism(0)
    torch.set_num_threads(1)
    transform = Compose(
        [
            EnsureChannelFirstd(keys="image", channel_dim="no_channel"),
            ScaleIntensityd(keys="image"),
            Smoothed(keys="image"),
        ]
    )
    loader = ThreadDataLoader(Dataset(pictures(96), transform), batch_size=4, buffer_size=2, num_workers=0)
    train(loader, 64, lambda batch: batch["image"])


if __name__ == "__main__":
    main()
