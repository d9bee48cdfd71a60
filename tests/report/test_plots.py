"""The still pictures: written as files, the same bytes each time, nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import page_samples
import pytest
import report_samples

from loaderprof.report import plots
from loaderprof.report.page import PageData

HEADS = {".svg": b"<?xml", ".png": b"\x89PNG", ".pdf": b"%PDF"}


def test_figures_are_files_of_three_kinds(tmp_path: Path) -> None:
    written = plots.write_figures(report_samples.gpu(), page_samples.page(60), tmp_path / "figures")
    assert sorted({path.stem for path in written}) == ["anatomy", "batches", "samples", "speedups", "timeline"]
    for path in written:
        assert path.read_bytes().startswith(HEADS[path.suffix])


def test_figures_are_the_same_each_time(tmp_path: Path) -> None:
    first = plots.write_figures(report_samples.decode(), page_samples.page(40), tmp_path / "a")
    second = plots.write_figures(report_samples.decode(), page_samples.page(40), tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_text_in_pictures_is_text() -> None:
    assert "loop waits 128" in plots.inline(report_samples.decode(), PageData())["anatomy"]


@pytest.mark.parametrize("name", report_samples.ALL)
def test_pictures_of_every_run_can_stand_in_a_page(name: str) -> None:
    data = page_samples.hostile() if name == "hostile" else page_samples.page(40)
    found = plots.inline(report_samples.ALL[name](), data)
    ids = [each for svg in found.values() for each in re.findall(r'\bid="([^"]+)"', svg)]
    assert len(ids) == len(set(ids))
    for svg in found.values():
        assert svg.startswith("<svg")
        assert not re.search(r'(href|src)="(?!#)', svg)
        assert "DejaVu" not in svg


def test_nothing_measured_is_nothing_drawn(tmp_path: Path) -> None:
    assert plots.inline(report_samples.unknown(), PageData()) == {}
    assert plots.write_figures(report_samples.unknown(), PageData(), tmp_path / "figures") == []
    assert not (tmp_path / "figures").exists()
