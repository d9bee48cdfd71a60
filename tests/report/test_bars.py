"""The terminal's bars: their pieces fill the room, larger ones get more of it, and what finds no room is left out."""

from __future__ import annotations

import pytest

from loaderprof.report import bars
from loaderprof.report.anatomy import Segment, Whole


def whole(*seconds: float) -> Whole:
    return Whole("A batch", sum(seconds), tuple(Segment(f"stage{at}", each, "red") for at, each in enumerate(seconds)))


@pytest.mark.parametrize("room", [20, 45, 60, 117])
@pytest.mark.parametrize("seconds", [(0.1,), (0.3, 0.1), (0.298, 0.09, 0.008, 0.024), (0.02,) * 6])
def test_pieces_fill_the_room_and_hold_their_labels(room: int, seconds: tuple[float, ...]) -> None:
    pieces = bars.layout(whole(*seconds), room)
    assert sum(columns for _, _, columns in pieces) == room
    for _, label, columns in pieces:
        assert columns >= len(f"[ {label} ]")


def test_columns_are_shared_out_by_time() -> None:
    first, second = (columns for _, _, columns in bars.layout(whole(0.3, 0.1), 100))
    assert (first, second) == (75, 25)


def test_the_smallest_pieces_are_left_out_first() -> None:
    kept = [piece.name for piece, _, _ in bars.layout(whole(0.2, 0.01, 0.15, 0.02), 30)]
    assert kept == ["stage0", "stage2"]
