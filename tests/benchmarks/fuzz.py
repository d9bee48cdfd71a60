"""Damage recordings at random and read them in every way: nothing but a sentence and an exit code may come of it.

    python tests/benchmarks/fuzz.py                     for a minute
    python tests/benchmarks/fuzz.py --seconds 3600      for an hour
    python tests/benchmarks/fuzz.py --seed 7 --rounds 1 one damaged recording again, as a line of the output names it

Each round copies a sample run's recording, damages it in one to four ways, and runs every verb that reads one over it, in a
process with little memory. A traceback, another exit code than 0, 1 or 2, a verb that takes long, and memory beyond the
bound are told with the round's seed.
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

from loaderprof import cli

SAMPLES = sorted((Path(__file__).parents[2] / "sample_runs").glob("*/recording"))
# What reading a sample recording may take: address space, libraries included, and seconds for one verb.
MEMORY_BYTES, LIMIT_S = 4 << 30, 30
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
    path.symlink_to(rng.choice(("/dev/zero", "/etc/passwd", path.name, "/proc/self/mem", "../../..")))


def pipe(path: Path, _: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (
    flipped, flipped, truncated, with_numbers, with_numbers, with_numbers, shuffled, nested, huge, gone, folder, link, pipe,
)  # fmt: skip


def damage(recording: Path, rng: random.Random) -> str:
    told = []
    for _ in range(rng.randint(1, 4)):
        files = sorted(path for path in recording.rglob("*") if path.is_file() and not path.is_symlink())
        if files:
            path, way = rng.choice(files), rng.choice(DAMAGES)
            # A file of a terabyte is not read to be damaged further.
            if path.stat().st_size < 1 << 28:
                way(path, rng)
                told.append(f"{way.__name__} {path.relative_to(recording)}")
    return ", ".join(told)


def verbs(recording: Path, whole: Path, out: Path) -> list[list[str]]:
    exports = [
        ["export", str(recording), "--format", each, "-o", str(out / each), "--force"] for each in cli.FORMATS[:-1]
    ]
    return [
        ["report", str(recording)], ["report", str(recording), "--json"],
        ["report", str(recording), "--html", str(out / "page.html"), "--force"],
        ["compare", str(recording), str(whole)], ["compare", str(whole), str(recording), "--json"],
        ["check", str(recording), "--max-wait", "10%"], *exports,
    ]  # fmt: skip


def read(recording: Path, whole: Path, out: Path) -> str | None:
    """Run every verb over a recording; returns what went wrong, or None."""

    def late(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    for verb in verbs(recording, whole, out):
        signal.alarm(LIMIT_S)
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
            signal.alarm(0)
    return None


def round_of(seed: int) -> str | None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        whole = rng.choice(SAMPLES)
        recording = Path(shutil.copytree(whole, Path(name) / "recording"))
        told = damage(recording, rng)
        wrong = read(recording, whole, Path(name))
    return f"seed {seed} ({told}): {wrong}" if wrong else None


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
