"""How many cores a job may use, from made-up /proc and /sys trees: cgroup v1, v2, nested, in containers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from loaderprof.capture import cpu_budget as budget
from loaderprof.capture.cpu_budget import cgroup_quota, cpu_budget


def tree(root: Path, cgroup: str, quotas: dict[str, str], pid: str = "self") -> Path:
    """Write what a process says its cgroups are, and the files under /sys/fs/cgroup."""
    files = {f"proc/{pid}/cgroup": cgroup, **{f"sys/fs/cgroup/{name}": text for name, text in quotas.items()}}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("cgroup", "quotas", "cores"),
    [
        # v2: a quota of its own, one further up, none.
        ("0::/user.slice/job", {"user.slice/job/cpu.max": "150000 100000"}, 1.5),
        (
            "0::/a/b/c",
            {"a/cpu.max": "200000 100000", "a/b/cpu.max": "400000 100000", "a/b/c/cpu.max": "max 100000"},
            2.0,
        ),
        ("0::/a", {"a/cpu.max": "max 100000"}, None),
        # v2 in a container: the root is the container's own cgroup, whatever the path says.
        ("0::/", {"cpu.max": "50000 100000"}, 0.5),
        ("0::/docker/abc", {"cpu.max": "300000 100000"}, 3.0),
        ("0::/../../outside", {"cpu.max": "300000 100000"}, 3.0),
        # v1: the controller has a hierarchy of its own; -1 is no quota.
        (
            "4:memory:/x\n3:cpu,cpuacct:/a/b",
            {
                "cpu/a/cpu.cfs_quota_us": "250000",
                "cpu/a/cpu.cfs_period_us": "100000",
                "cpu/a/b/cpu.cfs_quota_us": "-1",
                "cpu/a/b/cpu.cfs_period_us": "100000",
            },
            2.5,
        ),
        ("3:cpuacct,cpu:/docker/abc", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1.0),
        ("2:cpuset:/a", {"cpu/a/cpu.cfs_quota_us": "100000", "cpu/a/cpu.cfs_period_us": "100000"}, None),
        # Both at once: the least of them.
        (
            "3:cpu:/a\n0::/a",
            {"cpu/a/cpu.cfs_quota_us": "400000", "cpu/a/cpu.cfs_period_us": "100000", "a/cpu.max": "100000 100000"},
            1.0,
        ),
        # Files that say nothing of use.
        ("0::/a", {"a/cpu.max": ""}, None),
        ("0::/a", {"a/cpu.max": "many 100000"}, None),
        ("0::/a", {"a/cpu.max": "100000 0"}, None),
        ("3:cpu:/a", {"cpu/a/cpu.cfs_quota_us": "100000"}, None),
        ("", {}, None),
        ("nonsense\n0::/a", {"a/cpu.max": "100000 100000"}, 1.0),
    ],
)
def test_the_least_quota_on_the_way_up_counts(
    tmp_path: Path, cgroup: str, quotas: dict[str, str], cores: float | None
) -> None:
    assert cgroup_quota(root=tree(tmp_path, cgroup, quotas)) == cores


def test_without_cgroups_there_is_no_quota(tmp_path: Path) -> None:
    assert cgroup_quota(root=tmp_path) is None


def test_another_process_has_a_cgroup_of_its_own(tmp_path: Path) -> None:
    tree(tmp_path, "0::/a", {"a/cpu.max": "100000 100000"})
    tree(tmp_path, "0::/b", {"b/cpu.max": "200000 100000"}, pid="77")
    assert (cgroup_quota(0, tmp_path), cgroup_quota(77, tmp_path)) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("logical", "affinity", "quota", "cores"),
    [
        (64, 64, None, 64),
        (64, 16, None, 16),
        (64, 16, "400000 100000", 4),
        (64, 2, "400000 100000", 2),
        (8, None, None, 8),
        (None, None, None, 1),
    ],
)
def test_the_budget_is_the_least_of_its_limits(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    logical: int | None,
    affinity: int | None,
    quota: str | None,
    cores: float,
) -> None:
    def allowed(pid: int) -> set[int]:
        if affinity is None:
            raise OSError
        return set(range(affinity))

    monkeypatch.setattr(os, "cpu_count", lambda: logical)
    monkeypatch.setattr(budget.os, "sched_getaffinity", allowed, raising=False)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    found = cpu_budget(root=tree(tmp_path, "0::/a", {"a/cpu.max": quota or "max 100000"}))
    assert (found.cores, found.affinity, found.slurm) == (cores, affinity, None)
    assert found.cgroup_quota == (int(quota.split()[0]) / 100000 if quota else None)


@pytest.mark.parametrize(("text", "slurm"), [("8", 8), ("", None), ("many", None), ("\u00b2", None)])
def test_what_slurm_says_is_shown(monkeypatch: pytest.MonkeyPatch, text: str, slurm: int | None) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", text)
    assert cpu_budget().slurm == slurm


def test_this_machine_has_a_budget() -> None:
    found = cpu_budget()
    assert 0 < found.cores <= found.logical
