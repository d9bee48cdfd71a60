"""Numbers in words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import loaderprof
from loaderprof import formatting
from loaderprof.findings import Advice, Costs, Expected
from loaderprof.report import sentences


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "not measured"),
        (float("nan"), "not measured"),
        (0.0, "0 ms"),
        (0.00045, "0.45 ms"),
        (0.0082, "8.2 ms"),
        (0.21, "210 ms"),
        (0.9996, "1 s"),
        (3.2, "3.2 s"),
        (87.2, "1 min 27 s"),
        (3600.0, "1 h 00 min"),
        (7530.0, "2 h 06 min"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert formatting.duration(seconds) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (None, "not measured"),
        (0.0, "0 %"),
        (0.0002, "<0.1 %"),
        (0.004, "0.4 %"),
        (0.0996, "10 %"),
        (0.61, "61 %"),
    ],
)
def test_percent(share: float | None, text: str) -> None:
    assert formatting.percent(share) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(None, "not measured"), (0.0, "0 %"), (0.004, "0 %"), (0.046, "5 %"), (0.615, "62 %"), (12.0, "1,200 %")],
)
def test_percent_in_whole_points(share: float | None, text: str) -> None:
    assert formatting.percent(share, whole=True) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "not measured"), (1.04, "1.04x"), (2.56, "2.6x"), (12.3, "12x"), (0.9, "0.90x")],
)
def test_ratio(value: float | None, text: str) -> None:
    assert formatting.ratio(value) == text


@pytest.mark.parametrize(
    ("ends", "text"),
    [
        ((2.0, 1.9, 2.1), "2.0x ± 0.1"),
        ((2.5, 2.3, 2.6), "2.5x ± 0.2"),
        ((1.12, 1.1, 1.15), "1.12x ± 0.03"),
        ((1.5, 1.5, 1.5), "1.50x ± <0.01"),
        ((1.5, None, 1.6), "1.5x"),
        ((None, 1.0, 2.0), "not measured"),
    ],
)
def test_interval_gives_the_larger_half(ends: tuple[float | None, ...], text: str) -> None:
    assert formatting.interval(*ends) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "not measured"), (600_000_000, "0.6 GB"), (38e6, "38 MB"), (1500, "1.5 kB"), (12, "12 B")],
)
def test_size(count: float | None, text: str) -> None:
    assert formatting.size(count) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.71, "share", "71 %"),
        (0.0082, "s", "8.2 ms"),
        (38e6, "bytes/s", "38 MB/s"),
        (None, "s", "not measured"),
        (4, "cores", "4 cores"),
    ],
)
def test_quantity(value: float | None, unit: str, text: str) -> None:
    assert formatting.quantity(value, unit) == text


def test_clean_spells_out_what_could_turn_or_break_a_line() -> None:
    assert formatting.clean("a\x1b[31m\u202eb\u2028c\nd\udcff") == "a\\x1b[31m\\u202eb\\u2028c d\\udcff"
    assert formatting.clean("\u05d0\u05d9 \u00e9 \u2192") == "\u05d0\u05d9 \u00e9 \u2192"


def test_short_keeps_both_ends() -> None:
    assert formatting.short("/data/" + "x" * 400 + "/train.py", 21) == "/data/xxxx…x/train.py"
    assert len(formatting.short("x" * 5000, 60)) == 60


def test_a_set_says_what_no_change_above_it_says() -> None:
    def change(id_: str, action: str) -> Advice:
        return Advice(id_, action, "Because.", None, {"kind": "code"}, {}, Expected(2.0, 1.5, 2.5, None), Costs())

    message = (change("a", "Do A"), change("b", "Do B"), change("a+b", "Do A; Do B"), change("a+c", "Do A; Do C"))
    assert sentences.numbering(message) == {"a": "1", "b": "2", "a+b": "1+2", "a+c": "1+"}
    assert [sentences.action(each, message) for each in message] == ["Do A", "Do B", "", "Do C"]
    assert sentences.shown(message, 1) == (message[0], message[3])
    assert sentences.numbering((change("x+y", "Do X; Do Y"),)) == {"x+y": "1"}


PACKAGE = Path(loaderprof.__file__).parent
# A value formatted in place with a percent sign or a unit behind it, and binary units.
IN_PLACE = re.compile(r":[^{}\"' ]*%\}|\} ?%|\} (?:ms|s|min|kB|MB|GB|TB)\b|\b[KMG]iB\b")
ALLOWED = {
    # A tick of an axis shows the place where it is: 0 s, 12.5 s. `duration` would round it and change the unit at zero.
    "report/plots.py": 2 * ['axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} s")'],
    # CSS, not read by anyone.
    "report/notebook.py": ['f"width:{100 * piece.seconds / total:.2f}%;background:{look};color:#fff;overflow:hidden;"'],
}


def test_numbers_with_units_are_formatted_in_one_place() -> None:
    found: dict[str, list[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        if path != PACKAGE / "formatting.py":
            lines = [line.strip() for line in path.read_text().splitlines() if IN_PLACE.search(line)]
            found |= {path.relative_to(PACKAGE).as_posix(): lines} if lines else {}
    assert found == ALLOWED


@pytest.mark.parametrize("line", ['f"{share:.0%} of"', 'f"{n:.3g} MiB"', 'f"{1e3 * s:.3g} ms"', 'f"{points:.0f} %"'])
def test_a_number_formatted_in_place_is_noticed(line: str) -> None:
    assert IN_PLACE.search(line)
