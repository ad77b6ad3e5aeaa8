"""A network that has gone away under an open TCP connection: nothing that arrives on a socket is seen by it.

Not by a proxy, whose kernel would answer the probes, and not by firewall rules, which need a namespace of the
test's own: by a socket filter that drops each segment, put on the very socket, also one of another process.
"""

from __future__ import annotations

import ctypes
import os
import re
import socket
import struct
from pathlib import Path

# asm-generic/socket.h and asm-generic/unistd.h; Python has no names for them.
_SO_ATTACH_FILTER = 26
_PIDFD_GETFD = 438
# BPF_RET | BPF_K with 0: keep nothing of the segment.
_DROP = struct.pack("HBBI", 0x06, 0, 0, 0)


def swallow(sock: socket.socket) -> None:
    """From now on nothing arrives on a socket, whatever its peer sends."""
    program = ctypes.create_string_buffer(_DROP)
    sock.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HxxxxxxP", 1, ctypes.addressof(program))
    )


def swallow_all(pid: int, port: int) -> int:
    """The same for each connection of a process from or to a loopback port; returns how many there are."""
    pidfd = os.pidfd_open(pid)
    try:
        found = 0
        inodes = _connections(pid, port)
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(entry))
            if match is not None and match[1] in inodes:
                with socket.socket(fileno=_take_file(pidfd, int(entry.name))) as sock:
                    swallow(sock)
                found += 1
        return found
    finally:
        os.close(pidfd)


def _take_file(pidfd: int, number: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    taken = libc.syscall(_PIDFD_GETFD, pidfd, number, 0)
    if taken < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return int(taken)


def _connections(pid: int, port: int) -> set[str]:
    """The inodes of the established connections that have the port at either end."""
    inodes = set()
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, *_, inode = line.split()[:10]
        ports = {int(address.rpartition(":")[2], 16) for address in (local, remote)}
        if state == "01" and port in ports:
            inodes.add(inode)
    return inodes
