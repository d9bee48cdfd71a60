"""Recordings made by hand on a fake clock: real journals of loops whose waits, steps and batches are known.

Times are seconds since the run began; `START_NS` is where the fake clock stood then.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loaderprof.recording import files, reader
from loaderprof.recording import journal as layout
from loaderprof.recording.journal import Journal

START_NS = 5_000_000_000_000
FETCH_FRAME = "fetch (/lib/torch/utils/data/_utils/fetch.py:54)"

# A number, or a function of the batch's number.
Amount = float | Callable[[int], float]


def ns(seconds: float) -> int:
    """Return a moment of the run on the fake clock."""
    return START_NS + span(seconds)


def span(seconds: float) -> int:
    return round(seconds * 1e9)


def at(amount: Amount, number: int) -> float:
    return amount(number) if callable(amount) else amount


@dataclass
class Fetch:
    """How one batch is made, in seconds; `operators` are (name, wall, CPU) of a batch timed in depth."""

    cpu: Amount = 0.0
    blocked: Amount = 0.0
    runq: float = 0.0
    collate: float = 0.0
    threads: float = 1.0
    pickle: float = 0.0
    operators: Sequence[tuple[str, float, float]] = ()
    deep_every: int = 10
    samples: int = 16
    asked_bytes: int = 0
    device_bytes: int = 0
    batch_bytes: int = 0
    tensors: int = 1
    leaves: int = 0
    floats: int = 0
    pickled_bytes: int = 1000

    def wall(self, number: int) -> float:
        return at(self.cpu, number) + at(self.blocked, number) + self.runq


@dataclass
class Plan:
    """A loop as it went: each epoch starts up, takes `batches` batches, and shuts down."""

    name: str = "loader"
    epochs: int = 1
    batches: int = 80
    wait: Amount = 0.0
    step: Amount = 0.01
    # Shares of a step: on a core, and waiting for one; what other threads of the process are on cores meanwhile.
    step_cpu: float = 1.0
    step_runq: float = 0.0
    step_others: float = 0.0
    workers: int = 0
    # So many of the workers make no batch.
    idle: int = 0
    fetch: Fetch = field(default_factory=Fetch)
    startup: float = 0.0
    shutdown: float = 0.0
    gap: float = 0.0
    epoch_index: float = 0.0
    index: float = 0.0
    receive: float = 0.0
    ready: int = 0
    training: bool = True
    persistent: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


class Process:
    """One process's journal, in seconds."""

    def __init__(self, folder: Path, pid: int, worker: int | None, ppid: int, header: dict[str, Any]) -> None:
        facts = {"pid": pid, "ppid": ppid, "host": "here", "python": "3.11.7", "torch": "2.7.1", **header}
        if worker is not None:
            facts["worker"] = worker
        self.pid, self.folder, self.iterators = pid, folder, 0
        self.journal = Journal(str(folder / reader.JOURNALS / f"here-{pid}-1.lpj"), facts)
        # A journal is open until its process ends; here hundreds of processes are one.
        weakref.finalize(self, os.close, self.journal._fd)

    def iterator(
        self,
        facts: dict[str, Any],
        begun: float,
        ready: float,
        *,
        number: int | None = None,
        index: float = 0.0,
        workers: Sequence[int] = (),
        anew: bool = False,
    ) -> int:
        """Begin an epoch: on a new iterator, or on the workers kept by iterator `number`."""
        restarted = number is not None
        if number is None:
            self.iterators += 1
            number = self.iterators
        text = self.journal.text(json.dumps(facts))
        flags = restarted | (layout.ANEW if anew else 0)
        self.journal.write(layout.ITERATOR, flags, len(workers), number, ns(begun), ns(ready), text, 0, span(index))
        for place, pid in enumerate(workers):
            self.journal.write(layout.WORKER, 0, 0, place, 0, 0, number, pid)
        return number

    def take(
        self,
        number: int,
        asked: float,
        taken: float,
        *,
        count: int = 1,
        wait: float | None = None,
        training: bool = True,
        ready: int = -1,
        index: float = 0.0,
        receive: float = 0.0,
        cpu_asked: float = 0.0,
        cpu_taken: float = 0.0,
        others_asked: float = 0.0,
        others_taken: float = 0.0,
        runq: float = 0.0,
    ) -> None:
        """Take one batch, or `count` of them in one record; `others` is the CPU of the process's other threads."""
        wait = taken - asked if wait is None else wait
        cpu = (span(cpu_asked), span(cpu_taken))
        process_cpu = (span(cpu_asked + others_asked), span(cpu_taken + others_taken))
        self.journal.write(
            layout.TAKE,
            training,
            ready + 1,
            number,
            ns(asked),
            ns(taken),
            span(index),
            0,
            *cpu,
            *process_cpu,
            span(runq),
            -1,
            span(receive),
            span(receive),
            count,
            span(wait),
        )

    def end(self, number: int, asked: float, done: float, cpu: float = 0.0, others: float = 0.0) -> None:
        """The iterator had no more batches."""
        self.journal.write(layout.END, 0, 0, number, ns(asked), ns(done), 0, span(cpu), span(cpu + others))

    def fetch(self, worker: int, task: int, begun: float, plan: Fetch, *, deep: bool = False) -> None:
        """Make one batch."""
        cpu, wall = at(plan.cpu, task), plan.wall(task)
        done = begun + wall
        self.journal.write(
            layout.FETCH,
            deep,
            plan.samples,
            worker,
            task,
            ns(begun),
            ns(done),
            ns(done),
            span(cpu),
            span(plan.runq),
            span(plan.collate),
            span(plan.collate),
            plan.asked_bytes,
            plan.device_bytes,
            0,
            span(wall),
            span(cpu * (plan.threads - 1)),
            1,
        )
        if plan.pickle:
            self.journal.write(
                layout.PICKLE,
                0,
                0,
                worker,
                task,
                ns(done),
                ns(done + plan.pickle),
                span(plan.pickle),
                plan.pickled_bytes,
            )
        if deep and plan.batch_bytes:
            self.size(worker, plan.batch_bytes, plan.samples, plan.tensors, plan.leaves, plan.floats)
        if deep:
            caller = self.journal.text("/home/me/train.py:41")
            for name, operator_wall, operator_cpu in plan.operators:
                self.journal.write(
                    layout.OPERATOR,
                    0,
                    0,
                    worker,
                    task,
                    self.journal.text(name),
                    plan.samples,
                    span(operator_wall),
                    span(operator_cpu),
                    plan.samples,
                    caller,
                )

    def size(self, worker: int, bytes_: int, samples: int, tensors: int = 1, leaves: int = 0, floats: int = 0) -> None:
        """Say how large a batch is, what it holds beside `tensors`, and how many percent of it are floats."""
        self.journal.write(layout.SIZE, 0, floats, worker, 0, bytes_, tensors, max(tensors, leaves), samples)


class Made:
    """A recording under way; `folder` is ready to be read after `finish`."""

    def __init__(self, folder: Path, cores: float = 8.0, **meta: Any) -> None:
        self.folder = folder
        (folder / reader.JOURNALS).mkdir(parents=True)
        self.meta: dict[str, Any] = {
            "command": ["train.py"],
            "cwd": "/home/me",
            "started_ns": START_NS,
            "cpu_budget": {"cores": cores},
            **meta,
        }
        self.lines: list[dict[str, Any]] = []
        self.stack_lines: list[dict[str, Any]] = []
        self._pid = 1000

    def process(self, worker: int | None = None, ppid: int = 1, pid: int | None = None, **header: Any) -> Process:
        """Add a process."""
        self._pid += 1
        return Process(self.folder, pid or self._pid, worker, ppid, header)

    def stacks(self, pid: int, frames: Sequence[str], count: int, thread: str = "MainThread") -> None:
        """Add stack samples that are all alike."""
        self.stack_lines.append(
            {
                "t": ns(1),
                "t0": ns(0),
                "t1": ns(2),
                "rate": 25,
                "frames": list(frames),
                "stacks": [[pid, thread, list(range(len(frames))), count]],
            }
        )

    def window(self, begun: float, done: float, **rows: Any) -> None:
        """Add a window of looks at threads: `stacks` of frames of their own, `threads`, `gil`, `locks`, `files`."""
        self.stack_lines.append({"t0": ns(begun), "t1": ns(done), "rate": 25, "frames": [], "stacks": [], **rows})

    def host(
        self, seconds: float, *, busy: float, job: Sequence[tuple[int, float]], ended: Sequence[tuple[int, float]] = ()
    ) -> None:
        """Add one host sample: CPU seconds of the host so far, of each process of the job, and of its ended children."""
        children = dict(ended)
        processes = [
            {"pid": pid, "user": spent, "system": 0.0, **({"children": children.get(pid, 0.0)} if children else {})}
            for pid, spent in job
        ]
        self.lines.append({"t": ns(seconds), "cpu": {"user": busy, "system": 0.0}, "processes": processes})

    def loop(self, process: Process, plan: Plan, begun: float = 0.0) -> float:
        """Run a loop and return when it was over."""
        facts = {
            "name": plan.name,
            "where": "/home/me/train.py:50",
            "num_workers": plan.workers,
            "batch_size": 16,
            "prefetch_factor": 2 if plan.workers else None,
            "persistent_workers": plan.persistent,
            "in_order": True,
            "pin_memory": False,
            "dataset": "__main__.Images",
            "dataset_where": "/home/me/train.py:30",
            "collate_fn": "torch.utils.data._utils.collate.default_collate",
            "sampler": "__main__.MySampler",
            **plan.facts,
        }
        now, number, workers = begun, None, []
        for epoch in range(plan.epochs):
            start = now
            now += plan.startup + plan.epoch_index
            if epoch == 0 or not plan.persistent:
                workers = [self.process(worker=place, ppid=process.pid) for place in range(plan.workers)]
                number = process.iterator(
                    facts, start, now, index=plan.epoch_index, workers=[each.pid for each in workers]
                )
            else:
                process.iterator(facts, start, now, number=number, index=plan.epoch_index)
            assert number is not None
            self._make(process, workers, plan, now)
            now, *cpu = self._take(process, number, plan, now)
            process.end(number, now, now + plan.shutdown, *cpu)
            now += plan.shutdown + plan.gap
        return now

    def _take(self, process: Process, number: int, plan: Plan, now: float) -> tuple[float, float, float]:
        cpu = runq = others = 0.0
        for batch in range(plan.batches):
            wait, step = at(plan.wait, batch), at(plan.step, batch)
            if not plan.workers:
                deep = batch % plan.fetch.deep_every == plan.fetch.deep_every - 1
                process.fetch(-1, batch, now, plan.fetch, deep=deep)
            process.take(
                number,
                now,
                now + wait,
                training=plan.training,
                ready=plan.ready if plan.workers else -1,
                index=plan.index,
                receive=plan.receive,
                cpu_asked=cpu,
                cpu_taken=cpu,
                runq=runq,
                others_asked=others,
                others_taken=others,
            )
            others += step * plan.step_others
            cpu += step * plan.step_cpu
            runq += step * plan.step_runq
            now += wait + step
        return now, cpu, others

    def _make(self, process: Process, workers: Sequence[Process], plan: Plan, now: float) -> None:
        workers = workers[: len(workers) - plan.idle]
        for place, worker in enumerate(workers):
            free = now
            for task in range(place, plan.batches, len(workers)):
                deep = task // len(workers) % plan.fetch.deep_every == plan.fetch.deep_every - 1
                worker.fetch(place, task, free, plan.fetch, deep=deep)
                pace = len(workers) * (at(plan.wait, task) + at(plan.step, task))
                free += max(plan.fetch.wall(task), pace)

    def finish(self, ended: float | None = None) -> Path:
        """Write what is not in journals, and return the folder."""
        if ended is not None:
            self.meta["ended_ns"] = ns(ended)
        files.write_meta(self.folder, self.meta)
        for name, lines in ((reader.HOST, self.lines), (reader.STACKS, self.stack_lines)):
            (self.folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return self.folder

    def read(self) -> reader.Recording:
        """Finish and read back."""
        return reader.read(self.finish())


def one_loop(folder: Path, plan: Plan, cores: float = 8.0, **meta: Any) -> reader.Recording:
    """Return a recording of one process with one loop."""
    made = Made(folder, cores, **meta)
    process = made.process()
    ended = made.loop(process, plan)
    made.finish(ended)
    return made.read()
