"""How many cores a job may really use: the least of cgroup quota, cpuset and affinity, with each ingredient.

Runs in the supervisor. Must not import torch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class CpuBudget:
    """Cores by each limit; None where a limit does not apply or cannot be read."""

    cores: float
    logical: int
    affinity: int | None
    cgroup_quota: float | None
    slurm: int | None


def cpu_budget(pid: int = 0, root: Path = Path("/")) -> CpuBudget:
    """Return the CPU budget of a process (0: this one).

    Args:
        pid: whose affinity and cgroup to read.
        root: where /proc and /sys are; another folder in tests.
    """
    logical = os.cpu_count() or 1
    try:
        affinity: int | None = len(os.sched_getaffinity(pid))
    except (AttributeError, OSError):
        affinity = None
    quota = cgroup_quota(pid, root)
    slurm = os.environ.get("SLURM_CPUS_PER_TASK", "")
    limits = [float(limit) for limit in (logical, affinity, quota) if limit]
    return CpuBudget(min(limits), logical, affinity, quota, int(slurm) if slurm.isdecimal() else None)


def cgroup_quota(pid: int = 0, root: Path = Path("/")) -> float | None:
    """Return the least CFS quota on the way up a process's cgroups (v2 or v1), in cores; None without one."""
    try:
        lines = (root / "proc" / (str(pid) if pid else "self") / "cgroup").read_text().splitlines()
    except OSError:
        return None
    quotas: list[float | None] = []
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not path:
            continue
        if controllers == "":
            base, read = root / "sys/fs/cgroup", _quota_v2
        elif "cpu" in controllers.split(","):
            base, read = root / "sys/fs/cgroup/cpu", _quota_v1
        else:
            continue
        folder = base / path.lstrip("/")
        # Inside a container the path may be the host's; the mount's root is then the container's own cgroup.
        quotas += [read(place) for place in ({folder, *folder.parents} if base in folder.parents else {base})]
    found = [quota for quota in quotas if quota]
    return min(found) if found else None


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return quota / period if quota > 0 and period > 0 else None
    except (OSError, ValueError):
        return None
