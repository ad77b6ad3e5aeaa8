"""Two builds of one checkout against one state of the mirror are equal."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

from tests.deploy.image.built.unpacked import Unpacked
from tests.packaging.installed import ROOT


def test_a_second_build_in_another_folder_is_equal(
    relay_image: Unpacked, hub_image: Unpacked, tmp_path: Path
) -> None:
    work, made = tmp_path / "work", tmp_path / "made"
    argv = [sys.executable, "-m", "deploy.image", "--work", str(work), "--output", str(made)]
    created = datetime.fromisoformat(hub_image.config["Labels"]["org.opencontainers.image.created"])
    epoch = str(int(created.timestamp()))
    # What a machine may have set must not get into the image.
    done = subprocess.run(
        ["sh", "-c", 'umask 077; exec "$@"', "sh", *argv],
        cwd=ROOT,
        env={
            **os.environ,
            "SOURCE_DATE_EPOCH": epoch,
            "TZ": "Pacific/Auckland",
            "LC_ALL": "C",
            "PYTHONHASHSEED": "7",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for image in (relay_image, hub_image):
        assert (made / image.file.name).read_bytes() == image.file.read_bytes()
