"""An SPDL pipeline without a DataLoader: a stage of threads, and the script's transform in it is the limit."""

import torch
from rows import Rows
from spdl.pipeline import PipelineBuilder
from training import train


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = Rows(7200)
    pipeline = (
        PipelineBuilder()
        .add_source(range(len(rows)))
        .pipe(rows.__getitem__, concurrency=1)
        .aggregate(8)
        .add_sink(4)
        .build(num_threads=1)
    )
    with pipeline.auto_stop():
        train(pipeline.get_iterator(timeout=60), 900, lambda batch: torch.stack([row["values"] for row in batch]))


if __name__ == "__main__":
    main()
