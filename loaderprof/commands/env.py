"""`loaderprof env`: what can be measured on this machine, and what to type where something cannot."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from loaderprof import formatting
from loaderprof._version import __version__
from loaderprof.capture.cpu_budget import cpu_budget
from loaderprof.capture.gpus import GpuSampler
from loaderprof.capture.stack_sampler import find_py_spy, stacks_remedy

PACKAGES = ("torch", "numpy", "psutil", "nvidia-ml-py", "py-spy", "rich", "matplotlib", "jinja2")


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Add what `loaderprof env` takes: nothing."""


def run(options: argparse.Namespace) -> int:  # noqa: ARG001 - every verb is called alike
    """Run the verb and return its exit code."""
    sys.stdout.write(render())
    return 0


def render() -> str:
    """Return the report as plain text, one fact a line."""
    rows = [
        ("loaderprof", f"{__version__}, Python {platform.python_version()} ({sys.executable})"),
        ("system", f"{platform.system()} {platform.release()} {platform.machine()}"),
        ("GPU", _gpu()),
        ("stacks", stack_access()),
        ("CPU budget", _cpu()),
        ("run queue", _readable("/proc/thread-self/schedstat", "time spent waiting for a core")),
        ("disk reads", _readable("/proc/thread-self/io", "bytes read by each worker")),
        ("/dev/shm", _shm()),
        ("open files", _open_files()),
        ("packages", ", ".join(f"{name} {_version(name)}" for name in PACKAGES)),
    ]
    return "".join(f"{name:<12}{text}\n" for name, text in rows)


def _gpu() -> str:
    sampler = GpuSampler()
    try:
        names = sampler.names()
    finally:
        sampler.close()
    return sampler.missing or (", ".join(names) if names else "not measured: the driver shows no GPU")


def stack_access() -> str:
    """Try py-spy on this very process: the only way to know that it may."""
    program = find_py_spy()
    if program is None:
        return "not measured: py-spy is not installed; pip install py-spy"
    try:
        tried = subprocess.run(
            [program, "dump", "--nonblocking", "--pid", str(os.getpid())], capture_output=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "not measured: py-spy does not answer"
    if tried.returncode == 0:
        return "py-spy may read stacks"
    return f"not measured: py-spy was refused; {stacks_remedy()}"


def _cpu() -> str:
    budget = cpu_budget()
    quota = f"{budget.cgroup_quota:g}" if budget.cgroup_quota is not None else "none"
    affinity = budget.affinity if budget.affinity is not None else "not measured"
    slurm = f", SLURM_CPUS_PER_TASK {budget.slurm}" if budget.slurm is not None else ""
    return f"{budget.cores:g} cores (machine {budget.logical}, affinity {affinity}, cgroup quota {quota}{slurm})"


def _readable(path: str, what: str) -> str:
    try:
        Path(path).read_bytes()
    except OSError as error:
        return f"not measured: {path}: {error.strerror}"
    return f"{what} can be measured"


def _shm() -> str:
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        return "not measured: there is none"
    return f"{formatting.size(usage.free)} of {formatting.size(usage.total)} free"


def _open_files() -> str:
    try:
        import resource
    except ImportError:
        return "not measured on this system"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"{soft} at once ({hard} after ulimit -n {hard})"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"
