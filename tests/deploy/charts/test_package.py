"""The packaged chart: a tar file with the chart's own files, equal whenever it is made."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

from deploy.charts import FOLDER, package
from proxy.process.version import VERSION
from tests.deploy.charts.sets import CHART


def test_two_packages_are_equal_and_hold_the_charts_files(tmp_path: Path) -> None:
    made = []
    # Another umask and another time zone change nothing.
    for number, (umask, zone) in enumerate(((0o022, "UTC"), (0o077, "Asia/Tokyo"))):
        done = subprocess.run(
            [sys.executable, "-m", "deploy.charts", "--output", str(tmp_path / str(number))],
            capture_output=True,
            text=True,
            cwd=FOLDER.parents[1],
            umask=umask,
            env={**os.environ, "TZ": zone},
        )
        assert (done.returncode, done.stderr) == (0, "")
        [file] = (tmp_path / str(number)).iterdir()
        assert file.name == f"hawse-relay-{VERSION}.tgz"
        made.append(file.read_bytes())
        path, sha256 = done.stdout.splitlines()
        assert path.endswith(f"{file.name}: {len(made[-1]):,} bytes")
        assert sha256.split() == ["sha256", hashlib.sha256(made[-1]).hexdigest()]
    assert made[0] == made[1] == package("hawse-relay")
    with tarfile.open(fileobj=io.BytesIO(made[0])) as tar:
        members = tar.getmembers()
    there = {f"hawse-relay/{each.relative_to(CHART)}" for each in CHART.rglob("*") if each.is_file()}
    assert {each.name for each in members} == there
    assert {(each.mtime, each.uid, each.gid, each.mode) for each in members} == {(0, 0, 0, 0o644)}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    argv = [sys.executable, "-m", "deploy.charts", "--output", str(tmp_path / "file" / "dist")]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=FOLDER.parents[1])
    assert done.returncode == 1
    assert done.stderr.startswith(f"charts: cannot write {tmp_path}/file")
