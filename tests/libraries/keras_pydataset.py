"""Keras on torch over a PyDataset, whose threads make batches ahead behind a loader of Keras' own; a transform is the limit."""

import os

import numpy as np
from rows import Rows, smoothed

os.environ["KERAS_BACKEND"] = "torch"
import keras
import torch


class Batches(keras.utils.PyDataset):
    def __init__(self) -> None:
        super().__init__(workers=2, use_multiprocessing=False)
        self.rows = Rows().rows

    def __len__(self) -> int:
        return len(self.rows) // 8

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rows = [smoothed(row) for row in self.rows[8 * index : 8 * index + 8]]
        return np.stack(rows), np.arange(8) % 2


def main() -> None:
    torch.set_num_threads(1)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(Batches(), epochs=5, shuffle=False, verbose=0)
    print(f"loss {history.history['loss'][-1]:.6f}")


if __name__ == "__main__":
    main()
