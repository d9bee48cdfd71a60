"""What one process of the job knows of its recording, and how capture leaves what is the job's alone."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.utils import data as torch_data

from loaderprof.capture.hooks import describe, install, process
from loaderprof.recording import files, reader
from loaderprof.recording import journal as layout


class Loader:
    """As much of a loader as is described."""

    def __init__(self, batch_size: int) -> None:
        self.dataset: list[int] = []
        self.batch_size = batch_size


def test_a_loader_in_the_place_of_another_is_described_anew(fresh: Path) -> None:
    journal = process.process.open()
    assert journal is not None
    first = Loader(4)
    number = process.process.loader(journal, first, None)
    assert process.process.loader(journal, first, None) == number
    other = Loader(4)
    assert process.process.loader(journal, other, None) != number, "two at once are two"
    for _ in range(50):
        del other
        other = Loader(8)
        last = process.process.loader(journal, other, None)
    assert last not in (number, 0)
    assert len(process.process.loaders) == 2
    assert last <= 4, "those that took each other's place are one"


def test_a_journal_takes_few_descriptors(fresh: Path) -> None:
    journal = process.process.open()
    assert journal is not None
    before = len(os.listdir("/proc/self/fd"))
    for number in range(100_000):
        journal.write(layout.PAUSE, 0, 0, number, number + 1, 0)
    assert len(os.listdir("/proc/self/fd")) - before <= 9


def test_a_long_command_line_fits_the_header(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x" * 400] * 60)
    assert process.process.open() is not None
    (fresh / "journals").mkdir()
    for file in fresh.glob("*.lpj"):
        file.rename(fresh / "journals" / file.name)
    files.write_meta(fresh, {})
    seen = reader.read(fresh)
    assert [process.pid for process in seen.processes] == [os.getpid()]
    assert seen.notes == []


def test_what_a_signal_handler_raises_while_we_run_is_the_jobs(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def handler(number: int, frame: Any) -> None:
        raise TimeoutError("the job's own")

    before = signal.signal(signal.SIGUSR1, handler)
    install.begin(str(fresh))
    try:
        batches = iter(torch_data.DataLoader([1, 2, 3]))
        assert next(batches).tolist() == [1]
        with pytest.MonkeyPatch.context() as patch:
            # Asked in the midst of a stamp.
            patch.setattr(describe, "gradients", lambda: signal.raise_signal(signal.SIGUSR1) or 0)
            with pytest.raises(TimeoutError, match="the job's own"):
                next(batches)
        assert next(batches).tolist() == [3]
        assert not process.process.off
    finally:
        install.end()
        signal.signal(signal.SIGUSR1, before)
    assert capsys.readouterr().err == ""


def test_of_two_loaders_in_turns_neither_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.process, "iterators", 0)
    kept = []
    for number in range(20_000):
        process.process.iterators = number
        if not process.process.rests():
            kept.append(number)
    assert kept[:399] == list(range(399))
    assert 1_000 < len(kept) < 1_500
    # Of two loaders in turns neither is left out.
    assert 0.4 < sum(number % 2 for number in kept[400:]) / len(kept[400:]) < 0.6
