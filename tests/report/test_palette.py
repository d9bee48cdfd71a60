"""Stage colours stay apart for people who do not tell some colours apart, and show on white and on black."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from loaderprof.findings import STAGES
from loaderprof.report import palette

SIDE_BY_SIDE = ("read", "decode", "transform", "collate", "handover")

# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    x, y, z = np.cbrt(np.clip(TO_XYZ @ rgb / np.array([0.9505, 1.0, 1.089]), 0.0089, None))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_every_stage_has_a_colour_and_a_name() -> None:
    assert set(palette.COLOURS) == set(STAGES) == set(palette.NAMES)
    assert len(set(palette.COLOURS.values())) == len(STAGES)


@pytest.mark.parametrize("vision", VISION)
def test_stages_of_a_bar_stay_apart(vision: str) -> None:
    seen = {name: lab(np.clip(VISION[vision] @ linear(palette.COLOURS[name]), 0, 1)) for name in SIDE_BY_SIDE}
    for one, other in itertools.pairwise(SIDE_BY_SIDE):
        assert np.linalg.norm(seen[one] - seen[other]) > 20, (vision, one, other)


@pytest.mark.parametrize("stage", STAGES)
def test_colours_show_on_white_and_on_black(stage: str) -> None:
    luminance = float(TO_XYZ[1] @ linear(palette.COLOURS[stage]))
    assert (1.05 / (luminance + 0.05)) > 2.0
    assert (luminance + 0.05) / (0.0091 + 0.05) > 2.0
