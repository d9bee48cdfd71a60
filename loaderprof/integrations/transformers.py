"""`Trainer(callbacks=[LoaderprofCallback()])` for Hugging Face: training is profiled, its waits go where the losses go."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from transformers.trainer_callback import CallbackHandler, TrainerCallback

from loaderprof.integrations.fit import Fit

if TYPE_CHECKING:
    from loaderprof.findings import Findings


class LoaderprofCallback(TrainerCallback):  # type: ignore[misc]
    """Profiles `train()` in the first of its processes; others are seen under `loaderprof run`, which records all ranks.

    With each of the trainer's own logs go `loaderprof/wait_time_s`, `loaderprof/load_time_s` and the other names of
    `Profile.metrics()`, to `report_to`, the progress bar and the log history. Callbacks are not called
    when training ends by an exception; then `loaderprof report DIR` makes the report.

    Args:
        folder: where to keep the recording, or a URL; None: `profile-MMDD-HHMM` in the current folder.
        force: replace a recording in `folder`.
        html: write report.html too.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, *, force: bool = False, html: bool = True) -> None:
        self._fit = Fit(folder, force, html)
        self._begun = False

    @property
    def findings(self) -> Findings | None:
        """What was concluded, once training has ended."""
        return self._fit.findings

    def on_init_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 - their signature
        """Move before the callbacks of `report_to`, which send a log as it is when they are called.

        The trainer puts users' callbacks after those, and passes no list of all callbacks: it is taken from the caller's
        frame.
        """
        handler = sys._getframe(1).f_locals.get("self")
        if isinstance(handler, CallbackHandler) and self in handler.callbacks:
            # The caller iterates over this list by index: the callbacks that move up by one were called already.
            handler.callbacks.remove(self)
            handler.callbacks.insert(0, self)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Begin to record."""
        if state.is_world_process_zero and not self._begun:
            self._begun = True
            self._fit.begin()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:  # noqa: ARG002
        """Add how the loop is doing to what is logged."""
        if self._begun and logs is not None:
            metrics = self._fit.metrics()
            logs.update(metrics)
            if state.log_history:
                state.log_history[-1].update(metrics)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Stop recording and report."""
        if self._begun:
            self._begun = False
            self._fit.end()
