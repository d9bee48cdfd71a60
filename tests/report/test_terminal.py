"""The report on the terminal, held by golden files; `pytest --update-golden tests/report` writes them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import report_samples
from golden_sentences import Check
from rich.cells import cell_len

from loaderprof.findings import Costs, Expected, Findings
from loaderprof.report import sentences, terminal

GOLDEN = Path(__file__).parent / "golden"
COMMANDS = ("Check it:", "Full report", "Next")


def render(findings: Findings, width: int = 80, *, colour: bool = False) -> str:
    return terminal.render(findings, folder="train-0412", width=width, colour=colour)


@pytest.mark.parametrize("colour", [False, True], ids=["plain", "colour"])
@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", report_samples.ALL)
def test_golden(name: str, width: int, colour: bool, update_golden: bool) -> None:
    shown = render(report_samples.ALL[name](), width, colour=colour)
    path = GOLDEN / f"{name}-{width}-{'colour' if colour else 'plain'}.txt"
    if update_golden:
        path.write_text(shown, encoding="utf-8")
    assert shown == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [60, 80, 100, 120, 300])
@pytest.mark.parametrize("name", report_samples.ALL)
def test_only_commands_may_be_wider_than_the_terminal(name: str, width: int) -> None:
    for line in render(report_samples.ALL[name](), width).splitlines():
        assert cell_len(line) <= width or any(word in line for word in COMMANDS), line
        assert line == line.rstrip()


@pytest.mark.parametrize("name", ["decode", "none", "device", "unknown", "ranks"])
def test_the_common_case_is_one_screen(name: str) -> None:
    assert len(render(report_samples.ALL[name]()).splitlines()) <= 23


@pytest.mark.parametrize("name", report_samples.ALL)
def test_colour_is_only_a_second_channel(name: str) -> None:
    findings = report_samples.ALL[name]()
    plain = render(findings)
    assert "\x1b" not in plain
    stripped = re.sub(r"\x1b\[[0-9;]*m", "", render(findings, colour=True))
    assert [line.rstrip() for line in stripped.splitlines()] == plain.splitlines()


def test_environment_says_nothing_about_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    before = render(report_samples.decode(), colour=True)
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb"), ("COLUMNS", "33"), ("FORCE_COLOR", "0")):
        monkeypatch.setenv(name, value)
    assert render(report_samples.decode(), colour=True) == before


def test_first_lines_are_enough_to_act_on() -> None:
    lines = render(report_samples.gpu()).splitlines()
    lead = sentences.lead(report_samples.gpu())
    assert lines[1] == ""
    assert lead.bottleneck in lines[2]
    assert lead.confidence in lines[2]
    assert lead.cost in lines[3]
    assert lead.ceiling in lines[4]


def test_a_loader_that_keeps_up_stops_early() -> None:
    shown = render(report_samples.none())
    assert report_samples.none().verdict.headline in shown
    assert "What to change" not in shown
    assert len(shown.splitlines()) < 8


def test_a_step_that_is_the_limit_is_said_to_be(said: Check) -> None:
    findings = report_samples.device()
    waits = replace(findings, verdict=replace(findings.verdict, ceiling_speedup=1.9))
    said("the step is the limit", sentences.lead(findings).ceiling)
    said("the step is the limit and the loop waits", sentences.lead(waits).ceiling)
    for each in (findings, waits):
        assert sentences.lead(each).ceiling in " ".join(render(each).split())


def test_what_is_missing_comes_with_what_to_type() -> None:
    shown = render(report_samples.unknown())
    assert "JPEG decode (fewer than 20 steps)" in shown
    assert "loaderprof run train.py --epochs 2" in shown
    assert "own cost not measured" in shown


def test_unmeasured_is_never_zero(said: Check) -> None:
    decode = report_samples.decode()
    verdict = replace(decode.verdict, step_s=None, wait_s=None, wait_share=None, ceiling_speedup=None)
    advice = (replace(decode.advice[0], expected=Expected(None, None, None, None)),)
    shown = render(replace(decode, verdict=verdict, advice=advice, stages=()))
    said("nothing measured", shown)
    assert re.search(rf"{re.escape(advice[0].action)} +not measured", shown)
    assert "step  " not in shown


def rank_line(findings: Findings) -> str:
    """Return what is said of all ranks, in one line."""
    (line,) = (line for line in render(findings, 300).splitlines() if line.startswith("  Ranks "))
    return line


def test_the_late_rank_has_a_line(said: Check) -> None:
    line = rank_line(report_samples.ranks())
    said("a late rank", line)
    assert all(number in line for number in ("rank 5 on node1", "262 ms", "214 ms"))


def test_even_ranks_are_told_so(said: Check) -> None:
    findings = report_samples.ranks()
    even = tuple(replace(rank, step_s=0.21, wait_s=0.1) for rank in findings.ranks)
    said("even ranks", rank_line(replace(findings, ranks=even)))


def test_who_waits_for_the_late_rank_in_its_own_step(said: Check) -> None:
    findings = report_samples.ranks()
    together = tuple(replace(rank, step_s=0.2, wait_s=0.15 if rank.rank == 5 else 0.01) for rank in findings.ranks)
    line = rank_line(replace(findings, ranks=together))
    said("a rank that is waited for", line)
    assert re.findall(r"rank \d(?= )|\d+ ms", line) == ["rank 5", "150 ms", "10 ms", "rank 0", "140 ms"]
    apart = tuple(replace(rank, step_s=0.2 if rank.rank % 2 else 0.15) for rank in together)
    assert "rank 0" not in rank_line(replace(findings, ranks=apart))


def test_changes_measured_already_are_not_sent_to_be_checked() -> None:
    shown = render(report_samples.gpu())
    assert re.search(r"1\.92x ± 0\.06 .*\b5\b", shown)
    assert "Check it" not in shown


@pytest.mark.parametrize(
    ("costs", "words"),
    [
        (Costs(2.0, 600_000_000, "one line"), ["2 cores", "0.6 GB", "one line"]),
        (Costs(-1.0, None, ""), ["frees 1 core"]),
        (Costs(0.0, 0, "one argument"), ["one argument"]),
        (Costs(), []),
    ],
)
def test_price(costs: Costs, words: list[str]) -> None:
    assert sentences.price(replace(report_samples.WORKERS, costs=costs)) == words


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("train.py --lr 1", "train.py"),
        ("python /a/b/train.py", "train.py"),
        ("-m pkg.train --x", "pkg.train"),
        ("torchrun --nproc-per-node 4 ddp.py", "ddp.py"),
        ("./start.sh", "start.sh"),
        ("bad 'quote", "bad"),
        ("", "a job"),
    ],
)
def test_script_is_named_in_one_word(command: str, name: str) -> None:
    assert sentences.script(command) == name
