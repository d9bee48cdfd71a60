"""Recordings at a URL: a real job into a real object store and back, and every way in which that can fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import real
from golden_sentences import Check
from made import Plan, one_loop
from object_store import PATIENCE_S, bucket, call, store, stored

from loaderprof import cli
from loaderprof.errors import OutputError, RecordingError
from loaderprof.recording import files, remote

__all__ = ["bucket", "store"]
fsspec = pytest.importorskip("fsspec")


@pytest.fixture(autouse=True)
def a_temporary_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    one_loop(tmp_path / "made", Plan())
    return tmp_path / "made"


def left_behind() -> list[Path]:
    return [path for path in remote.private_folder().iterdir() if any(path.iterdir())]


def script(folder: Path, last_line: str = "") -> Path:
    (folder / "job").mkdir()
    (folder / "job" / "train.py").write_text(real.SCRIPT + last_line)
    return folder / "job"


@pytest.mark.slow
def test_a_job_records_into_a_bucket_and_every_verb_reads_it(bucket: str, tmp_path: Path) -> None:
    job, url = script(tmp_path), f"{bucket}/mine/first"
    done = real.loaderprof("run", "-o", url, "train.py", cwd=job)
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr
    assert f"again: loaderprof report {url}" in done.stderr
    there = stored(url)
    assert {files.META, files.FINDINGS, files.PAGE} <= there
    assert any(name.startswith("journals/") for name in there)
    # Nothing stays on this machine.
    assert left_behind() == []
    assert [path.name for path in job.iterdir()] == ["train.py"]

    seen = json.loads(real.loaderprof("report", url, "--json", cwd=job).stdout)
    assert (seen["verdict"]["bottleneck"], seen["run"]["exit_code"]) == ("read", 0)
    compared = real.loaderprof("compare", url, url, cwd=job)
    assert compared.stdout.splitlines()[0] == f"A  {url}"
    assert real.loaderprof("check", url, "--max-wait", "1%", cwd=job).returncode == 1
    exported = real.loaderprof("export", url, "--format", "openmetrics", cwd=job)
    assert (exported.stdout, (job / "openmetrics.txt").exists()) == ("openmetrics.txt\n", True)
    assert stored(url) == there

    again = real.loaderprof("run", "-o", url, "train.py", cwd=job)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.splitlines() == [
        f"loaderprof: {url} is not empty",
        "  name another place with -o, or replace the recording with --force",
    ]
    forced = real.loaderprof("run", "--no-html", "--force", "-o", url, "train.py", cwd=job)
    assert forced.returncode == 0
    assert files.PAGE not in stored(url)


@pytest.mark.slow
def test_where_the_upload_fails_the_recording_stays_here(bucket: str, store: str, tmp_path: Path) -> None:
    gone = f"import urllib.request as r; r.urlopen(r.Request('{store}/runs', method='DELETE'))\n"
    done = real.loaderprof("run", "--no-html", "-o", f"{bucket}/run", "train.py", cwd=script(tmp_path, gone))
    assert (done.returncode, done.stdout) == (0, "trained\n")
    (folder,) = left_behind()
    last = done.stderr.splitlines()[-1]
    assert last.startswith("loaderprof: s3://runs/run cannot be written: ")
    assert last.endswith(f"; the recording stays in {folder}")
    assert json.loads((folder / files.FINDINGS).read_text())["verdict"]["bottleneck"] == "read"


def test_a_bucket_keeps_a_recording_and_gives_it_back(bucket: str, made: Path) -> None:
    url = f"{bucket}/mine/run"
    remote.clear(url, force=False)
    assert stored(bucket) == set()
    remote.send(made, url)
    with remote.local(url) as folder:
        back = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert back == {str(path.relative_to(made)): path.read_bytes() for path in made.rglob("*") if path.is_file()}
    with pytest.raises(OutputError, match="is not empty"):
        remote.clear(url, force=False)
    remote.clear(url, force=True)
    assert stored(bucket) == set()


def test_a_bucket_that_is_not_there_or_not_ones_own(bucket: str, store: str, made: Path) -> None:
    for act in (lambda url: remote.clear(url, force=False), lambda url: remote.send(made, url)):
        with pytest.raises(OutputError, match="s3://nobodys/run cannot be written: ") as caught:
            act("s3://nobodys/run")
        assert caught.value.hint == "is the bucket or folder there?"
    # From here on the store asks who is there.
    call(f"{store}/moto-api/reset-auth", "POST", b"0")
    try:
        with pytest.raises(OutputError, match="s3://runs/run cannot be written: ") as caught:
            remote.clear(f"{bucket}/run", force=False)
    finally:
        call(f"{store}/moto-api/reset-auth", "POST", b"1000000000")
    assert caught.value.hint == "do your credentials allow it?"


def test_what_cannot_be_written_is_said_before_the_job_starts(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print('trained')\n")
    (tmp_path / "file").write_text("mine")
    for url, words in (
        ("memory://", "names no place"),
        ("s4://runs/run", "is no place that fsspec knows: Protocol not known: s4"),
        (f"file://{tmp_path}/train.py/run", "cannot be written: Not a directory"),
    ):
        with pytest.raises(OutputError) as caught:
            remote.clear(url, force=False)
        assert caught.value.message.startswith(f"{url} {words}")
    done = real.loaderprof("run", "-o", url, "train.py", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"loaderprof: {url} {words}")
    assert left_behind() == []


def test_profile_records_to_a_url_too(tmp_path: Path) -> None:
    program = f"import loaderprof\nwith loaderprof.profile('file://{tmp_path}/far/run') as prof: print('trained')\n"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert done.stdout == "trained\n"
    assert (tmp_path / "far" / "run" / files.META).is_file()
    assert left_behind() == []


def test_without_fsspec_the_sentence_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "fsspec.py").write_text("raise ImportError('not here')\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))}
    done = subprocess.run(
        [sys.executable, "-m", "loaderprof", "report", "s3://runs/run"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "loaderprof: s3://runs/run needs fsspec, which is not installed",
        "  pip install 'loaderprof[remote]'",
    ]


def test_nodes_send_a_part_each(made: Path) -> None:
    url = "memory://nodes/run"
    remote.clear(f"{url}/nodes/1-b", force=False)
    remote.send(made, f"{url}/nodes/1-b")
    # The first node comes last, and finds nothing in its way but the other one's part.
    remote.clear(url, force=False)
    remote.send(made, url)
    with remote.local(url) as folder:
        assert (folder / "nodes" / "1-b" / files.META).is_file()
    with pytest.raises(OutputError, match="holds another recording by now"):
        remote.send(made, url)
    with pytest.raises(OutputError, match="is not empty"):
        remote.clear(url, force=False)
    remote.clear(url, force=True)
    assert stored(url) == set()


def test_only_what_a_recording_holds_comes_down(made: Path) -> None:
    url, system = "memory://strange/run", fsspec.filesystem("memory")
    remote.send(made, url)
    for name in ("thesis.txt", "journals/../../x.lpj", "nodes/../recording.json", "journals/.hidden/a.lpj"):
        system.pipe_file(f"/strange/run/{name}", b"mine")
    with remote.local(url) as folder:
        names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}


def test_what_is_no_recording_is_left_alone() -> None:
    fsspec.filesystem("memory").pipe_file("/home/thesis.txt", b"years")
    with pytest.raises(OutputError, match="no recording, so --force leaves it alone"):
        remote.clear("memory://home", force=True)
    with pytest.raises(RecordingError, match="is no recording"), remote.local("memory://home"):
        pass
    assert stored("memory://home") == {"thesis.txt"}


def test_damage_is_reported_with_the_url(made: Path, said: Check) -> None:
    (made / files.META).write_text("{}")
    remote.send(made, "memory://damaged")
    done = real.loaderprof("report", f"file://{made}", cwd=made)
    assert (done.returncode, done.stdout) == (2, "")
    said("damage", done.stderr)


def test_passwords_are_not_shown() -> None:
    assert remote.shown("sftp://me:secret@host/run") == "sftp://me@host/run"
    assert remote.shown("s3://runs/a:b@c") == "s3://runs/a:b@c"
    assert [remote.is_url(place) for place in ("out", "a/b", None, "C:/x", "s3://x")] == [False] * 4 + [True]


def test_verbs_that_write_beside_a_recording_take_folders(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words in (["verify", "memory://run"], ["tune", "-o", "memory://run", str(tmp_path / "train.py")]):
        (tmp_path / "train.py").touch()
        assert cli.main(words) == 2
        assert "folder" in capsys.readouterr().err
