"""A training job on a GPU, of one kind: `train.py KIND [--trace FILE]`.

`starved`: samples that take longer than the step; `compute`: a step that takes longer than all samples; `pageable` and
`pinned`: large batches copied to the device; `logger`: a loss read at every step. With `--trace` torch's own profiler
watches too, and its events are kept as JSON.
"""

from __future__ import annotations

import contextlib
import sys
import time

import torch
from torch.utils.data import DataLoader, Dataset

KIND = sys.argv[1]
TRACE = sys.argv[3] if "--trace" in sys.argv else None
SAMPLE_S = {"starved": 0.004}.get(KIND, 0.0)
WIDTH = 1 << 20 if KIND in ("pageable", "pinned") else 1024
MATMULS = {"compute": 60, "starved": 4}.get(KIND, 8)


class Samples(Dataset):
    def __len__(self) -> int:
        return 1600

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(SAMPLE_S)
        return torch.full((WIDTH,), float(index % 7))


def main() -> None:
    torch.manual_seed(0)
    device = torch.device("cuda")
    weight = torch.randn(2048, 2048, device=device, requires_grad=True)
    loader = DataLoader(Samples(), batch_size=8, num_workers=2, pin_memory=KIND == "pinned")
    watched = (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA])
        if TRACE
        else contextlib.nullcontext()
    )
    total = torch.zeros((), device=device)
    with watched as profiler:
        for batch in loader:
            x = batch.to(device, non_blocking=True)[:, :1024].repeat(256, 2) / 7
            for _ in range(MATMULS):
                x = torch.tanh(x @ weight)
            loss = x.square().mean()
            loss.backward()
            weight.grad = None
            total += loss.detach()
            if KIND == "logger":
                print(f"{loss.item():.6f}")
    torch.cuda.synchronize()
    if profiler is not None:
        profiler.export_chrome_trace(TRACE)
    print(f"total {total.item():.6f}")


if __name__ == "__main__":
    main()
