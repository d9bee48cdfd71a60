"""Recordings that lie elsewhere: `s3://bucket/run`, or any other URL that fsspec knows.

A job writes into a private folder of this machine, always: a live journal is a file mapping. What was recorded goes up
when the job has ended, and comes down into a temporary folder to be read. fsspec and the file system's own package are an
extra (`loaderprof[remote]`), imported only where a URL is given. Before a job they work in a process of their own
(`python -m loaderprof.recording.remote`), because they start threads, which the supervisor must not have by then.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from loaderprof import formatting
from loaderprof.errors import LoaderprofError, OutputError, RecordingError
from loaderprof.recording import files

INSTALL = "pip install 'loaderprof[remote]'"
# A client retries a store that does not answer without end; the start of a job waits for it no longer than this.
ANSWER_S = 60.0
# Kinds of places where folders have to be created. Object stores have none, and creating one could create a bucket.
_WITH_FOLDERS = {"file", "local", "sftp", "ssh", "smb", "hdfs", "webhdfs"}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# What is read of a recording; nothing else of a store comes onto this machine, whatever its names say.
_READ = re.compile(
    r"(nodes/[\w.-]*\w[\w.-]*/)?(recording\.json|host\.jsonl|stacks\.jsonl|verified\.json|journals/[\w.-]+\.lpj)"
)


def is_url(place: str | os.PathLike[str] | None) -> bool:
    """Return whether a place that the user named is a URL, not a folder."""
    return isinstance(place, str) and _URL.match(place) is not None


def shown(url: str) -> str:
    """Return a URL as it may be shown: without a password."""
    return re.sub(r"(//[^/@:]*):[^/@]*@", r"\1@", url)


def private_folder() -> Path:
    """Return this user's folder for recordings that are on their way, which nobody else may look into or write.

    Raises:
        OutputError: it cannot be made, or is somebody else's.
    """
    folder = Path(tempfile.gettempdir()) / f"loaderprof-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror}", "name another place with TMPDIR") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise OutputError(f"{folder} is not a private folder of yours", "name another place with TMPDIR")
    return folder


def on_its_way(stem: str, anew: bool = True) -> Path:
    """Return the folder in which a recording is made that goes to a URL.

    Args:
        stem: the job's short name.
        anew: give it a name that no other recording has; else `stem` is one that several ranks come to.
    """
    return private_folder() / (f"{stem}-{time.strftime('%m%d-%H%M%S')}-{os.getpid()}" if anew else stem)


def check(url: str, *, force: bool) -> None:
    """Check, before a job starts, that its recording can be written to a URL; with `force` remove the one that is there.

    Raises:
        OutputError: it cannot, or holds something.
    """
    command = [sys.executable, "-m", "loaderprof.recording.remote", url, "--force" if force else ""]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ANSWER_S, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise OutputError(
            f"{shown(url)} did not answer within {formatting.duration(ANSWER_S)}", "is its address right?"
        ) from None
    if done.returncode:
        with suppress(ValueError, KeyError, IndexError):
            answer = json.loads(done.stdout.splitlines()[-1])
            raise OutputError(answer["message"], answer["hint"])
        reason = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
        raise OutputError(f"{shown(url)} cannot be written: {reason}")


def clear(url: str, *, force: bool) -> None:
    """Do what `check` asks for, in this process."""
    system, root = _system(url)
    with _failing(f"{shown(url)} cannot be written"):
        there = _names(system, root)
        if there - {files.NODES}:  # another node of this job may have created it meanwhile
            if not force:
                raise OutputError(
                    f"{shown(url)} is not empty", "name another place with -o, or replace the recording with --force"
                )
            if files.META not in there:
                raise OutputError(f"{shown(url)} holds something that is no recording, so --force leaves it alone")
            for name in sorted(there & set(files.OWN)):
                system.rm(f"{root}/{name}", recursive=name in (files.JOURNALS, files.NODES))
        probe = f"{root}/{files.META}.new"
        _make_folder(system, root)
        system.pipe_file(probe, b"{}")
        system.rm_file(probe)


def send(folder: Path, url: str, *, force: bool = False) -> None:
    """Copy a recording to a URL, what makes it a recording last; the folder is left as it is.

    Raises:
        OutputError: not all of it could be written, or another recording came to be there meanwhile.
    """
    system, root = _system(url)
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    names.sort(key=lambda name: name == files.META)
    with _failing(f"{shown(url)} cannot be written"):
        if not force and system.exists(f"{root}/{files.META}"):
            raise OutputError(f"{shown(url)} holds another recording by now")
        for name in names:
            target = f"{root}/{name}"
            _make_folder(system, target.rpartition("/")[0])
            system.put_file(str(folder / name), target)


def hand_over(folder: Path, url: str, *, force: bool = False) -> bool:
    """Send a recording and remove the folder; where that fails, say on stderr why and where the recording is.

    Returns whether it was sent.
    """
    try:
        send(folder, url, force=force)
    except KeyboardInterrupt:
        sys.stderr.write(f"loaderprof: interrupted; the recording is not at {shown(url)}, it stays in {folder}\n")
        return False
    except LoaderprofError as error:
        sys.stderr.write(f"loaderprof: {error.message}; the recording stays in {folder}\n")
        return False
    shutil.rmtree(folder, ignore_errors=True)
    return True


@contextmanager
def local(place: str) -> Iterator[Path]:
    """Give the folder of a recording: the one that was named, or a temporary copy of what lies at a URL.

    Raises:
        RecordingError: there is no recording at the URL, or it cannot be read.
    """
    if not is_url(place):
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="loaderprof-") as folder:
        _fetch(place, Path(folder))
        try:
            yield Path(folder)
        except LoaderprofError as error:
            error.message = error.message.replace(folder, shown(place))
            raise


def _fetch(url: str, folder: Path) -> None:
    try:
        system, root = _system(url)
        with _failing(f"{shown(url)} cannot be read"):
            if not system.exists(f"{root}/{files.META}"):
                raise OutputError(f"{shown(url)} is no recording: there is no {files.META}", "")
            found = {path[len(root) :].lstrip("/"): info for path, info in system.find(root, detail=True).items()}
            wanted = {name: info["size"] or 0 for name, info in found.items() if _READ.fullmatch(name)}
            if sum(wanted.values()) > shutil.disk_usage(folder).free:
                raise OutputError(f"{shown(url)} is larger than what is free in {folder.parent}", "set TMPDIR")
            for name in wanted:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                system.get_file(f"{root}/{name}", str(folder / name))
    except OutputError as error:
        raise RecordingError(error.message, error.hint) from None


def _system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, and the path in it.

    Raises:
        OutputError: a package is missing, or there is no such kind of place.
    """
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise OutputError(f"{shown(url)} needs fsspec, which is not installed", INSTALL) from None
    try:
        # Cached listings would be out of date.
        system, root = url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        package = re.search(r"nstall '?([\w-]+)", str(error))
        hint = f"pip install {package[1]}" if package and not url.startswith("s3") else INSTALL
        raise OutputError(f"{shown(url)} needs a package that is not installed: {_line(error)}", hint) from None
    except Exception as error:  # noqa: BLE001 - each file system has its own
        raise OutputError(
            f"{shown(url)} is no place that fsspec knows: {_line(error)}", "-o s3://BUCKET/NAME"
        ) from None
    root = str(root).rstrip("/")
    if not root.strip("/"):
        raise OutputError(f"{shown(url)} names no place", "-o s3://BUCKET/NAME")
    return system, root


def _names(system: Any, root: str) -> set[str]:
    """Return the names right below a path; none where it is not there."""
    try:
        listed = system.ls(root, detail=False)
    except FileNotFoundError:
        return set()
    below = {str(path).rstrip("/")[len(root) :].strip("/") for path in listed}
    return {name for name in below if name and "/" not in name}


def _make_folder(system: Any, path: str) -> None:
    protocols = {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)
    if protocols & _WITH_FOLDERS:
        system.makedirs(path, exist_ok=True)


@contextmanager
def _failing(what: str) -> Iterator[None]:
    """Turn whatever a file system raises into one sentence."""
    try:
        yield
    except LoaderprofError:
        raise
    except FileNotFoundError as error:
        raise OutputError(f"{what}: {_line(error)}", "is the bucket or folder there?") from None
    except PermissionError as error:
        raise OutputError(f"{what}: {_line(error)}", "do your credentials allow it?") from None
    except Exception as error:  # noqa: BLE001 - each file system has its own
        raise OutputError(f"{what}: {_line(error)}", "") from None


def _line(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__


def main(url: str, force: str = "") -> int:
    """Answer `check`: the mistake as a line of JSON, and exit code 2."""
    try:
        clear(url, force=bool(force))
    except LoaderprofError as error:
        sys.stdout.write(json.dumps({"message": error.message, "hint": error.hint}) + "\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
