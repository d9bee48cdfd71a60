"""The errors of a DataLoader that are known, by their words and by how a worker ended."""

from __future__ import annotations

import pytest

from loaderprof.capture.hooks import failures


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", "killed-worker"),
        ("DataLoader worker (pid 7) is killed by signal: Segmentation fault. ", "crashed-worker"),
        ("DataLoader worker (pid(s) 7) exited unexpectedly", "lost-worker"),
        ("DataLoader timed out after 5 seconds", "timed-out"),
        ("Cannot re-initialize CUDA in forked subprocess.", "cuda-after-fork"),
        ("the user's own", None),
    ],
)
def test_an_error_is_known_by_its_words(message: str, kind: str | None) -> None:
    assert failures.kind(RuntimeError(message)) == kind


def test_an_error_is_known_by_what_caused_it() -> None:
    error = RuntimeError("a worker failed")
    error.__cause__ = OSError(24, "Too many open files")
    assert failures.kind(error) == "open-files"
