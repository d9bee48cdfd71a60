"""darts makes the loader of its models from `dataloader_kwargs`; a dataset of the user's that smooths its rows is the limit."""

import warnings

import numpy as np
import torch
from training import ask_for_torchvision

ask_for_torchvision()
from darts import TimeSeries  # noqa: E402
from darts.models import BlockRNNModel  # noqa: E402
from darts.utils.data.torch_datasets.training_dataset import SequentialTorchTrainingDataset  # noqa: E402

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False, "enable_checkpointing": False}


class Smoothed(SequentialTorchTrainingDataset):
    def __getitem__(self, index: int) -> object:
        sample = super().__getitem__(index)
        for _ in range(120):
            np.convolve(sample.past_target[:, 0], np.ones(5), mode="same")  # the limit
        return sample


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    series = TimeSeries.from_values(np.sin(np.arange(2000) / 10).astype(np.float32))
    model = BlockRNNModel(
        input_chunk_length=48,
        output_chunk_length=12,
        n_epochs=3,
        batch_size=32,
        hidden_dim=8,
        random_state=0,
        pl_trainer_kwargs=QUIET,
    )
    model.fit_from_dataset(Smoothed(series, input_chunk_length=48, output_chunk_length=12))
    print("trained", model.predict(3, series=series).values().ravel().round(4))


if __name__ == "__main__":
    main()
