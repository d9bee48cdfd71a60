"""One loop as the replay sees it: its costs, its settings and the machine that it runs on. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from loaderprof.replay.costs import Outcome, RunCosts, Settings
from loaderprof.replay.protocol import LONG, replay


@dataclass(frozen=True, slots=True)
class Batch:
    """What is known of a usual batch, by which the replay tells what other settings would spare or add.

    Attributes:
        tensors, bytes_: that it holds; None: not measured.
        pickle_s: CPU seconds of its worker to pickle it; 0 without workers.
        collate_s: CPU seconds to collate it; None: not measured.
        index_s: CPU seconds of the loop to draw its indices.
        shared: torch's own collate made it, in a worker right into shared memory.
    """

    tensors: float | None = None
    bytes_: float | None = None
    pickle_s: float = 0.0
    collate_s: float | None = None
    index_s: float = 0.0
    shared: bool = False


@dataclass(frozen=True, slots=True)
class LoopModel:
    """One loop as the replay sees it.

    `neighbours`: threads of other programs that want the same cores; `epoch_batches`: batches of a whole epoch, of
    which the replay may hold fewer; `all_first`: every batch was its worker's first, and no twin told set-up from work;
    `answer_work_s`: what of `answer_cpu_s` is work, the rest being waits for the interpreter lock; None: all of it;
    `batch`: a usual batch.
    """

    costs: RunCosts
    settings: Settings
    cores: float
    neighbours: float
    batches_per_epoch: int
    epochs: int
    epoch_batches: int = 0
    all_first: bool = False
    answer_work_s: float | None = None
    batch: Batch = Batch()

    @property
    def replayed(self) -> tuple[int, int]:
        """Batches of a replayed epoch, and how many of them: fewer and longer ones where much is outstanding."""
        deep = LONG * self.settings.outstanding
        length = max(self.batches_per_epoch, min(self.epoch_batches, deep))
        return length, max(min(self.epochs, 2), self.epochs * self.batches_per_epoch // length)

    def run(self, seed: int = 0) -> Outcome:
        """Replay the model."""
        length, epochs = self.replayed
        return replay(
            self.costs,
            self.settings,
            cores=self.cores,
            neighbours=self.neighbours,
            batches_per_epoch=length,
            epochs=epochs,
            seed=seed,
        )

    def pace_s(self) -> float:
        """Return seconds a batch as the job goes on: whole epochs with their borders, without the very first start.

        Where there is but one epoch its start counts.
        """
        seen, (replayed, _) = self.run(), self.replayed
        epoch_s = seen.total_s if seen.later_epoch_s is None else seen.later_epoch_s
        length = max(self.epoch_batches, replayed)
        # A border weighs as much as in the run, however short the replayed epochs are.
        return (epoch_s + (length - replayed) * seen.steady_step_s) / length
