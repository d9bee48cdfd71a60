"""Facts about tf.data pipelines."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from loaderprof.capture.hooks import tf_facts


def drawn(number: int) -> float:
    return random.random() + number


def plain(number: int) -> float:
    return abs(number)


@pytest.mark.parametrize(
    ("function", "types", "random_"),
    [
        (lambda number: drawn(number), {"EagerPyFunc"}, True),
        (lambda number: plain(number), {"EagerPyFunc"}, False),
        (plain, {"RandomUniform"}, True),
        (plain, {"StatelessRandomUniformV2", "Mul"}, False),
        (plain, {"GeneratorDataset"}, True),
    ],
)
def test_what_may_be_random_is_known(
    monkeypatch: pytest.MonkeyPatch, function: Any, types: set[str], random_: bool
) -> None:
    monkeypatch.setattr(tf_facts, "_types", lambda _: types)
    assert tf_facts.is_random(SimpleNamespace(_func=function)) == random_
