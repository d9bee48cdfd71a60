"""Ranks of one job: where a process stands among them, and real two-rank jobs, launched in each way, as one report."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loaderprof.capture import ranks
from loaderprof.conclude import findings_of
from loaderprof.recording import reader

PROGRAM = str(Path(__file__).parent / "programs" / "two_ranks.py")
PROFILED = [sys.executable, "-m", "loaderprof", "run", "--no-html", "-o", "out"]


def test_a_process_alone_has_no_place() -> None:
    assert ranks.place({}) is None
    assert ranks.place({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}) is None
    assert ranks.place({"RANK": "zero", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}) is None


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_PORT": "29500"},
        {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "77"},
        {"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
    ],
)
def test_a_launchers_words_give_the_place(environment: dict[str, str]) -> None:
    place = ranks.place(environment)
    assert place is not None
    assert (place.rank, place.local_rank) == (5, 1)
    other = ranks.place({**environment, **dict.fromkeys(set(environment) & {"MASTER_PORT", "SLURM_JOB_ID"}, "78")})
    assert other is not None
    assert (other.group == place.group) == ("OMPI_COMM_WORLD_RANK" in environment)


@pytest.mark.parametrize(
    ("environment", "command", "number"),
    [
        ({}, ["torchrun", "--nnodes=2", "--node-rank=1", "train.py"], 1),
        ({}, ["accelerate", "launch", "--machine_rank", "2", "train.py"], 2),
        ({"SLURM_NODEID": "3"}, [], 3),
        ({}, ["torchrun", "--nproc-per-node=2", "train.py"], 0),
    ],
)
def test_a_nodes_number(environment: dict[str, str], command: list[str], number: int) -> None:
    assert ranks.node(environment, command) == number


def test_further_nodes_record_into_the_first_ones_folder() -> None:
    assert ranks.folder("out", "train", 0) == "out"
    assert ranks.folder(None, "train", 0) is None
    assert str(ranks.folder("out", "train", 3)).startswith("out/nodes/3-")
    assert str(ranks.folder(None, "train", 3)).startswith("train-")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def torchrun(*words: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--master-addr=127.0.0.1",
        f"--master-port={free_port()}",
        *words,
    ]


def check(folder: Path, hosts: int) -> dict[str, Any]:
    """What one report of both ranks has to say: rank 1 reads, and rank 0 does not wait for its own loader."""
    found: dict[str, Any] = json.loads(findings_of(reader.read(folder)).to_json())
    assert found["run"]["world_size"] == 2
    assert (found["verdict"]["bottleneck"], found["verdict"]["wait_share"] > 0.5) == ("read", True)
    zero, one = found["ranks"]
    assert [zero["rank"], one["rank"]] == [0, 1]
    assert one["wait_s"] > 2 * zero["wait_s"]
    assert len({each["host"] for each in found["ranks"]}) == hosts
    # They step together, whoever is waited for.
    assert zero["step_s"] == pytest.approx(one["step_s"], rel=0.1)
    return found


@pytest.mark.slow
def test_ranks_under_one_launcher(tmp_path: Path) -> None:
    done = subprocess.run(
        [*PROFILED, "--", *torchrun("--nproc-per-node=2", PROGRAM)],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        timeout=110,
    )
    check(tmp_path / "out", hosts=1)
    assert "; rank 0 waits " in " ".join(done.stderr.split())


@pytest.mark.slow
def test_each_rank_under_a_run_of_its_own(tmp_path: Path) -> None:
    done = subprocess.run(
        torchrun("--no-python", "--nproc-per-node=2", *PROFILED, PROGRAM),
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        timeout=110,
    )
    check(tmp_path / "out", hosts=1)
    assert done.stderr.count("Full report") == 1
    assert [each.name for each in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / "members.lock").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
        ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ],
)
def test_ranks_that_srun_or_mpirun_started(names: tuple[str, str, str], tmp_path: Path) -> None:
    rank, size, local = names
    common = {**os.environ, size: "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    jobs = [
        subprocess.Popen(
            [*PROFILED, PROGRAM],
            cwd=tmp_path,
            env={**common, rank: str(number), local: str(number)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    words = [job.communicate(timeout=110)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], words
    check(tmp_path / "out", hosts=1)
    assert [each.count("Full report") for each in words] == [1, 0]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="needs accelerate")
def test_ranks_that_accelerate_launched(tmp_path: Path) -> None:
    # Its launcher without the imports of its other commands; that there is no GPU does not matter to it.
    launch = "from accelerate.commands.launch import main; main()"
    words = (
        f"--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --main_process_port {free_port()}".split()
    )
    done = subprocess.run(
        [*PROFILED, "--", sys.executable, "-c", launch, *words, PROGRAM],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    check(tmp_path / "out", hosts=1)


@pytest.mark.slow
def test_a_restart_of_all_ranks_is_reported(tmp_path: Path) -> None:
    program = str(Path(PROGRAM).with_name("restarted.py"))
    done = subprocess.run(
        [*PROFILED, "--", *torchrun("--nproc-per-node=2", "--max-restarts=1", program)],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    found = findings_of(reader.read(tmp_path / "out"))
    assert [rank.rank for rank in found.ranks] == [0, 1]
    # Both attempts count, of each rank: up to 21 batches of the first, 40 of the second.
    assert found.run.steps is not None
    assert 2 * 40 + 21 <= found.run.steps <= 2 * (40 + 21)
    assert "the launcher started the ranks again once; each start is a segment of its own" in found.run.notes


@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="only root can give a process a host of its own"
)
def test_nodes_that_share_a_folder_are_merged(tmp_path: Path) -> None:
    port = free_port()
    jobs = []
    for number in range(2):
        launcher = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nnodes=2",
            f"--node-rank={number}",
            "--nproc-per-node=1",
            "--master-addr=127.0.0.1",
            f"--master-port={port}",
            PROGRAM,
        ]
        host = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', f"node{number}"]
        jobs.append(
            subprocess.Popen(
                [*host, *PROFILED, "--", *launcher], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        )
    assert [job.wait(timeout=110) for job in jobs] == [0, 0]
    found = check(tmp_path / "out", hosts=2)
    assert "the node node1 was merged; samples of machines are the first node's" in found["run"]["notes"]
    # Processes of both nodes stand on one clock, and may share a process id.
    seen = reader.read(tmp_path / "out")
    takes = seen.tables["take"]
    first = [
        takes["t_taken"][takes["process"] == each.number].min()
        for each in seen.processes
        if each.rank is not None and each.worker is None
    ]
    assert abs(first[0] - first[1]) < 2e9
    assert all(0 < each.own_pid < reader.MAX_PID for each in seen.processes)


def test_one_job_after_another_from_the_same_shell(tmp_path: Path) -> None:
    """As in a batch script of SLURM, where the script itself is the first of several tasks."""
    (tmp_path / "train.py").write_text("print('trained')\n")
    environment = {**os.environ, "SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}
    command = [sys.executable, "-m", "loaderprof", "run", "--no-html", "train.py"]
    for _ in range(2):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout == "trained\n"
    first, second = sorted(path.name for path in tmp_path.glob("train-*"))
    assert second == f"{first}-2"


def test_a_launcher_that_cannot_be_seen_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    # As inside a container, of what started it from outside.
    monkeypatch.setattr(os, "getppid", lambda: 0)
    assert ranks.agreed("train").startswith("train-")


def test_a_rank_without_its_first_one_trains_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "PATIENCE_S", 0.2)
    mine = ranks.Place(1, 1, "job")
    assert ranks.join(tmp_path / "out", mine) is None
    for name, group, ended in (("out", "job", 1), ("out-2", "another", None), ("out-3", "job", None)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recording.json").write_text(json.dumps({"group": group, "ended_ns": ended}))
    joined = ranks.join(tmp_path / "out", mine)
    assert joined is not None
    assert joined[0] == tmp_path / "out-3" / "journals"
    joined[1].close()
