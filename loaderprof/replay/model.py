"""One loop as the replay sees it: what it costs, how its loader is set, which cores it has. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from loaderprof.replay.costs import Outcome, RunCosts, Settings
from loaderprof.replay.protocol import LONG, replay

# Epochs of a replay that are stretched because much is outstanding: a first one and a later one, which differ.
FEW_EPOCHS = 2


@dataclass(frozen=True, slots=True)
class Batch:
    """What is known of a usual batch: from this the costs under settings that the run did not have are estimated.

    Attributes:
        tensors, bytes_: in one batch; None: not measured.
        pickle_s: CPU seconds of its worker to pickle it; 0 without workers.
        collate_s: CPU seconds to collate it; None: not measured.
        index_s: CPU seconds of the loop to draw its indices from the sampler.
        shared: torch's own collate function made it in a worker, directly in shared memory.
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

    Attributes:
        costs: seconds of the loop, of its workers and of handing batches over.
        settings: of the loader.
        cores: that the loop and its workers may use together.
        neighbours: threads of other programs that want the same cores, on average.
        batches_per_epoch, epochs: that are replayed.
        epoch_batches: batches of a whole epoch of the run, of which the replay may hold fewer.
        all_first: every measured batch was its worker's first, and no other loop shows what of it is setting the worker up.
        answer_work_s: what of `costs.answer_cpu_s` is work, the rest being waits for the GIL; None: all of it.
        batch: a usual batch.
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
        """Batches of a replayed epoch, and number of epochs: fewer and longer ones where many batches are outstanding."""
        deep = LONG * self.settings.outstanding
        length = max(self.batches_per_epoch, min(self.epoch_batches, deep))
        return length, max(min(self.epochs, FEW_EPOCHS), self.epochs * self.batches_per_epoch // length)

    def run(self, seed: int = 0) -> Outcome:
        """Replay the model; any `seed` but 0 draws the costs anew."""
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
        """Return seconds a batch over whole epochs and the gaps between them, without the first start of all.

        Of a single epoch its start counts.
        """
        seen, (replayed, _) = self.run(), self.replayed
        epoch_s = seen.total_s if seen.later_epoch_s is None else seen.later_epoch_s
        length = max(self.epoch_batches, replayed)
        # The gap between epochs weighs as much as in the run, however short the replayed epochs are.
        return (epoch_s + (length - replayed) * seen.steady_step_s) / length
