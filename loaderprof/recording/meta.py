"""What `recording.json` says of a run.

Every field is None, or empty, where it was not recorded. Imports the standard library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loaderprof.recording import declared
from loaderprof.recording.declared import cost, flag, moment, named_texts, real, text, whole


@dataclass(frozen=True, slots=True)
class CpuBudgetFacts:
    """How many cores the job may use: `cores`, the least of the others.

    Attributes:
        cores: the budget; a quota may give a part of one.
        logical: of the machine.
        affinity: that the process may run on.
        cgroup_quota: of its container.
        slurm: of its Slurm task.
    """

    cores: float | None = real()
    logical: int | None = whole()
    affinity: int | None = whole()
    cgroup_quota: float | None = real()
    slurm: int | None = whole()


@dataclass(frozen=True, slots=True)
class WatchedMain:
    """A process with a training loop that was watched from outside."""

    pid: int | None = whole()
    rank: int | None = whole()


@dataclass(frozen=True, slots=True)
class AttachFacts:
    """What `loaderprof attach` found out about a job that was already running.

    Attributes:
        pid: the process that the user named.
        asked_s: for how many seconds the job was to be watched.
        mains: its processes with training loops.
        device: `cuda` or `cpu`.
        python: the version of the first main process's, as is `torch`.
    """

    pid: int | None = whole()
    asked_s: float | None = real()
    mains: Sequence[WatchedMain] = declared.records(WatchedMain)
    device: str | None = text()
    python: str | None = text()
    torch: str | None = text()


@dataclass(frozen=True, slots=True)
class JobFacts:
    """How `loaderprof run` started the job. `launcher`: the command is a launcher's; `settings`: what it was asked to set."""

    launcher: bool | None = flag()
    settings: Mapping[str, Any] = declared.mapping()


@dataclass(frozen=True, slots=True)
class Missing:
    """Why the samples of GPUs and of stacks are missing."""

    gpu: str | None = text()
    stacks: str | None = text()


@dataclass(frozen=True, slots=True)
class TriedDecoders:
    """What trying the installed image decoders on the job's own files found.

    Attributes:
        files: how many were decoded.
        pixels: their mean size.
        format: of most of them.
        cpu_s: seconds of CPU an image, by decoder.
    """

    files: int | None = whole(1)
    pixels: float | None = real()
    format: str | None = text()
    cpu_s: Mapping[str, Any] = declared.mapping()


@dataclass(frozen=True, slots=True)
class Meta:
    """What the supervisor wrote about a run, and what was found out when it had ended.

    Attributes:
        started_ns: the moment the session began, on the recording's clock; `ended_ns`: it ended.
        started_unix_ns: the same moment since 1970.
        exit_code: the job's; `signal`: the name of the one that ended it.
        command: the job's command line, secrets left out.
        cwd: the folder it ran in; `script_folder`: the one its script lies in.
        loaderprof: its version.
        mode: `attach` for a job that was watched from outside.
        host: the name of the machine.
        job: how the job can be started again.
        attach: what was found out about a job that was watched from outside.
        gpus: the GPUs' names.
        sources: the user's source lines that are referred to, by `file:line`.
        made_at: the user's lines that make operators, datasets and loaders, by the names of these.
        file_systems: the types of those that data lies on, by path.
        sampler_cpu_s: CPU time of all samplers, with `stacks_cpu_s` of that of stacks.
        open_files_limit: how many files one process may have open; -1: as many as it likes.
        max_overhead: the share of the job's time that recording may take.
        keep: everything is to be kept, so journals may be larger.
        decoders: what trying the installed image decoders found.
        written: all of `recording.json` that is not damaged, in its own order, with what this version has no field for.
    """

    started_ns: int | None = moment()
    ended_ns: int | None = moment()
    started_unix_ns: int | None = whole(0, 1 << 62)
    exit_code: int | None = whole(-512, 1 << 32)
    signal: str | None = text()
    command: Sequence[str | None] | None = declared.words()
    cwd: str | None = text()
    script_folder: str | None = text()
    loaderprof: str | None = text()
    mode: str | None = text()
    host: str | None = text()
    job: JobFacts | None = declared.optional_record(JobFacts)
    attach: AttachFacts = declared.record(AttachFacts)
    gpus: Sequence[str] = declared.texts()
    cpu_budget: CpuBudgetFacts = declared.record(CpuBudgetFacts)
    missing: Missing = declared.record(Missing, declared.are_words)
    sources: Mapping[str, str] = named_texts()
    made_at: Mapping[str, str] = named_texts()
    file_systems: Mapping[str, str] = named_texts()
    sampler_cpu_s: float | None = cost()
    stacks_cpu_s: float | None = cost()
    open_files_limit: float | None = real()
    max_overhead: float | None = cost()
    keep: bool | None = flag()
    decoders: TriedDecoders = declared.record(TriedDecoders, lambda _: True)
    written: Mapping[str, Any] = field(default_factory=dict, repr=False)


def of_values(values: Mapping[str, Any]) -> Meta:
    """Return the record of values that are known to be sound, by the names that `recording.json` gives them."""
    return declared.built(Meta, values, written=values)


def updated(meta: Meta, **values: Any) -> Meta:
    """Return a record with some values replaced or added, also in what is written again."""
    return of_values({**meta.written, **values})
