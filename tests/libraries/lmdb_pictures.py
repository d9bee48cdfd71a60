"""PNG files kept in LMDB: decoding them is the limit."""

import io
import tempfile

import lmdb
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from training import photograph, train


class Pictures(Dataset):
    def __init__(self, path):
        self.path, self.env = path, None

    def __len__(self):
        return 48

    def __getitem__(self, index):
        if self.env is None:
            self.env = lmdb.open(self.path, readonly=True, lock=False)
        with self.env.begin() as txn:
            body = txn.get(f"{index:08}".encode())
        picture = Image.open(io.BytesIO(body))
        pixels = np.array(picture.convert("RGB"))  # the limit
        return torch.from_numpy(pixels[100:324, 100:324]).permute(2, 0, 1)


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        with lmdb.open(folder, map_size=1 << 28) as env, env.begin(write=True) as txn:
            for number in range(48):
                body = io.BytesIO()
                photograph(800, 600, number % 6).save(body, "PNG", compress_level=1)
                txn.put(f"{number:08}".encode(), body.getvalue())
        loader = DataLoader(Pictures(folder), batch_size=8, shuffle=True, num_workers=1, persistent_workers=True)
        train(loader, 54, lambda batch: batch)


if __name__ == "__main__":
    main()
