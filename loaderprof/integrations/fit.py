"""What trainers' callbacks have in common: one fit, profiled from its beginning to its end, and its numbers meanwhile.

Nothing here raises into the trainer. Imports no trainer: the modules beside this one do, when the user imports them.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from loaderprof.api import Profile, profile

if TYPE_CHECKING:
    from loaderprof.analyze.glance import Journals
    from loaderprof.findings import Findings

PREFIX = "loaderprof/"


class Fit:
    """One fit of a trainer. Under `loaderprof run`, which records the job already, only its numbers are read.

    Args:
        folder: where to keep the recording, or a URL; None: `profile-MMDD-HHMM` in the current folder.
        force: replace a recording in `folder`.
        html: write report.html too.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, force: bool, html: bool) -> None:
        self._wanted = folder, force, html
        self._profile: Profile | None = None
        self._journals: Journals | None = None

    @property
    def findings(self) -> Findings | None:
        """What was concluded; None before the fit has ended, and under `loaderprof run`, which concludes itself."""
        return self._profile.findings if self._profile is not None else None

    def begin(self) -> None:
        """Begin to record."""
        recorded = os.environ.get("LOADERPROF_JOURNALS")
        if recorded:
            from loaderprof.analyze.glance import Journals

            self._journals = Journals(Path(recorded))
            return
        folder, force, html = self._wanted
        self._profile = profile(folder, force=force, html=html)
        self._profile.__enter__()

    def metrics(self) -> dict[str, float]:
        """Return `Profile.metrics()` with names for a logger; what is not known yet is left out."""
        found: dict[str, float] = {}
        with suppress(Exception):  # the trainer must run
            if self._profile is not None:
                found = self._profile.metrics()
            elif self._journals is not None:
                found = self._journals.look(time.perf_counter_ns()).metrics()
        return {PREFIX + name: value for name, value in found.items()}

    def end(self) -> None:
        """Stop recording and report, once."""
        if self._profile is not None and self._profile.findings is None:
            self._profile.__exit__(*sys.exc_info())
        self._journals = None
