"""Facts about a loader and a batch, and that nothing of the user is run or kept for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from odd_datasets import Loud, Proxy
from torch.utils import data as torch_data

from loaderprof.capture.hooks import describe


def test_the_size_of_a_batch_is_taken_without_code_of_the_users() -> None:
    assert describe.size([Loud(a=b"12"), Proxy(), (b"3", "4")]) == (4, 0, 4, 0)


def test_floats_of_a_batch_are_counted() -> None:
    floats, bytes_ = torch.zeros(6), torch.zeros(5, dtype=torch.uint8)
    assert describe.size({"image": floats, "more": (bytes_, np.zeros(2, np.float64), np.zeros(1, np.int64))}) == (
        53,
        4,
        4,
        40,
    )


def test_locals_are_not_kept() -> None:
    """What a function deletes goes at once, though its variables were looked at."""

    class Item:
        pass

    gone: list[str] = []

    def user() -> None:
        mine = Item()
        import weakref

        weakref.finalize(mine, gone.append, "mine")
        assert describe.name_and_place(mine)[0] in (None, "mine")
        del mine
        assert gone == ["mine"]

    user()


def test_locals_given_to_the_user_are_left_alone() -> None:
    def user() -> dict[str, Any]:
        first = 1
        mine = locals()
        second = object()
        describe.name_and_place(second)
        return mine if first else {}

    assert sorted(user()) == ["first"]


class Drawing(torch_data.Sampler[Any]):
    """Draws one index, or one batch of one."""

    def __init__(self, batches: bool) -> None:
        self.drawn: list[Any] = [[0]] if batches else [0]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.drawn)


@pytest.mark.parametrize(
    ("more", "known"),
    [({"batch_sampler": Drawing(True)}, True), ({"sampler": Drawing(False)}, True), ({"shuffle": True}, False)],
)
def test_the_line_of_the_users_sampler_is_known(more: dict[str, Any], known: bool) -> None:
    loader = torch_data.DataLoader([0, 1], **more)  # type: ignore[arg-type]
    line = Drawing.__iter__.__code__.co_firstlineno
    assert describe.loader(loader, iter(loader))["sampler_where"] == (f"{__file__}:{line}" if known else None)


def test_a_loader_of_an_installed_program_has_the_programs_name_for_it() -> None:
    program = """
def inner(data): return look(data)
def fit(train_loader): return inner(train_loader)
def main(): return fit(object())
"""
    names: dict[str, Any] = {"look": describe.name_and_place}
    exec(compile(program, "/opt/lib/site-packages/program.py", "exec"), names)
    name, where = names["main"]()
    assert name == "train_loader"
    assert where is not None
    assert where.startswith(f"{__file__}:"), "the line of the user's that runs it"
