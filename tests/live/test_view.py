"""The live view: keys, the job's output kept whole, and a terminal that is as it was, however the view ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from golden_sentences import Check
from terminals import JOB, Terminal, Tmux, environment, needs_tmux

from loaderprof import cli
from loaderprof.analyze.glance import Glance
from loaderprof.capture.stack_sampler import find_py_spy
from loaderprof.live import screen
from loaderprof.live.view import Output

pytestmark = pytest.mark.timeout(400)
RUN = ("-m", "loaderprof", "run", "--live", "--no-html", "-o", "out")
ENTERED, LEFT = b"\x1b[?1049h\x1b[?25l", b"\x1b[?25h\x1b[?1049l"
GLANCE = Glance(412, 7.9, 0.62, 0.1, 0, 2, {"decode": 0.298, "transform": 0.09, "read": 0.008})


def frame(width: int = 80, height: int = 24, glance: Glance = GLANCE, **more: object) -> list[str]:
    waits = (0.0, None, 0.5, 0.99)
    return screen.render(
        screen.ScreenFrame("train", 87.0, glance, waits, **more), width=width, height=height, colour=False
    )  # type: ignore[arg-type]


def test_a_frame_says_what_is_known() -> None:
    text = "\n".join(frame(output=("epoch 1", "epoch 2")))
    for each in (
        "loaderprof   train   1 min 27 s",
        "412 steps   7.9 steps/s   0 ready",
        "62 % of its time",
        "decode (a guess;",
        "made by 2 workers in 396 ms",
        "decode       75 %  ####",
        "▁·▅█",
        "  epoch 2\n",
        "q leave   p pause   ? help",
    ):
        assert each in text


def test_a_frame_of_a_watched_job_is_of_samples() -> None:
    text = "\n".join(frame(glance=Glance(wait_share=0.4, workers=1, costs={"read": 3, "decode": 1}, samples=812)))
    assert "812 stack samples so far" in text
    assert "is made by 1 worker\n" in re.sub(" +\n", "\n", text)
    assert "read         75 %" in text


@pytest.mark.parametrize("size", [(40, 10), (60, 12), (80, 24), (200, 60)])
@pytest.mark.parametrize(
    "more", [{}, {"help": True}, {"paused": True}, {"output": tuple("x" * 300 for _ in range(99))}]
)
@pytest.mark.parametrize("glance", [Glance(), Glance(1), GLANCE, Glance(samples=0)])
def test_a_frame_has_the_size_of_the_terminal(size: tuple[int, int], more: dict[str, object], glance: Glance) -> None:
    lines = frame(*size, glance, **more)
    assert len(lines) == size[1]
    assert max(map(len, lines)) <= size[0]
    assert "? help" in lines[-1]
    assert ("paused" in lines[0]) == ("paused" in more)
    assert any("leave the view" in line for line in lines) == ("help" in more)


def test_output_is_shown_as_it_looks_and_harmless(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Output, "fit", lambda _: None)  # there is no terminal to fit
    output = Output()
    os.write(output.job_end, b"\x1b[31mred\x1b[0m\r\n 1%|#\r 50%|##\r\x1b]0;title\x07\n\n\x1b[2J\x07bell\xff\nlast")
    assert output.read(hold=True)
    assert output.lines() == ["red", " 50%|##", " bell�", "last"]
    output.started()
    output.close()
    capfd.readouterr()


def test_without_a_terminal_it_is_refused(tmp_path: Path, said: Check) -> None:
    (tmp_path / "train.py").write_text("print('ran')\n")
    for verb in (("run", "--live", "train.py"), ("attach", "--live", str(os.getpid()))):
        done = subprocess.run(
            [sys.executable, "-m", "loaderprof", *verb],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
            env=environment(),
        )
        assert (done.returncode, done.stdout) == (2, "")
        said("no terminal", done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]


def test_live_is_an_option_of_run_and_attach() -> None:
    assert cli.parser().parse_args(["run", "--live"]).live
    assert cli.parser().parse_args(["attach", "1", "--live"]).live


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(JOB)
    return tmp_path


def shell_line(job: Path, arguments: tuple[str, ...], script: str = "train.py") -> str:
    """A shell command that runs the job, and says whether the terminal is as it was before."""
    (job / "go.sh").write_text(
        f"stty -a > before; {sys.executable} {' '.join(arguments)} {script}; echo code=$?\n"
        "stty -a | cmp - before && echo the terminal is as it was\n"
    )
    return "clear; . ./go.sh"


def shows(*texts: str) -> Callable[[list[str]], bool]:
    return lambda rows: all(any(text in row for row in rows) for text in texts)


def output_lines(history: str) -> list[str]:
    """The job's own lines, each once and in order."""
    return [row for row in history.split("\n") if row.startswith("line ")]


@needs_tmux
def test_the_keys_of_the_view(job: Path, tmux: Tmux) -> None:
    tmux.type(shell_line(job, RUN), "Enter")
    tmux.until(shows("q leave   p pause", " steps/s", "Output of the job", "  line "))
    tmux.type("?")
    tmux.until(shows("leave the view; the job goes on"))
    tmux.type("?")
    tmux.until(lambda rows: shows("steps/s")(rows) and not shows("leave the view")(rows))
    tmux.type("p")
    paused = next(row for row in tmux.until(shows("p go on", "paused")) if "steps/s" in row)
    tmux.type("?")
    tmux.until(shows("leave the view; the job goes on"))
    tmux.type("?")
    # Drawn again, with the numbers of before.
    tmux.until(lambda rows: paused in rows and "paused" in rows[0])
    tmux.type("p")
    tmux.until(lambda rows: "paused" not in rows[0] and shows("steps/s")(rows) and paused not in rows)
    assert "begins" not in tmux.history()[: tmux.history().index("loaderprof   ")]
    tmux.type("q")
    rows = tmux.until(lambda rows: shows("line ")(rows) and not shows("q leave")(rows))
    count = len(output_lines(tmux.history()))
    tmux.until(lambda _: len(output_lines(tmux.history())) > count)
    (job / "stop").touch()
    rows = tmux.until(shows("code=3", "the terminal is as it was"))
    assert shows("Full report")(rows)
    history = tmux.history()
    assert history.index("begins") < history.index("line 0") < history.index("\nends\n") < history.index("loaderprof  ")
    assert output_lines(history) == [f"line {50 * number}" for number in range(len(output_lines(history)))]


@needs_tmux
def test_the_view_ends_with_the_job(job: Path, tmux: Tmux) -> None:
    tmux.type(shell_line(job, RUN), "Enter")
    tmux.until(shows("q leave", " steps/s"))
    tmux.type("x", "Enter")  # the view takes the keys; the job cannot see them
    tmux.until(shows("  line "))
    (main,) = (each for each in psutil.process_iter() if _runs(each, job))
    main.send_signal(signal.SIGKILL)
    tmux.until(shows("code=137", "the terminal is as it was"))
    history = tmux.history()
    assert history.index("begins") < history.index("line 0") < history.index("Full report")
    assert "q leave" not in history


def _runs(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.cmdline()[1:] == ["train.py"] and process.cwd() == str(folder)
    except psutil.Error:
        return False


@pytest.mark.slow
@needs_tmux
def test_ctrl_c_interrupts_the_job_and_ctrl_z_does_nothing(job: Path, tmux: Tmux) -> None:
    tmux.type(shell_line(job, RUN), "Enter")
    tmux.until(shows("q leave", " steps/s"))
    tmux.type("C-z")
    tmux.type("p")
    tmux.until(shows("p go on"))
    tmux.type("C-c")
    tmux.until(lambda rows: re.search(r"Full report|No batch|Not enough", "\n".join(rows)))
    assert "KeyboardInterrupt" in tmux.history()
    tmux.type("stty -a | cmp - before && echo as it was", "Enter")
    tmux.until(lambda rows: "as it was" in rows)


def test_a_job_that_asks_at_the_terminal_does_not_stop_the_view(
    tmp_path: Path, terminal: Callable[..., Terminal]
) -> None:
    (tmp_path / "train.py").write_text("print('answer', input())\n")
    seen = terminal(*RUN, "train.py")
    seen.read_until(b"q leave")
    for frames in range(2, 60):  # whoever of the two is first takes a key; the view goes on with its frames
        seen.type("\n")
        if LEFT in seen.read_until(rb"(?s)%s|(\x1b\[H.*){%d}" % (re.escape(LEFT), frames)):
            break
    assert seen.end() == 0
    assert b"answer" in seen.seen


def test_the_job_has_a_terminal_of_the_same_size(tmp_path: Path, terminal: Callable[..., Terminal]) -> None:
    (tmp_path / "train.py").write_text(
        "import os, sys, time\n"
        "print([stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)], tuple(os.get_terminal_size(1)))\n"
        "sys.stderr.write('\\x1b[1mbold\\x1b[0m 1%\\r 2%\\n')\n"
    )
    seen = terminal(*RUN, "train.py")
    assert seen.end() == 0
    assert seen.seen.count(ENTERED) == seen.seen.count(LEFT) == 1
    after = seen.seen.split(LEFT)[1]
    assert after.startswith(b"[True, True, True] (80, 24)\r\n\x1b[1mbold\x1b[0m 1%\r 2%\r\n")
    assert b"No batch" in after


@needs_tmux
@pytest.mark.skipif(find_py_spy() is None, reason="needs py-spy")
@pytest.mark.slow
def test_a_running_job_in_view(job: Path, tmux: Tmux) -> None:
    with subprocess.Popen(
        [sys.executable, "train.py"], cwd=job, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "begins\n"
        assert running.stdout.readline() == "line 0\n"
        attach = ("-m", "loaderprof", "attach", "--live", "--no-html", "--duration", "600", "-o", "seen")
        tmux.type(shell_line(job, attach, str(running.pid)), "Enter")
        tmux.until(shows("q leave", "0 stack samples so far"))
        tmux.until(lambda rows: re.search(r"\d\d\d stack samples so far", "\n".join(rows)))
        tmux.until(shows("of its time for the next batch"))
        tmux.type("q")
        tmux.until(lambda rows: shows("watching process")(rows) and not shows("q leave")(rows))
        tmux.type("C-c")
        tmux.until(shows("Full report"))
        tmux.type("stty -a | cmp - before && echo as it was", "Enter")
        tmux.until(lambda rows: "as it was" in rows)
        (job / "stop").touch()
        running.communicate(timeout=60)
        assert running.returncode == 3
