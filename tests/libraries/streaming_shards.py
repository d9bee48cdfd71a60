"""Local shards of mosaicml-streaming: decoding the JPEG files in them is the limit."""

import tempfile

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from training import ask_for_torchvision, photograph, train

ask_for_torchvision()
from streaming import MDSWriter, StreamingDataset  # noqa: E402


class Pictures(StreamingDataset):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        crop = np.asarray(sample["image"].crop((100, 100, 324, 324)))  # the limit
        return torch.from_numpy(crop.copy()).permute(2, 0, 1), sample["label"]


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        with MDSWriter(out=folder, columns={"image": "jpeg", "label": "int"}) as out:
            for number in range(48):
                picture = photograph(1200, 900, number % 6)
                picture.save(folder + "/tmp.jpg", quality=92)
                out.write({"image": Image.open(folder + "/tmp.jpg"), "label": number % 10})
        dataset = Pictures(local=folder, batch_size=8, shuffle=False)
        loader = DataLoader(dataset, batch_size=8, num_workers=1, persistent_workers=True)
        train(loader, 60, lambda batch: batch[0])


if __name__ == "__main__":
    main()
