"""Names that timers give: by the object's own class, within the library's operator, from the user's line."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import nn

from loaderprof.capture.hooks.stand_ins import FROM
from loaderprof.capture.hooks.timers import Timers


class Unhashable(type):
    """Its classes are equal by name, and are no keys."""

    def __eq__(cls, other: object) -> bool:
        raise RuntimeError("compared")

    __hash__ = None  # type: ignore[assignment]


class Resample(nn.Upsample):
    """A library's transform under a name of the user's."""


class Strange(nn.Upsample, metaclass=Unhashable):
    """The same, of a strange class."""


class Rows:
    def __init__(self, *transforms: Any) -> None:
        self.transforms = transforms

    def __getitem__(self, index: int) -> Any:
        value = torch.full((1, 1, 4, 4), float(json.loads("1")))
        value = value + json.loads("2")
        for transform in self.transforms:
            value = transform(value)
        return value


def names(*transforms: Any) -> dict[str, str]:
    rows = Rows(*transforms)
    with Timers(rows, None) as table:
        rows[0]
    return {
        name.partition(FROM)[0] + f"#{position}": table.callers.get(name, "")
        for position, (name, row) in enumerate(table.rows.items())
        if row[0]
    }


def test_an_inherited_entry_point_goes_by_the_objects_class() -> None:
    found = names(Resample(scale_factor=2), nn.Upsample(scale_factor=2))
    dotted = [name.partition("@")[0] for name in found]
    assert f"{Resample.__module__}.Resample.forward" in dotted
    assert "torch.nn.modules.upsampling.Upsample.forward" in dotted


def test_what_runs_inside_a_librarys_operator_is_told_as_part_of_it() -> None:
    inner = [name for name in names(Resample(scale_factor=2)) if name.startswith("torch.nn.functional.interpolate")]
    assert inner
    assert all("@in " in name and "Resample.forward@" in name.partition("@in ")[2] for name in inner)


def test_lines_that_call_the_same_function_are_told_apart() -> None:
    lines = [caller for name, caller in names().items() if name.startswith("json.loads")]
    assert len(lines) == len(set(lines)) == 2
    assert all(__file__ in line for line in lines)


class Beside:
    """A dataset whose pipeline is built beside it, and in its class."""

    pool = nn.MaxPool2d(2)

    def __getitem__(self, index: int) -> Any:
        return self.pool(ENLARGE(torch.full((1, 1, 4, 4), float(index))))


ENLARGE = nn.Sequential(nn.Upsample(scale_factor=2))


def test_a_pipeline_built_beside_the_dataset_is_found() -> None:
    with Timers(Beside(), None) as table:
        Beside()[0]
    found = {name.partition("@")[0] for name, row in table.rows.items() if row[0]}
    assert {"torch.nn.modules.upsampling.Upsample.forward", "torch.nn.modules.pooling.MaxPool2d.forward"} <= found


def test_a_class_that_is_no_key() -> None:
    assert any("Strange.forward" in name for name in names(Strange(scale_factor=2)))
