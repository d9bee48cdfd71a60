"""What the scripts of MONAI's loaders share: pictures in memory, and a slow transform of them."""

import numpy as np
import torch
from monai.transforms import MapTransform
from scipy.ndimage import median_filter


class Smoothed(MapTransform):
    """Pictures smoothed along their width."""

    def __call__(self, data):  # the limit
        data = dict(data)
        for key in self.key_iterator(data):
            data[key] = torch.from_numpy(median_filter(np.asarray(data[key]), size=(1, 7, 7)))  # the limit
        return data


def pictures(count: int) -> list[dict]:
    """Noise with labels."""
    rng = np.random.default_rng(0)
    return [{"image": rng.random((128, 128), dtype=np.float32), "label": number % 2} for number in range(count)]
