"""The TCP connections of another process of this machine, by /proc (Linux)."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

# The state ESTABLISHED in /proc/net/tcp.
_ESTABLISHED = "01"


def client_ports(pid: int, server_port: int) -> list[int]:
    """The local ports of a process's connections to a port, the oldest descriptor first."""
    own: dict[str, int] = {}
    for descriptor in sorted(Path(f"/proc/{pid}/fd").iterdir(), key=lambda path: int(path.name)):
        # One that is closed meanwhile is no connection.
        with suppress(OSError):
            own[os.readlink(descriptor)] = int(descriptor.name)
    found = {}
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        # sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …, ports in hexadecimal.
        fields = line.split()
        local, remote = (int(address.rpartition(":")[2], 16) for address in fields[1:3])
        descriptor_number = own.get(f"socket:[{fields[9]}]")
        if descriptor_number is not None and remote == server_port and fields[3] == _ESTABLISHED:
            found[descriptor_number] = local
    return [found[number] for number in sorted(found)]
