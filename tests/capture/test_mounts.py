"""Which file system a path lies on, from tables as machines with network mounts show them."""

from __future__ import annotations

from pathlib import Path

import pytest

from loaderprof.capture import mounts

TABLE = """\
22 28 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
28 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw,discard,errors=remount-ro
31 28 0:26 / /dev/shm rw,nosuid,nodev shared:4 - tmpfs tmpfs rw
96 28 0:45 / /data rw,relatime shared:50 master:3 - nfs4 10.0.0.5:/export rw,vers=4.2,rsize=1048576
97 96 0:46 / /data/cache rw,relatime - xfs /dev/nvme1n1 rw
98 28 0:47 / /mnt/my\\040bucket rw,relatime - fuse.s3fs s3fs rw
99 28 0:48 / /lustre rw,relatime - lustre 10.0.0.9@tcp:/scratch rw
100 28 0:49 / /over rw,relatime - ext4 /dev/sdb1 rw
101 28 0:50 / /over rw,relatime - cifs //server/share rw
damaged line
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/data", "ext4"),
        ("/data/train/0.jpg", "nfs4"),
        ("/data", "nfs4"),
        ("/database", "ext4"),
        ("/data/cache/0.jpg", "xfs"),
        ("/data/cache/../0.jpg", "nfs4"),
        ("/mnt/my bucket/a", "fuse.s3fs"),
        ("/lustre/x", "lustre"),
        ("/over/x", "cifs"),
        ("/dev/shm/a", "tmpfs"),
    ],
)
def test_the_innermost_and_latest_mount_holds_a_path(path: str, kind: str) -> None:
    assert mounts.kind(path, TABLE) == kind


def test_a_table_that_tells_nothing() -> None:
    assert mounts.kind("/data", "") == ""
    assert mounts.table(2**30) == ""


def test_this_machines_own_table_tells_its_root() -> None:
    shown = {line.split(" ")[1]: line.split(" ")[2] for line in Path("/proc/mounts").read_text().splitlines()}
    assert mounts.kind("/proc/self", mounts.table()) == "proc"
    assert mounts.kind("/", mounts.table()) == shown["/"]
