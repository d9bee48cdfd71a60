"""MONAI's CacheDataset keeps what is not random; what stays is a transform of the user's own."""

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader
from monai.transforms import Compose, EnsureChannelFirstd, MapTransform, RandGaussianNoised, ScaleIntensityd, ToTensord
from monai.transforms.transform import RandomizableTrait
from monai.utils import set_determinism
from scipy.ndimage import median_filter
from training import train


class RandMedian(MapTransform, RandomizableTrait):
    """Smooths every other picture."""

    def __call__(self, data):  # the limit
        data = dict(data)
        for key in self.key_iterator(data):
            data[key] = torch.from_numpy(median_filter(np.asarray(data[key]), size=(1, 7, 7)))  # the limit
        return data


def main() -> None:
    set_determinism(0)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    pictures = [{"image": rng.random((128, 128), dtype=np.float32), "label": number % 2} for number in range(32)]
    transform = Compose(
        [
            EnsureChannelFirstd(keys="image", channel_dim="no_channel"),
            ScaleIntensityd(keys="image"),
            RandMedian(keys="image"),
            RandGaussianNoised(keys="image", prob=0.5),
            ToTensord(keys="image"),
        ]
    )
    dataset = CacheDataset(pictures, transform, cache_rate=1.0, num_workers=1, progress=False)
    loader = DataLoader(dataset, batch_size=4, shuffle=True, num_workers=1, persistent_workers=True)
    train(loader, 56, lambda batch: batch["image"].as_tensor())


if __name__ == "__main__":
    main()
