"""OpenSSH's remote forwarding, `ssh -R`: a byte tunnel in C.

The client speaks TLS with the upstream itself; sshd and ssh carry it, encrypted once more. Both run with
their defaults, keys and configuration of their own, on loopback.
"""

from __future__ import annotations

import getpass
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from benchmarks.processes import Daemons, free_port, program, version_of
from benchmarks.system import System, Upstream
from benchmarks.systems.leg import Leg, straight

INSTALL = "make bench-peers"
# sshd refuses to start as root without it, and packages make it only where an init system starts sshd.
PRIVILEGE_SEPARATION = Path("/run/sshd")


@contextmanager
def open_ssh(folder: Path, upstream: Upstream, leg: Leg = straight) -> Iterator[System]:
    """Yield sshd as the hub, with `ssh -R` as its agent, before the upstream."""
    sshd, ssh = program("sshd", "ssh", INSTALL), program("ssh", "ssh", INSTALL)
    port, forwarded = free_port(), free_port()
    _make_key(folder / "host_key")
    _make_key(folder / "user_key")
    (folder / "sshd_config").write_text(server_configuration(folder, port))
    (folder / "ssh_config").write_text(client_configuration(folder, leg(port)))
    if os.geteuid() == 0:
        PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
    target = f"{upstream.endpoint.host}:{upstream.endpoint.port}"
    with Daemons(folder) as daemons:
        # Its name must be an absolute path, because it executes itself again for each connection.
        server = daemons.start("sshd", [sshd, "-D", "-e", "-f", str(folder / "sshd_config")])
        server.wait_for("Server listening on")
        client = daemons.start(
            "ssh",
            [
                ssh,
                "-v",
                "-N",
                "-F",
                str(folder / "ssh_config"),
                "-R",
                f"127.0.0.1:{forwarded}:{target}",
                "hub",
            ],
        )
        client.wait_for("remote forward success")
        endpoint = attrs.evolve(upstream.endpoint, host="127.0.0.1", port=forwarded)
        yield System(
            "ssh",
            endpoint,
            {"sshd": server.process.pid, "ssh": client.process.pid},
            {"OpenSSH": version_of(ssh, "-V").partition(",")[0].removeprefix("OpenSSH_")},
        )


def server_configuration(folder: Path, port: int) -> str:
    """Nothing of the machine's own sshd; ciphers and limits stay at their defaults."""
    return "".join(
        f"{line}\n"
        for line in (
            f"ListenAddress 127.0.0.1:{port}",
            f"HostKey {folder / 'host_key'}",
            f"AuthorizedKeysFile {folder / 'user_key.pub'}",
            "PidFile none",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            # The folder is below the one for temporary files, which every user may write to.
            "StrictModes no",
        )
    )


def client_configuration(folder: Path, port: int) -> str:
    """A host `hub`, with the one key there is."""
    return "".join(
        f"{line}\n"
        for line in (
            "Host hub",
            "  HostName 127.0.0.1",
            f"  Port {port}",
            f"  User {getpass.getuser()}",
            f"  IdentityFile {folder / 'user_key'}",
            "  IdentitiesOnly yes",
            "  BatchMode yes",
            "  ExitOnForwardFailure yes",
            "  StrictHostKeyChecking no",
            "  UserKnownHostsFile /dev/null",
        )
    )


def _make_key(file: Path) -> None:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
