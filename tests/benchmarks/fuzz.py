"""Damage recordings at random and read them in every way: nothing but a sentence and an exit code may come of it.

    python tests/benchmarks/fuzz.py                     for a minute
    python tests/benchmarks/fuzz.py --seconds 3600      for an hour
    python tests/benchmarks/fuzz.py --seed 7 --rounds 1 one damaged recording again, as a line of the output names it

Each round copies a sample run's recording, every second one with the recordings of one to three further nodes in it, damages
it in one to six ways, and runs every verb that reads one over it, in a process with little memory. A traceback, another exit
code than 0, 1 or 2, a verb that takes long, memory beyond the bound, and anything written outside of the recording are told
with the round's seed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from loaderprof import cli, findings
from loaderprof.errors import RecordingError
from loaderprof.recording import files

SAMPLES = sorted((Path(__file__).parents[2] / "sample_runs").glob("*/recording"))
# What reading a sample recording may take: address space, libraries included, and seconds of CPU for one verb.
MEMORY_BYTES, LIMIT_S = 4 << 30, 30
PREFIX = "fuzz-"
NUMBERS = (
    b"-1",
    b"0",
    b"1e999",
    b"NaN",
    b"9223372036854775807",
    b"99999999999999999999",
    b'"x"',
    b"null",
    b"[]",
    b"{}",
    b"1e-300",
)
# As file systems take them and terminals, pages and JSON do not.
NAMES = ("\x1b[31m", "\udcff\udc80", "two\nlines", "x" * 200, "<script>", "%s{0}", "-rf", "\u202e")
INTEGERS = (0, 1, -1, 2**31, 2**63 - 1, -(2**63), 10**15)


def flipped(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 64)):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def truncated(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randint(0, path.stat().st_size))


def with_numbers(path: Path, rng: random.Random) -> None:
    """Put numbers that cannot be in the place of some: whole words of a journal, digits of a text."""
    data = bytearray(path.read_bytes())
    if path.suffix == ".lpj":
        for _ in range(rng.randint(1, 16)):
            at = 8 * rng.randrange(max(1, len(data) // 8 - 1))
            data[at : at + 8] = rng.choice(INTEGERS).to_bytes(8, "little", signed=True)
    else:
        places = [at for at, byte in enumerate(data) if 48 <= byte <= 57 and not 48 <= data[at - 1] <= 57]
        for at in sorted(rng.sample(places, min(len(places), rng.randint(1, 8))), reverse=True):
            end = next((after for after in range(at, len(data)) if not 48 <= data[after] <= 57), len(data))
            data[at:end] = rng.choice(NUMBERS)
    path.write_bytes(data)


def shuffled(path: Path, rng: random.Random) -> None:
    """Swap stretches, so that whole records and lines stand where others belong."""
    data = path.read_bytes()
    size = rng.choice((1, 8, 128, 4096))
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    for _ in range(rng.randint(1, 8)):
        a, b = rng.randrange(len(pieces) or 1), rng.randrange(len(pieces) or 1)
        if pieces:
            pieces[a], pieces[b] = pieces[b], pieces[a]
    path.write_bytes(b"".join(pieces))


def nested(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.choice((b"[", b'{"a":')) * rng.choice((10, 1000, 1_000_000)))


def huge(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.choice((1 << 30, 1 << 40)))


def gone(path: Path, _: random.Random) -> None:
    path.unlink()


def folder(path: Path, _: random.Random) -> None:
    path.unlink()
    path.mkdir()


def link(path: Path, rng: random.Random) -> None:
    path.unlink()
    aims = (
        "/dev/zero",
        "/etc/passwd",
        path.name,
        "/proc/self/mem",
        "../../..",
        "../" * 9 + str(mine(path)),
        str(mine(path)),
    )
    path.symlink_to(rng.choice(aims))


def pipe(path: Path, _: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def renamed(path: Path, rng: random.Random) -> None:
    path.rename(path.with_name(rng.choice(NAMES) + path.suffix))


def linked(path: Path, rng: random.Random) -> None:
    # Each link to a main process's journal is one more rank, whose loops are concluded from.
    for number in range(rng.choice((1, 20))):
        path.with_name(f"{number}-{path.name}").hardlink_to(path)


def with_links(path: Path, rng: random.Random) -> None:
    """Put links where reading, or writing what was concluded, would follow them to a file of the user's."""
    for name in (files.FINDINGS, files.PAGE, "verified.json", files.META):
        link_of = path.parent / (name + rng.choice(("", ".new")))
        if not link_of.exists() and not link_of.is_symlink():
            link_of.symlink_to(mine(path))


def led_away(folder: Path, rng: random.Random) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(rng.choice(("..", ".", "/", "/dev", "/proc/self/fd", folder.name, str(mine(folder).parent))))


def no_folder(folder: Path, rng: random.Random) -> None:
    shutil.rmtree(folder)
    rng.choice((os.mkfifo, Path.touch, Path.mkdir))(folder)


def crowded(folder: Path, rng: random.Random) -> None:
    """Put many files and folders beside what is there, and one folder into itself."""
    for number in range(rng.choice((3, 600))):
        rng.choice((Path.touch, Path.mkdir))(folder / f"{number}{rng.choice(('', '.lpj', '-node'))}")
    shutil.copytree(folder, folder / "again", symlinks=True)


def mine(path: Path) -> Path:
    """A file of the user's, which no recording may lead to: beside the recording."""
    return next(each for each in path.parents if each.name.startswith(PREFIX)) / "mine"


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (
    flipped,
    flipped,
    truncated,
    with_numbers,
    with_numbers,
    with_numbers,
    shuffled,
    nested,
    huge,
    gone,
    folder,
    link,
    pipe,
    renamed,
    linked,
    with_links,
)
FOLDER_DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (led_away, no_folder, crowded, renamed)


def damage(recording: Path, rng: random.Random) -> str:
    message = []
    for _ in range(rng.randint(1, 6)):
        there = sorted(path for path in recording.rglob("*") if not path.is_symlink())
        whole, folders = [path for path in there if path.is_file()], [path for path in there if path.is_dir()]
        path, ways = (
            (rng.choice(folders), FOLDER_DAMAGES) if folders and rng.random() < 0.1 else (rng.choice(whole), DAMAGES)
        )
        # A file of a terabyte is not read to be damaged further.
        if path.stat().st_size < 1 << 28:
            way = rng.choice(ways)
            with contextlib.suppress(FileExistsError, IsADirectoryError, NotADirectoryError):
                way(path, rng)
            message.append(f"{way.__name__} {path.relative_to(recording)!s:.60}")
        if not any(path.is_file() for path in recording.rglob("*")):
            break
    return ", ".join(message).encode("ascii", "backslashreplace").decode()


def with_nodes(recording: Path, rng: random.Random) -> None:
    """Put the recordings of further nodes into a recording, as a shared folder of several nodes holds them."""
    for number in range(1, rng.randint(2, 4)):
        shutil.copytree(rng.choice(SAMPLES), recording / files.NODES / f"{number}-node{number}")


def verbs(recording: Path, whole: Path, out: Path) -> list[list[str]]:
    exports = [
        ["export", str(recording), "--format", each, "-o", str(out / each), "--force"]
        for each in list(files.EXPORTS)[:-1]
    ]
    return [
        ["report", str(recording)],
        ["report", str(recording), "--json"],
        ["report", str(recording), "--html", str(out / "page.html"), "--force"],
        ["compare", str(recording), str(whole)],
        ["compare", str(whole), str(recording), "--json"],
        ["check", str(recording), "--max-wait", "10%"],
        *exports,
    ]


def read(recording: Path, whole: Path, out: Path) -> str | None:
    """Run every verb over a recording; returns what went wrong, or None."""

    def late(*_: object) -> None:
        raise Late

    with contextlib.suppress(RecordingError):
        findings.load(recording)
    # By the CPU, which a busy machine does not disturb; and by the clock for what waits without end.
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, late)
    for verb in verbs(recording, whole, out):
        signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
        signal.alarm(10 * LIMIT_S)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
                code = cli.main(verb)
            if code not in (0, 1, 2) or "Traceback" in said.getvalue():
                return f"{' '.join(verb)}: exit code {code}: {said.getvalue()[-200:]}"
        except SystemExit as left:
            if left.code not in (0, 1, 2):
                return f"{' '.join(verb)}: exit code {left.code}"
        except BaseException:
            return f"{' '.join(verb)}:\n{traceback.format_exc(limit=-4)}"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)
    return None


class Late(BaseException):
    """A verb took too long. No error that a reader of files expects: a pipe that never answers would look like one."""


def round_of(seed: int) -> str | None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name:
        whole = rng.choice(SAMPLES)
        recording = Path(shutil.copytree(whole, Path(name) / "recording"))
        (Path(name) / "mine").write_text(PREFIX)
        (Path(name) / "out").mkdir()
        if seed % 2:
            with_nodes(recording, rng)
        message = damage(recording, rng)
        wrong = read(recording, whole, Path(name) / "out")
        if {each.name for each in Path(name).iterdir()} != {"recording", "mine", "out"}:
            wrong = wrong or "something was written beside the recording"
        if (Path(name) / "mine").read_text() != PREFIX:
            wrong = wrong or "a file outside of the recording was written"
    return f"seed {seed} ({message}): {wrong}" if wrong else None


def work(first: int, step: int, until: float, rounds: int | None, answers: multiprocessing.SimpleQueue[object]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    done = 0
    while time.monotonic() < until and (rounds is None or done < rounds):
        answers.put(round_of(first + done * step))
        done += 1
    answers.put(done)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int)
    asked = parser.parse_args()
    answers: multiprocessing.SimpleQueue[object] = multiprocessing.SimpleQueue()
    count = 1 if asked.rounds else os.cpu_count() or 1
    until = time.monotonic() + asked.seconds
    workers = [
        multiprocessing.Process(target=work, args=(asked.seed + number, count, until, asked.rounds, answers))
        for number in range(count)
    ]
    for worker in workers:
        worker.start()
    rounds, wrong, ended = 0, 0, 0
    while ended < count:
        if answers.empty() and not any(worker.is_alive() for worker in workers):
            break
        if answers.empty():
            time.sleep(0.05)
            continue
        answer = answers.get()
        if isinstance(answer, int):
            rounds, ended = rounds + answer, ended + 1
        elif answer:
            wrong += 1
            print(answer, flush=True)
    died = count - ended
    for worker in workers:
        worker.join()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    print(f"{rounds} damaged recordings, {wrong} not taken well, {died} readers died; at most {peak} MiB")
    return 1 if wrong or died else 0


if __name__ == "__main__":
    sys.exit(main())
