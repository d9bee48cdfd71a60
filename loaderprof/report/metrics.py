"""Findings, or a job at a glance -> OpenMetrics text, for Prometheus and what reads its format. A pure function.

Names carry their unit, shares are ratios; what was not measured is left out, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loaderprof.findings import Findings
from loaderprof.report.sentences import script

if TYPE_CHECKING:
    from loaderprof.analyze.glance import Glance


@dataclass(slots=True)
class Family:
    """A metric: its name (without a counter's `_total`), type, unit, help, and samples by label."""

    name: str
    kind: str
    unit: str
    help: str
    samples: list[tuple[dict[str, str], float]] = field(default_factory=list)

    def add(self, value: float | None, **labels: object) -> None:
        """Add a sample unless it was not measured."""
        if value is not None and math.isfinite(value):
            self.samples.append(({name: str(text) for name, text in labels.items()}, value))

    def lines(self) -> Iterator[str]:
        """Yield the text of the family; nothing if it has no sample."""
        if not self.samples:
            return
        yield f"# TYPE {self.name} {self.kind}"
        if self.unit:
            yield f"# UNIT {self.name} {self.unit}"
        yield f"# HELP {self.name} {_escaped(self.help)}"
        suffix = {"counter": "_total", "info": "_info"}.get(self.kind, "")
        for labels, value in self.samples:
            yield f"{self.name}{suffix}{_labels(labels)} {_number(value)}"


def render(findings: Findings) -> str:
    """Return the findings as OpenMetrics text, `# EOF` last."""
    lines = [line for family in _families(findings) for line in family.lines()]
    return "\n".join([*lines, "# EOF"]) + "\n"


def render_glance(glance: Glance) -> str:
    """Return what is known of a running job as OpenMetrics text: rates are of the last seconds."""
    lines = [line for family in _of_glance(glance) for line in family.lines()]
    return "\n".join([*lines, "# EOF"]) + "\n"


def _of_glance(glance: Glance) -> Iterator[Family]:
    known = glance.metrics()
    steps = Family("loaderprof_steps", "counter", "", "Batches taken by the training loop.")
    steps.add(known.get("steps"))
    step = Family("loaderprof_step_seconds", "gauge", "seconds", "Mean time of a step, waiting included.")
    step.add(1 / glance.steps_per_s if glance.steps_per_s else None)
    wait = Family("loaderprof_wait_seconds", "gauge", "seconds", "Mean time a step waits for its batch.")
    wait.add(known.get("wait_time_s"))
    part = Family("loaderprof_wait_ratio", "gauge", "ratio", "Share of a step spent waiting for its batch.")
    part.add(glance.wait_share)
    load = Family(
        "loaderprof_load_seconds", "gauge", "seconds", "Mean time that making a batch takes, whoever makes it."
    )
    load.add(glance.load_s)
    ready = Family(
        "loaderprof_ready_batches", "gauge", "batches", "Batches that lay ready when the last one was asked for."
    )
    ready.add(glance.ready)
    cost = Family("loaderprof_stage_seconds", "gauge", "seconds", "Time that one batch spends in a stage.")
    for stage, seconds in glance.costs.items():
        cost.add(seconds, stage=stage)
    yield from (steps, step, wait, part, load, ready, cost)


def _families(findings: Findings) -> Iterator[Family]:
    yield _about(findings)
    yield from _run(findings)
    yield from _verdict(findings)
    yield from _stages(findings)
    yield from _loaders(findings)
    yield from _ranks(findings)
    yield _expected(findings)


def _about(findings: Findings) -> Family:
    run, verdict = findings.run, findings.verdict
    about = Family("loaderprof_run", "info", "", "What was watched and what was concluded.")
    about.add(
        1.0,
        script=script(run.command),
        device=run.device or "",
        torch=run.torch or "",
        python=run.python or "",
        bottleneck=verdict.bottleneck,
        cause=verdict.cause,
        confidence=verdict.confidence,
    )
    return about


def _run(findings: Findings) -> Iterator[Family]:
    run = findings.run
    duration = Family("loaderprof_run_duration_seconds", "gauge", "seconds", "Wall time of the run.")
    duration.add(run.duration_s)
    steps = Family("loaderprof_steps", "counter", "", "Batches taken by the training loops.")
    steps.add(run.steps)
    own = Family("loaderprof_own_cpu_seconds", "gauge", "seconds", "CPU time of loaderprof itself.")
    own.add(run.overhead.capture_cpu_s, where="job")
    own.add(run.overhead.sampler_cpu_s, where="beside")
    yield from (duration, steps, own)


def _verdict(findings: Findings) -> Iterator[Family]:
    verdict = findings.verdict
    step = Family("loaderprof_step_seconds", "gauge", "seconds", "Mean time of a step, waiting included.")
    step.add(verdict.step_s)
    wait = Family("loaderprof_wait_seconds", "gauge", "seconds", "Mean time a step waits for its batch.")
    wait.add(verdict.wait_s)
    part = Family("loaderprof_wait_ratio", "gauge", "ratio", "Share of a step spent waiting for its batch.")
    part.add(verdict.wait_share)
    ceiling = Family("loaderprof_ceiling_speedup_ratio", "gauge", "ratio", "Speedup if loading were free.")
    ceiling.add(verdict.ceiling_speedup)
    yield from (step, wait, part, ceiling)


def _stages(findings: Findings) -> Iterator[Family]:
    cost = Family("loaderprof_stage_seconds", "gauge", "seconds", "Time that one batch spends in a stage.")
    part = Family("loaderprof_stage_ratio", "gauge", "ratio", "Share of a batch's time, all who work on it together.")
    for stage in findings.stages:
        cost.add(stage.s_per_batch, stage=stage.stage)
        part.add(stage.share, stage=stage.stage)
    yield from (cost, part)


def _loaders(findings: Findings) -> Iterator[Family]:
    wait = Family(
        "loaderprof_loader_wait_seconds", "gauge", "seconds", "Mean time the loop waits for a batch of a loader."
    )
    part = Family(
        "loaderprof_loader_wait_ratio", "gauge", "ratio", "Share of its loop's time spent waiting for a loader."
    )
    first = Family("loaderprof_loader_first_batch_seconds", "gauge", "seconds", "Time until the first batch was there.")
    batches = Family("loaderprof_loader_batches", "counter", "", "Batches taken from a loader.")
    rate = Family("loaderprof_loader_samples_per_second", "gauge", "", "Samples taken from a loader each second.")
    for place, loader in enumerate(findings.loaders):
        # Two loaders may have one name: the place keeps their samples apart, which the format demands.
        labels = {"loader": loader.name, "place": place}
        wait.add(loader.wait_s, **labels)
        part.add(loader.wait_share, **labels)
        first.add(loader.first_batch_s, **labels)
        batches.add(loader.batches, **labels)
        rate.add(loader.samples_per_s, **labels)
    yield from (wait, part, first, batches, rate)


def _ranks(findings: Findings) -> Iterator[Family]:
    step = Family("loaderprof_rank_step_seconds", "gauge", "seconds", "Mean time of a step of a rank.")
    wait = Family("loaderprof_rank_wait_seconds", "gauge", "seconds", "Mean time a step of a rank waits for its batch.")
    for rank in findings.ranks:
        labels = {"rank": rank.rank, "host": rank.host}
        step.add(rank.step_s, **labels)
        wait.add(rank.wait_s, **labels)
    yield from (step, wait)


def _expected(findings: Findings) -> Family:
    expected = Family("loaderprof_advice_speedup_ratio", "gauge", "ratio", "Predicted speedup of a change.")
    for advice in findings.advice:
        expected.add(advice.expected.speedup, change=advice.id)
    return expected


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items()) + "}"


def _escaped(text: str) -> str:
    # A lone surrogate (a file name that is no UTF-8) cannot be written; a carriage return would end the line.
    clean = text.encode("utf-8", "replace").decode("utf-8").replace("\r", " ")
    return clean.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))
