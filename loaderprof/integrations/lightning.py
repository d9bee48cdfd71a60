"""`Trainer(callbacks=[LoaderprofCallback()])` for Lightning: the fit is profiled, its waits go to the trainer's loggers."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from loaderprof.integrations.fit import Fit

# Whichever of its two packages the user trains with.
if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
    from pytorch_lightning.callbacks import Callback
else:
    from lightning.pytorch.callbacks import Callback

if TYPE_CHECKING:
    from loaderprof.findings import Findings


class LoaderprofCallback(Callback):  # type: ignore[misc]
    """Profiles a fit in the first of its processes; others are seen under `loaderprof run`, which records all ranks.

    Every `log_every_n_steps` steps `loaderprof/wait_time_s`, `loaderprof/load_time_s` and the other names of
    `Profile.metrics()` go to the trainer's loggers.

    Args:
        folder: where to keep the recording, or a URL; None: `profile-MMDD-HHMM` in the current folder.
        force: replace a recording in `folder`.
        html: write report.html too.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, *, force: bool = False, html: bool = True) -> None:
        super().__init__()
        self._fit = Fit(folder, force, html)
        self._begun = False

    @property
    def findings(self) -> Findings | None:
        """What was concluded, once the fit has ended."""
        return self._fit.findings

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - Lightning's signature
        """Begin to record."""
        if trainer.is_global_zero and not self._begun:
            self._begun = True
            self._fit.begin()

    def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
        """Log how the loop is doing."""
        if self._begun and trainer.loggers and trainer.global_step % trainer.log_every_n_steps == 0:
            metrics = self._fit.metrics()
            for logger in trainer.loggers if metrics else ():
                logger.log_metrics(metrics, step=trainer.global_step)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - Lightning's signature
        """Stop recording and report."""
        self._end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002
        """Report on what was seen of a fit that failed."""
        self._end()

    def _end(self) -> None:
        if self._begun:
            self._begun = False
            self._fit.end()
