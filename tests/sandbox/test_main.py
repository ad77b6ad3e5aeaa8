"""The process: the files that it writes for its users, and how it ends."""

from __future__ import annotations

import stat

import pytest

from sandbox.__main__ import parse, url_of
from tests.sandbox.conftest import Cluster


def test_the_command_line() -> None:
    arguments = parse(["--dir", "x"])
    assert (str(arguments.dir), arguments.port, arguments.host) == ("x", 0, "127.0.0.1")


def test_an_ipv6_address_stands_in_brackets() -> None:
    assert (url_of("127.0.0.1", 6443), url_of("::1", 6443)) == (
        "https://127.0.0.1:6443",
        "https://[::1]:6443",
    )


@pytest.mark.kubectl
def test_what_stands_in_the_folder(cluster: Cluster) -> None:
    names = {path.name for path in cluster.folder.iterdir()}
    assert {"ca.crt", "admin.kubeconfig", "relay.kubeconfig", "relay-token", "audit.jsonl"} <= names
    for secret in ("admin.kubeconfig", "relay.kubeconfig", "relay-token"):
        assert stat.S_IMODE((cluster.folder / secret).stat().st_mode) == 0o600
    assert cluster.relay_token in (cluster.folder / "relay.kubeconfig").read_text()
    assert cluster.run("auth", "whoami", kubeconfig="relay.kubeconfig").out.count("hawse:relay") == 1
