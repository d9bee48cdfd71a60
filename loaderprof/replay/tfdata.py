"""How fast a tf.data pipeline and its loop go together: a chain of stages that work beside one another.

A node that works ahead (a parallel map, a prefetch) takes its own seconds over its calls at once, and those of the nodes
below it that work only when asked. The loop takes its step and what works when it asks. The slowest of all these, or all the
CPU over the cores, is the time of a batch. What the run took beyond that is taken to stretch the pipeline in proportion
(`fit`), so that the model of a machine on which threads wait for cores takes as long as the run did. Pure: no torch, no clock, no processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from loaderprof.analyze.tfdata import STAGES, Node, Pipeline
from loaderprof.findings import Expected, Stage

# No chain takes less: it keeps ratios finite.
LEAST_S = 1e-6
# Half-width of the 90 % interval of a speedup, as a share of it: a floor, its growth with the log of the speedup and with
# the log of `fit`, and a cap. A first guess; not scored yet.
FLOOR, PER_LOG, PER_FIT, MOST = 0.08, 0.25, 0.5, 0.6
# A speedup below this is within the error, as in `diagnose.verdict.MIN_GAIN`.
WORTH = 1.05
# Below this share of waiting the step hides the pipeline, whose own pace was then not seen.
SEEN_WAITING = 0.1
# A fit beyond this, up or down, says that something else than the pipeline took the time.
MOST_FIT = 4.0


@dataclass(frozen=True, slots=True)
class PipelineModel:
    """What decides the time of a batch.

    Attributes:
        nodes: from the output to the source.
        step_s: seconds that the loop is away between two batches.
        cpu_s: CPU seconds a batch, the step's among them.
        cores: the CPU budget.
        blocked: share of the nodes' time that needs no core.
        fit: how many times as long as their seconds say the nodes took.
    """

    nodes: tuple[Node, ...]
    step_s: float
    cpu_s: float
    cores: float
    blocked: float
    fit: float = 1.0

    def batch_s(self) -> float:
        """Return seconds a batch."""
        asked, ahead = self._stages()
        return max(self.step_s + self.fit * asked, self.fit * max(ahead, default=0.0), self.cpu_s / self.cores, LEAST_S)

    def _stages(self) -> tuple[float, list[float]]:
        """Return seconds a batch of what works when the loop asks, and of each stage that works ahead of it."""
        asked, ahead, at_once = 0.0, [], 0.0
        for node in self.nodes:
            if node.ahead:
                calls = max(1, node.parallelism) if not node.name.startswith("Prefetch") else 1
                # Its own function is called many times at once; what is below it, one at a time.
                ahead.append(node.work_s / calls)
                at_once = 0.0
            elif ahead:
                at_once += node.work_s
                ahead[-1] = max(ahead[-1], at_once)
            else:
                asked += node.work_s
        return asked, ahead

    def without(self, stage: Stage) -> PipelineModel:
        """Return the model with a stage's work taken away; `device`: the step."""
        if stage == "device":
            return replace(self, step_s=0.0, cpu_s=max(0.0, self.cpu_s - self._step_cpu_s()))
        return self.of(replace(node, work_s=0.0) if node.stage == stage else node for node in self.nodes)

    def of(self, nodes: Iterable[Node]) -> PipelineModel:
        """Return the model with other nodes; work that is gone needs no core."""
        changed = tuple(nodes)
        spared = sum(node.work_s for node in self.nodes) - sum(node.work_s for node in changed)
        total = sum(node.work_s for node in self.nodes)
        own = max(0.0, self.cpu_s - self._step_cpu_s())
        return replace(self, nodes=changed, cpu_s=self.cpu_s - (own * spared / total if total > 0 else 0.0))

    def _step_cpu_s(self) -> float:
        work = sum(node.work_s for node in self.nodes) * (1 - self.blocked)
        return self.cpu_s * self.step_s / (work + self.step_s) if work + self.step_s > 0 else 0.0


def model_of(pipeline: Pipeline, wait_s: float, step_s: float, cores: float) -> PipelineModel:
    """Return the model of a run, fitted to the time that its batches took."""
    plain = PipelineModel(pipeline.nodes, step_s, pipeline.cpu_s, cores, pipeline.blocked or 0.0)
    if wait_s < SEEN_WAITING * (wait_s + step_s):
        return plain
    asked, ahead = plain._stages()
    # The loop waits for what works when it asks, or for the slowest of the others while it is not at its step.
    candidates = [
        wait_s / asked if asked > 0 else 0.0,
        (wait_s + step_s) / max(ahead) if max(ahead, default=0) > 0 else 0.0,
    ]
    known = [each for each in candidates if each > 0]
    return replace(plain, fit=min(MOST_FIT, max(1 / MOST_FIT, min(known)))) if known else plain


def error_of(model: PipelineModel, batch_s: float) -> float:
    """Return how far the model without its fit is from the time that a batch took, as a share."""
    return replace(model, fit=1.0).batch_s() / batch_s - 1.0


def gains_of(model: PipelineModel) -> dict[Stage, float]:
    """Return what taking each stage's work away would gain: 1.3 for 30 % faster."""
    now = model.batch_s()
    gains: dict[Stage, float] = {stage: now / model.without(stage).batch_s() for stage in STAGES}
    gains["device"] = now / model.without("device").batch_s()
    return gains


def expected(
    before: PipelineModel, after: PipelineModel, samples_per_s: float | None, spread: float, disturbed: bool
) -> Expected | None:
    """Return the speedup of a change with its interval; None where it is nothing beyond the error.

    Args:
        before: the run.
        after: the run with the change.
        samples_per_s: the run's.
        spread: coefficient of variation of the run's own stretches.
        disturbed: other programs took a good part of the cores: what a further thread gets of them was not seen.
    """
    speedup = before.batch_s() / after.batch_s()
    width = FLOOR + PER_LOG * abs(math.log(speedup)) + PER_FIT * abs(math.log(before.fit)) * min(1.0, speedup - 1.0)
    width = min(MOST, math.hypot(width, 2 * spread))
    low, high = speedup * (1 - width), speedup * (1 + width)
    low = min(low, 1.0) if disturbed else low
    if speedup < WORTH or high < WORTH:
        return None
    rate = samples_per_s * speedup if samples_per_s else None
    return Expected(
        round(speedup, 3), round(max(1.0, low) if low > 0.9 else low, 3), round(high, 3), rate and round(rate, 1)
    )


def spread_of(paces: list[float]) -> float:
    """Return the coefficient of variation of seconds a batch over stretches of a run; 0 for fewer than three."""
    return float(np.std(paces) / np.mean(paces) / math.sqrt(len(paces))) if len(paces) > 2 else 0.0
