"""Run a script under torch.profiler, as its users do: `python under_torch_profiler.py SCRIPT [ARGUMENTS]`."""

from __future__ import annotations

import runpy
import sys

import torch

del sys.argv[0]
with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
    runpy.run_path(sys.argv[0], run_name="__main__")
