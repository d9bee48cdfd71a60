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
def test_what_may_be_random_is_known(function: Any, types: set[str], random_: bool) -> None:
    # In the shape of tensorflow's function: one operation in its own graph, the others in a function that it calls.
    first, *others = ([SimpleNamespace(type=each)] for each in sorted(types))
    called = {
        str(each): SimpleNamespace(graph=SimpleNamespace(get_operations=lambda each=each: each)) for each in others
    }
    graph = SimpleNamespace(get_operations=lambda: first, _functions=called)
    wrapped = SimpleNamespace(_func=function, function=SimpleNamespace(graph=graph))
    assert tf_facts.is_random(wrapped) == random_
