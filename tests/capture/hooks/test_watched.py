"""Iterables that are no DataLoader, recorded by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loaderprof.capture.hooks.watched import Watched


def test_a_watched_iterable_that_raises(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Raises:
        asked = 0

        def __iter__(self) -> Any:
            self.asked += 1
            raise ValueError("the user's own")

    raises = Raises()
    with pytest.raises(ValueError, match="the user's own"):
        Watched.begin(raises, "x")
    assert raises.asked == 1
    assert capsys.readouterr().err == ""
