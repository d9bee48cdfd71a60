"""The errors of a DataLoader that many meet and few understand, told apart by their words.

Only which one it was is recorded: a message may hold anything. `diagnose/endings.py` explains them. Standard library
only, Python >= 3.8: every worker imports this.
"""

from __future__ import annotations

from typing import List, Optional

# The first that fits is meant: an error deep down shows as several, each caused by the next.
_KNOWN = (
    ("missing-guard", ("process has finished its bootstrapping phase",)),
    ("cuda-after-fork", ("Cannot re-initialize CUDA in forked subprocess",)),
    (
        "unpicklable",
        ("PicklingError", "Can't pickle", "cannot pickle", "Can't get local object", "Can't get attribute"),
    ),
    ("open-files", ("Too many open files", "received 0 items of ancdata")),
    (
        "shared-memory",
        (
            "Bus error",
            "insufficient shared memory",
            "unable to write to file </torch_",
            "unable to allocate shared memory",
        ),
    ),
    ("killed-worker", ("is killed by signal: Killed",)),
    ("crashed-worker", ("is killed by signal: Segmentation fault", "is killed by signal: Aborted")),
    ("timed-out", ("DataLoader timed out after",)),
    ("lost-worker", ("DataLoader worker (pid", "Pin memory thread exited unexpectedly")),
)


def kind(error: BaseException) -> Optional[str]:
    """Return which of the known errors this is, None for any other."""
    texts: List[str] = []
    under: Optional[BaseException] = error
    while under is not None and len(texts) < 8:
        texts.append("%s: %s" % (type(under).__name__, under))
        under = under.__cause__ or under.__context__
    return next((name for name, words in _KNOWN if any(word in text for text in texts for word in words)), None)
