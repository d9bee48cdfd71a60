"""The command line: what is wrong is told in one sentence with what to type, exits with 2, and writes nothing."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from golden_sentences import Check
from made import Made, Plan
from truths import LOAD, PLANS, light

from loaderprof import cli
from loaderprof.capture.hooks.settings import KEYS
from loaderprof.commands import run as run_command
from loaderprof.findings import Findings
from loaderprof.recording import files


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = Made(tmp_path_factory.mktemp("cli") / "r")
    made.finish(made.loop(made.process(), PLANS["decode"][0]))
    return made.folder


@pytest.fixture
def place(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a script and a recording, which is the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("print('ran')\n")
    shutil.copytree(original, tmp_path / "r")
    return tmp_path


def written(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def refused(capsys: pytest.CaptureFixture[str], place: Path, *arguments: str) -> tuple[str, str]:
    """Run a verb that must be refused; return its sentence and its hint."""
    before = written(place)
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert written(place) == before
    sentence, *hints = err.splitlines()
    assert sentence.startswith("loaderprof: ")
    assert len(hints) <= 1
    assert all(hint.startswith("  ") for hint in hints)
    return sentence.removeprefix("loaderprof: "), hints[0].strip() if hints else ""


WRONG = [
    ["run"],
    ["run", "-o", "out"],
    ["run", "missing.py"],
    ["run", "r"],
    ["run", "z" * 300],
    ["run", "broken.py"],
    ["run", "-m", "train.py"],
    ["run", "--", "no-such-launcher", "train.py"],
    ["run", "--set", "workers=4", "train.py"],
    ["run", "--set", "num_workers", "train.py"],
    ["run", "--set", "num_workers=many", "train.py"],
    ["run", "--set", "num_workers=--4", "train.py"],
    ["run", "--set", "num_workers=-1", "train.py"],
    ["run", "--set", "num_workers=\u00b2", "train.py"],
    ["run", "--set", "pin_memory=4", "train.py"],
    ["run", "--set", "train.batch_size=0", "train.py"],
    ["run", "--set", "multiprocessing_context=thread", "train.py"],
    ["run", "--nonsense", "train.py"],
    ["run", "-o", "r", "train.py"],
    ["run", "-o", "train.py", "train.py"],
    ["run", "-o", "train.py/inside", "train.py"],
    ["run", "-o", "/proc/loaderprof", "train.py"],
    ["run", "-o", "x" * 300, "train.py"],
    ["run", "-o", ".", "--force", "train.py"],
    ["tune"],
    ["tune", "missing.py"],
    ["tune", "--seconds", "0", "train.py"],
    ["tune", "-o", "r", "train.py"],
    ["tune", "-o", "train.py", "train.py"],
    ["report"],
    ["report", "missing"],
    ["report", "train.py"],
    ["report", "."],
    ["report", "z" * 300],
    ["report", "r", "--rank", "7"],
    ["report", "r", "--rank", "x"],
    ["report", "r", "--html", "train.py"],
    ["report", "r", "--html", "no/such/folder.html"],
    ["report", "r", "--html", "y" * 300],
    ["report", "r", "--figures", "train.py"],
    ["frobnicate"],
    ["--nonsense"],
]


@pytest.mark.parametrize("arguments", WRONG, ids=lambda words: " ".join(words)[:50])
def test_what_is_wrong_is_told_in_one_sentence(
    capsys: pytest.CaptureFixture[str], place: Path, said: Check, arguments: list[str]
) -> None:
    (place / "broken.py").write_text("def f(:\n")
    if "report" in arguments:
        (place / "r" / files.FINDINGS).write_text("")  # which `report` would write
        cli.main(["report", "r", "--json"])
        capsys.readouterr()
    message, remedy = refused(capsys, place, *arguments)
    # Python's own list of choices changes its form between versions; and long names are long.
    text = re.sub(r"\(choose from .*\)", "(choose from ...)", f"{message}\n{remedy}")
    said(*(re.sub(r"(.)\1{99,}", r"\1...", each) for each in (" ".join(arguments), text)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (files.META, '{"format": 99}'),
        (files.META, "{"),
        (files.META, "[]"),
        ("journals/z.lpj", "loaderprof-journal 9\n{}"),
    ],
)
@pytest.mark.parametrize("verb", [["report"], ["report", "--json"], ["check", "--max-wait", "10%"], ["verify"]])
def test_a_newer_or_damaged_recording_is_refused(
    capsys: pytest.CaptureFixture[str], place: Path, said: Check, verb: list[str], name: str, text: str
) -> None:
    (place / "r" / name).write_text(text)
    message, remedy = refused(capsys, place, verb[0], "r", *verb[1:])
    said(f"{verb[0]}, {name}: {text.splitlines()[0]}", f"{message}\n{remedy}")


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    (verbs,) = (action for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction))
    with pytest.raises(SystemExit) as left:
        cli.main(["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert {"run", "report", "env", "attach", "verify", "tune", "compare", "check", "export"} <= set(verbs.choices)
    for verb, parser in verbs.choices.items():
        assert f"\n    {verb} " in shown
        with pytest.raises(SystemExit) as left:
            cli.main([verb, "--help"])
        assert left.value.code == 0
        assert f"loaderprof {verb}" in capsys.readouterr().out
        assert parser.get_default("call") is not None


def test_without_a_verb_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "loaderprof run train.py" in capsys.readouterr().out


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"loaderprof {cli.__version__}\n"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, object]]]:
    """The jobs that `run` is asked to start, each with its options; none starts."""
    jobs: list[tuple[list[str], dict[str, object]]] = []

    def start(options: run_command.RunOptions) -> int:
        jobs.append((list(options.job), dataclasses.asdict(options)))
        return 0

    monkeypatch.setattr(run_command, "run_job", start)
    return jobs


@pytest.mark.parametrize(
    ("typed", "job", "ours"),
    [
        ("train.py --lr 1", ["train.py", "--lr", "1"], {"launcher": False, "module": False}),
        ("-o out train.py -o x", ["train.py", "-o", "x"], {"output": "out"}),
        ("--set num_workers=4 --no-html t.py --help", ["t.py", "--help"], {"html": False}),
        ("--output=out t.py", ["t.py"], {"output": "out"}),
        ("-m pkg -m x", ["pkg", "-m", "x"], {"launcher": False, "module": True}),
        ("-- torchrun -- t.py", ["torchrun", "--", "t.py"], {"launcher": True, "module": False}),
    ],
)
def test_words_after_the_script_are_the_scripts(
    started: list[tuple[list[str], dict[str, object]]], typed: str, job: list[str], ours: dict[str, object]
) -> None:
    assert cli.main(["run", *typed.split()]) == 0
    ((seen, options),) = started
    assert seen == job
    assert ours.items() <= options.items()


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("num_workers=4", 4),
        ("num_workers=0", 0),
        ("pin_memory=true", True),
        ("pin_memory=False", False),
        ("in_order=false", False),
        ("persistent_workers=True", True),
        ("prefetch_factor=none", None),
        ("prefetch_factor=8", 8),
        ("multiprocessing_context=spawn", "spawn"),
        ("batch_size=64", 64),
        ("train_loader.num_workers=2", 2),
    ],
)
def test_settings_are_values_of_python(
    started: list[tuple[list[str], dict[str, object]]], pair: str, value: object
) -> None:
    assert cli.main(["run", "--set", pair, "train.py"]) == 0
    ((_, options),) = started
    settings = options["settings"]
    assert settings == {pair.partition("=")[0]: value}
    assert isinstance(settings, dict)
    assert [type(each) for each in settings.values()] == [type(value)]


def test_each_setting_of_the_contract_can_be_set() -> None:
    assert set(KEYS) == {
        "num_workers",
        "prefetch_factor",
        "pin_memory",
        "persistent_workers",
        "in_order",
        "multiprocessing_context",
        "batch_size",
    }


def test_report_renders_again_and_keeps_the_findings(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    assert cli.main(["report", "r"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "Image decode" in out
    assert max(map(len, out.splitlines())) <= 80
    found = Findings.from_json((place / "r" / files.FINDINGS).read_text())
    assert found.verdict.bottleneck == "decode"


def test_report_as_json_prints_the_findings_and_nothing_else(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    assert cli.main(["report", "r", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out)["schema_version"] == 1
    assert out == (place / "r" / files.FINDINGS).read_text()


def test_report_to_a_page_replaces_it_only_when_told(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    assert cli.main(["report", "r", "--html", "page.html"]) == 0
    page = (place / "page.html").read_text()
    assert page.startswith("<!doctype html>".upper()) or page.lower().startswith("<!doctype html>")
    (place / "page.html").write_text("mine")
    assert cli.main(["report", "r", "--html", "page.html"]) == 2
    assert (place / "page.html").read_text() == "mine"
    assert cli.main(["report", "r", "--html", "page.html", "--force"]) == 0
    assert len((place / "page.html").read_text()) > 1000
    assert capsys.readouterr().out == ""


SAMPLE = Path(__file__).parents[1] / "sample_runs" / "decode_bound" / "recording"


def test_report_draws_the_pictures_of_a_sample_run(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    shutil.copytree(SAMPLE, place / "sample")
    assert cli.main(["report", "sample", "--figures", "out/pictures"]) == 0
    assert capsys.readouterr() == ("", "")
    drawn = {path.name: path.read_bytes() for path in (place / "out" / "pictures").iterdir()}
    heads = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}
    names = ("anatomy", "speedups", "timeline", "batches", "samples")
    assert set(drawn) == {f"{name}.{kind}" for name in names for kind in heads}
    for name, content in drawn.items():
        assert content.startswith(heads[name.split(".")[1]])
    assert "decode" in drawn["anatomy.svg"].decode()


def test_pictures_are_replaced_only_when_told(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    (place / "out").mkdir()
    (place / "out" / "speedups.png").write_text("mine")
    (place / "out" / "notes.txt").write_text("mine")
    assert cli.main(["report", "r", "--figures", "out"]) == 2
    assert "speedups.png exists already" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in (place / "out").iterdir()} == {
        "speedups.png": "mine",
        "notes.txt": "mine",
    }
    assert cli.main(["report", "r", "--figures", "out", "--force"]) == 0
    assert (place / "out" / "speedups.png").read_bytes().startswith(b"\x89PNG")
    assert (place / "out" / "notes.txt").read_text() == "mine"


def test_report_on_one_rank_is_about_that_rank(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    made = Made(place / "ranks", cores=16)
    for rank, fetch in enumerate((light(cpu=0.03), light(cpu=0.001))):
        process = made.process(environment={"RANK": str(rank)})
        made.loop(process, Plan(name=f"loader{rank}", wait=fetch.wall(0), step=0.02, fetch=fetch))
    made.finish()
    for rank, wait in ((0, 0.03), (1, 0.001)):
        assert cli.main(["report", "ranks", "--json", "--rank", str(rank)]) == 0
        found = Findings.from_json(capsys.readouterr().out)
        assert [loader.name for loader in found.loaders] == [f"loader{rank}"]
        assert found.verdict.wait_s == pytest.approx(wait)
    assert not (place / "ranks" / files.FINDINGS).exists()


def test_a_folder_that_cannot_be_written_is_reported_on_all_the_same(
    capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    (place / "r" / files.FINDINGS).mkdir()
    assert cli.main(["report", "r"]) == 0
    assert LOAD.rsplit(".", 1)[-1] in capsys.readouterr().out


def test_env_tells_each_thing_and_why_one_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pynvml = pytest.importorskip("pynvml")

    def absent() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    assert cli.main(["env"]) == 0
    rows = {line[:12].strip(): line[12:] for line in capsys.readouterr().out.splitlines()}
    assert {
        "loaderprof",
        "system",
        "GPU",
        "stacks",
        "CPU budget",
        "run queue",
        "disk reads",
        "/dev/shm",
        "open files",
        "packages",
    } <= set(rows)
    assert all(rows.values())
    assert rows["GPU"] == "not measured: no NVIDIA driver"
    assert rows["CPU budget"].split()[0].replace(".", "").isdigit()
    assert "torch " in rows["packages"]


def run(place: Path, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loaderprof", *arguments],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
        **options,  # type: ignore[call-overload]
    )


def test_a_script_without_a_loader_runs_as_ever_and_is_told_of_watch(place: Path) -> None:
    (place / "train.py").write_text("import sys\nprint('ran', sys.argv[1:])\nsys.exit(3)\n")
    done = run(place, "run", "-o", "out", "train.py", "--json")
    assert (done.returncode, done.stdout) == (3, "ran ['--json']\n")
    assert "DataLoader" in done.stderr
    assert "watch(" in done.stderr
    found = Findings.from_json((place / "out" / files.FINDINGS).read_text())
    assert (found.verdict.cause, found.run.exit_code) == ("no-loader", 3)
    assert "--json" in found.run.command


def test_force_replaces_a_recording_and_nothing_beside_it(place: Path) -> None:
    (place / "r" / "notes.txt").write_text("mine")
    old = {path.name for path in (place / "r" / files.JOURNALS).iterdir()}
    done = run(place, "run", "--force", "--no-html", "-o", "r", "train.py")
    assert done.returncode == 0
    assert (place / "r" / "notes.txt").read_text() == "mine"
    assert not old & {path.name for path in (place / "r" / files.JOURNALS).iterdir()}
    assert not (place / "r" / files.PAGE).exists()
    assert json.loads((place / "r" / files.META).read_text())["exit_code"] == 0


def test_a_reader_that_goes_away_is_no_error(place: Path) -> None:
    command = f"{sys.executable} -m loaderprof report r --json | head -c 1"
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )
    assert (done.stdout, done.stderr) == ("{", "")
