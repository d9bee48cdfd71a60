"""MONAI's ThreadDataLoader, whose thread takes batches ahead of the loop; a transform of its pictures is the limit."""

import numpy as np
import torch
from monai.data import Dataset, ThreadDataLoader
from monai.transforms import Compose, EnsureChannelFirstd, MapTransform, ScaleIntensityd
from monai.utils import set_determinism
from scipy.ndimage import median_filter
from training import train


class Smoothed(MapTransform):
    def __call__(self, data):  # the limit
        data = dict(data)
        for key in self.key_iterator(data):
            data[key] = torch.from_numpy(median_filter(np.asarray(data[key]), size=(1, 7, 7)))  # the limit
        return data


def main() -> None:
    set_determinism(0)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    pictures = [{"image": rng.random((128, 128), dtype=np.float32), "label": number % 2} for number in range(64)]
    transform = Compose(
        [
            EnsureChannelFirstd(keys="image", channel_dim="no_channel"),
            ScaleIntensityd(keys="image"),
            Smoothed(keys="image"),
        ]
    )
    loader = ThreadDataLoader(Dataset(pictures, transform), batch_size=4, buffer_size=2, num_workers=0)
    train(loader, 64, lambda batch: batch["image"])


if __name__ == "__main__":
    main()
