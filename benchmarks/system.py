"""The system that a workload runs against: the interface between systems and workloads.

A system's module has one function `open_NAME(folder, upstream)`, a context manager. It starts its processes
in `folder` (an empty one, its own) in front of `upstream`, yields a System, and on leaving ends what it
started. It raises Missing when something it needs is not on this machine: the run goes on without the system,
and prints the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import attrs


class Missing(Exception):
    """A system cannot run here; the text says what is missing and how to install it.

    As in "ssh: sshd is not installed: apt-get install openssh-server".
    """


@attrs.frozen
class Endpoint:
    """Where a client sends its requests, and as whom."""

    host: str
    port: int
    ca: Path
    """The PEM file of the CA that the server's certificate is of."""
    server_name: str = "127.0.0.1"
    """What the certificate is checked for."""
    prefix: str = ""
    """Before every path: `/clusters/NAME` for Hawse, nothing for systems that forward bytes."""
    headers: tuple[tuple[str, str], ...] = ()


class Upstream(Protocol):
    """The API server that every system stands in front of."""

    @property
    def endpoint(self) -> Endpoint: ...

    @property
    def processes(self) -> Mapping[str, int]: ...

    @property
    def memory(self) -> Path:
        """A folder in memory, whose files are served as `/bulk/NAME`."""

    @property
    def versions(self) -> Mapping[str, str]: ...

    def body(self, size: int) -> str:
        """The path of a body of that many bytes, which is made when it is asked for first."""


@attrs.frozen
class System:
    """A running system: where its clients go, and which processes are its own."""

    name: str
    endpoint: Endpoint
    processes: Mapping[str, int] = attrs.Factory(dict)
    """What is counted, by name: each pid stands for itself and all its descendants (workers, sessions).

    Empty for `direct`. Neither the upstream nor the client is in it.
    """
    versions: Mapping[str, str] = attrs.Factory(dict)
    """What ran, for the results: `{"OpenSSH": "10.0p2"}`."""
    open_again: OpenSystem | None = None
    """Opens the same system before another upstream. The runner sets it."""
    authorize: Callable[[], tuple[tuple[str, str], ...]] = tuple
    """Fetches the headers of one run, such as a fresh token; called before each run, and not measured."""

    def fresh_endpoint(self) -> Endpoint:
        """The endpoint with credentials that hold for the next run."""
        return attrs.evolve(self.endpoint, headers=(*self.endpoint.headers, *self.authorize()))


OpenSystem = Callable[[Path, Upstream], AbstractContextManager[System]]
