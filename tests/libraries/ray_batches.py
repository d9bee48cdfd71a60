"""Ray Data's `iter_torch_batches`, which Ray's own processes fill; a transform of its rows is the limit."""

import numpy as np
import ray
import torch
from rows import smoothed
from training import train


def transformed(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    rows = [np.random.default_rng(number).random(2048, dtype=np.float32) for number in batch["id"] % 640]
    return {"values": np.stack([smoothed(row) for row in rows])}


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    # Else its workers give way to whatever else the machine does.
    polite = {"worker_niceness": 0}
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error", _system_config=polite)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars, context.execution_options.preserve_order = False, True
    # Its processes are started and have imported what they need: on a busy machine that takes as long as the rest.
    ray.data.range(64, override_num_blocks=16).map_batches(transformed, batch_size=4).materialize()
    dataset = ray.data.range(4800, override_num_blocks=120)
    dataset = dataset.map_batches(transformed, batch_size=8, compute=ray.data.TaskPoolStrategy(size=1))
    train(dataset.iter_torch_batches(batch_size=8, prefetch_batches=1), 600, lambda batch: batch["values"])
    ray.shutdown()


if __name__ == "__main__":
    main()
