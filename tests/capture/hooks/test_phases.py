"""The phases of a step: on the host's clock for real, on a device's with a stand-in for the device."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import real

from loaderprof.recording import reader

PROGRAMS = Path(__file__).parents[1] / "programs"
NAMES = ("copy", "forward", "backward", "optimizer", "rest")
_keep = tempfile.TemporaryDirectory(prefix="loaderprof-tests-")


@functools.lru_cache
def ran() -> tuple[reader.Recording, dict[str, Any]]:
    folder = Path(_keep.name)
    done = real.loaderprof("run", "--no-html", "-o", "seen", str(PROGRAMS / "phases.py"), cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "stopped" not in done.stderr
    return reader.read(folder / "seen"), json.loads(done.stdout)


def rows(kind: str, name: str) -> Any:
    """Return the records of one of the program's loops."""
    seen, _ = ran()
    made = seen.tables["iterator"]
    mine = [row["iterator"] for row in made if json.loads(seen.texts[row["loader"]])["type"].endswith(f".{name}")]
    table = seen.tables[kind]
    return table[np.isin(table["iterator"], mine)]


def phases_ms(name: str) -> list[tuple[float, ...]]:
    return [tuple(round(float(row[f"{each}_ns"]) / 1e6, 3) for each in NAMES) for row in rows("phases", name)]


@pytest.mark.slow
def test_nothing_is_asked_of_a_device_that_it_would_refuse() -> None:
    _, sentence = ran()
    assert sentence == {"faults": [], "untouched": True, "cuda": False}


@pytest.mark.slow
def test_on_the_host_phases_last_as_long_as_they_do() -> None:
    sentence = rows("phases", "on_the_host")
    assert len(sentence) >= 9
    assert set(sentence["device"]) == {-1}
    for each, least in zip(NAMES, (2, 5, 10, 3, 5), strict=True):
        # A busy machine sleeps longer.
        assert least * 1e6 <= np.median(sentence[f"{each}_ns"]) < (least + 10) * 1e6
    added = sum(sentence[f"{each}_ns"] for each in NAMES)
    assert np.all(added <= sentence["t_asked"] - sentence["t_taken"])


def test_phases_by_events_are_those_of_the_device() -> None:
    sentence = phases_ms("plain")
    assert len(sentence) >= 8
    assert set(sentence) == {(2.0, 5.0, 10.0, 3.0, 5.0)}
    assert set(rows("phases", "plain")["device"]) == {0}
    # The device is behind the loop all the time.
    assert not rows("device", "plain")["starved_ns"][1:].any()


def test_time_in_which_the_device_had_nothing_to_do_is_starved() -> None:
    # A step of 25 ms, 1 ms of which the host goes on beside it, and 40 ms to load.
    starved = rows("device", "starved")["starved_ns"][2:] / 1e6
    assert starved == pytest.approx(np.full(len(starved), 40 - 25 + 1))
    assert set(phases_ms("starved")) == {(2.0, 5.0, 10.0, 3.0, 5.0)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accumulating", {(0, 5, 10, 3), (0, 5, 10, 0)}),
        ("closing", {(0, 5, 10, 3)}),
        ("adversarial", {(0, 10, 20, 6)}),
        ("capturing", {(0, 5, 10, 3)}),
        ("beside", {(0, 5, 10, 0)}),
        ("evaluating", {(0, 0, 0, 0)}),
        ("moving", {(0, 5, 10, 0)}),
        ("prefetching", {(0, 5, 10, 3)}),
        ("validating", {(0, 5, 10, 0)}),
    ],
)
def test_loops_of_every_kind(name: str, expected: set[tuple[float, ...]]) -> None:
    sentence = phases_ms(name)
    assert len(sentence) >= 3
    assert {each[:4] for each in sentence} == expected


def test_what_the_device_waits_for_the_host_within_a_step_is_rest() -> None:
    assert {each[4] for each in phases_ms("accumulating")} == {40 - 18, 40 - 15}


def test_a_step_whose_phases_did_not_end_is_not_recorded() -> None:
    assert len(rows("device", "failing")) > 8
    assert not phases_ms("failing")


COMPILED = """
import warnings
warnings.simplefilter("ignore")
import torch, torch._dynamo.utils
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
model = torch.nn.Linear(4, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
@torch.compile(backend="eager")
def train(x):
    loss = model(x).square().sum()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss
def loop():
    return [train(x).item() for (x,) in DataLoader(TensorDataset(torch.rand(16, 4)), batch_size=2)]
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    losses = loop()
counters = torch._dynamo.utils.counters
print([str(each.message) for each in told if "Dynamo" in str(each.message)], losses)
print(counters["stats"], sum(counters["graph_break"].values()))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_compiled_step_is_compiled_as_it_would_be_without(tmp_path: Path) -> None:
    pytest.importorskip("torch._dynamo")
    (tmp_path / "train.py").write_text(COMPILED)
    bare = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=True
    )
    done = real.loaderprof("run", "--no-html", "-o", "seen", "train.py", cwd=tmp_path)
    assert done.stdout == bare.stdout
    assert len(reader.read(tmp_path / "seen").tables["phases"])
