"""`check`: limits from flags and pyproject.toml, what is said of each, and the exit code that CI sees."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import real
from golden_sentences import Check
from made import Fetch, Made, Plan, one_loop

from loaderprof.cli import main
from loaderprof.commands import check
from loaderprof.commands.check import CheckLimits, Result
from loaderprof.conclude import findings_of
from loaderprof.errors import UsageError

# 30 of 100 ms waiting, 16 samples a batch: 160 samples a second. Reads take most of a worker's time.
PLAN = Plan(
    wait=0.03,
    step=0.07,
    workers=2,
    fetch=Fetch(cpu=0.01, blocked=0.19, operators=[("builtins.open", 0.19, 0.005)]),
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recording in a folder that is the current one, without a pyproject.toml."""
    monkeypatch.chdir(tmp_path)
    return one_loop(tmp_path / "seen", PLAN).folder


@pytest.mark.parametrize(
    ("flags", "code", "numbers"),
    [
        (["--max-wait", "31%"], 0, ["30 %", "31 %"]),
        (["--max-wait", "0.31"], 0, ["30 %", "31 %"]),
        (["--max-wait", "29 %"], 1, ["30 %", "29 %"]),
        (["--min-samples-per-s", "159"], 0, ["160 samples/s", "159 samples/s"]),
        (["--min-samples-per-s", "161"], 1, ["160 samples/s", "161 samples/s"]),
        (["--max-step", "101ms"], 0, ["100 ms", "101 ms"]),
        (["--max-step", "0.099"], 1, ["100 ms", "99 ms"]),
        (["--max-step", "0.001 min"], 1, ["100 ms", "60 ms"]),
    ],
)
def test_a_limit(
    folder: Path, capsys: pytest.CaptureFixture[str], said: Check, flags: list[str], code: int, numbers: list[str]
) -> None:
    assert main(["check", str(folder), *flags]) == code
    line = capsys.readouterr().out
    said(" ".join(flags), line)
    assert all(number in line for number in numbers)
    assert line.startswith("ok " if code == 0 else "broken ")


def test_a_bottleneck_that_must_not_be(folder: Path, capsys: pytest.CaptureFixture[str], said: Check) -> None:
    assert main(["check", str(folder), "--bottleneck-not", "decode,read"]) == 1
    said("--bottleneck-not", capsys.readouterr().out)
    assert main(["check", str(folder), "--bottleneck-not", "decode"]) == 0


def test_one_line_a_limit_and_a_broken_one_decides(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(folder), "--max-wait", "50%", "--max-step", "1ms"]) == 1
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["ok", "max-wait"],
        ["broken", "max-step"],
    ]


def test_too_few_steps_are_no_evidence_either_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], said: Check
) -> None:
    short = one_loop(tmp_path / "short", Plan(wait=0.03, step=0.07, batches=8)).folder
    for limit in ("1%", "99%"):
        assert main(["check", str(short), "--max-wait", limit]) == 2
        said(f"too few steps for {limit}", capsys.readouterr().out)
    assert main(["check", str(short), "--bottleneck-not", "read"]) == 2


def test_a_run_without_a_loader_is_no_evidence(tmp_path: Path, capsys: pytest.CaptureFixture[str], said: Check) -> None:
    made = Made(tmp_path / "bare")
    made.process()
    assert main(["check", str(made.finish(1.0)), "--min-samples-per-s", "1", "--max-wait", "10%"]) == 2
    lines = capsys.readouterr().out
    said("no loader", lines)
    assert [line.split()[:2] for line in lines.splitlines()] == [
        ["unknown", "max-wait"],
        ["unknown", "min-samples-per-s"],
    ]


def test_a_rank_each_adds_to_the_samples(tmp_path: Path) -> None:
    made = Made(tmp_path / "ranks")
    ended = [made.loop(made.process(environment={"RANK": rank}), PLAN) for rank in ("0", "1")]
    made.finish(max(ended))
    assert check.samples_per_s(findings_of(made.read())) == pytest.approx(320, rel=0.01)


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--max-wait", "much"],
        ["--max-wait", "10"],
        ["--max-wait", "-1%"],
        ["--max-step", "10 parsec"],
        ["--min-samples-per-s", "nan"],
        ["--bottleneck-not", "decoding"],
        ["--bottleneck-not", ","],
    ],
)
def test_wrong_use_is_one_sentence(folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    assert main(["check", str(folder), *flags]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("loaderprof: ")
    assert "Traceback" not in said.err


needs_toml = pytest.mark.skipif(sys.version_info < (3, 11), reason="the table is read with tomllib")


@needs_toml
def test_limits_of_the_project_and_flags_above_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("pyproject.toml").write_text(
        '[tool.loaderprof]\nmax-wait = "10%"\nmin-samples-per-s = 100\nbottleneck-not = ["decode"]\n[tool.loaderprof.run]\nhtml = false\n'
    )
    assert main(["check", str(folder)]) == 1
    outcomes = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert outcomes == [["broken", "max-wait"], ["ok", "min-samples-per-s"], ["ok", "bottleneck-not"]]
    assert main(["check", str(folder), "--max-wait", "40%"]) == 0


@needs_toml
@pytest.mark.parametrize("text", ["max_wait = 1\n", "max-wait = true\n", "max-wait = \n", "bottleneck-not = 3\n"])
def test_a_table_that_cannot_be_read_as_limits(folder: Path, text: str) -> None:
    Path("pyproject.toml").write_text("[tool.loaderprof]\n" + text)
    assert main(["check", str(folder)]) == 2


def test_an_older_python_says_that_it_cannot_read_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], said: Check
) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text('[tool.loaderprof]\nmax-wait = "10%"\n')
    monkeypatch.setattr(check.sys, "version_info", (3, 10, 14))
    with pytest.raises(UsageError) as error:
        check.from_project(path, wanted=True)
    assert check.from_project(path, wanted=False) == {}
    texts = f"{error.value.message}\n{error.value.hint}\n{capsys.readouterr().err}"
    said("an older Python", texts)


def test_a_project_without_the_table_gives_no_limits(tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    assert check.from_project(path, wanted=True) == {}
    path.write_text("[tool.other]\nmax-wait = 1\n")
    assert check.from_project(path, wanted=True) == {}


RESULTS = (
    Result("max-wait", "broken", "the loop waits 38 % of every step; at most 10 % allowed"),
    Result("max-step", "ok", "a step takes 82 ms; at most 200 ms allowed"),
    Result("bottleneck-not", "unknown", 'Not enough evidence: <&"> 3 steps'),
)


def test_junit_holds_each_limit_with_its_outcome(tmp_path: Path, folder: Path) -> None:
    suite = ElementTree.fromstring(check.junit_xml(RESULTS)).find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    kinds = {case.get("name"): [child.tag for child in case] for case in suite}
    assert kinds == {"max-wait": ["failure"], "max-step": ["system-out"], "bottleneck-not": ["error"]}
    error = suite.find("testcase/error")
    assert error is not None
    assert error.get("message") == RESULTS[2].text
    main(["check", str(folder), "--max-wait", "50%", "--junit", str(tmp_path / "junit.xml")])
    assert ElementTree.parse(tmp_path / "junit.xml").getroot().get("failures") == "0"


def test_a_junit_file_that_cannot_be_written_is_wrong_use(folder: Path, tmp_path: Path) -> None:
    assert main(["check", str(folder), "--max-wait", "50%", "--junit", str(tmp_path / "no" / "junit.xml")]) == 2


def test_annotations_of_github_are_escaped() -> None:
    assert check.github_lines(RESULTS).splitlines() == [
        "::error title=loaderprof max-wait::the loop waits 38 %25 of every step; at most 10 %25 allowed",
        '::warning title=loaderprof bottleneck-not::Not enough evidence: <&"> 3 steps',
    ]


def test_exit_codes() -> None:
    broken, fine, unknown = RESULTS
    assert [check.exit_code(each) for each in ((fine,), (fine, unknown), RESULTS)] == [0, 2, 1]
    assert check.exit_code((broken, fine)) == 1


def test_no_limit_asked_for_gives_no_line(folder: Path) -> None:
    found = findings_of(one_loop(folder.parent / "again", PLAN))
    assert check.examine(found, CheckLimits()) == ()


@pytest.mark.slow
def test_a_real_run_is_told_with_its_exit_code(tmp_path: Path) -> None:
    done = real.loaderprof(
        "check", str(real.recording()), "--max-wait", "10%", "--min-samples-per-s", "1", cwd=tmp_path
    )
    assert done.returncode == 1, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["broken", "ok"]
