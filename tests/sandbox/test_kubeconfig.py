from __future__ import annotations

import base64
import stat
from pathlib import Path

import yaml

from sandbox import kubeconfig


def test_a_kubeconfig_is_its_owners_alone_and_replaces_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    for token in ("first", "second"):
        kubeconfig.write(path, server="https://h:1", ca_pem=b"PEM", user="u", token=token)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    config = yaml.safe_load(path.read_text())
    assert config["users"] == [{"name": "u", "user": {"token": "second"}}]
    cluster = config["clusters"][0]["cluster"]
    assert (cluster["server"], base64.b64decode(cluster["certificate-authority-data"])) == (
        "https://h:1",
        b"PEM",
    )
    assert list(tmp_path.iterdir()) == [path]
