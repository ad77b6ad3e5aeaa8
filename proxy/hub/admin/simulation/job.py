"""A simulation's input and output, as the hub and its worker process exchange them."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

Row: TypeAlias = dict[str, object]


class Document(msgspec.Struct, frozen=True):
    """A file of proposed policies."""

    text: str
    name: str = ""
    """For faults in it."""


class AgentFacts(msgspec.Struct, frozen=True):
    """What policies and names need of an agent."""

    name: str
    teams: tuple[str, ...]
    owner: str
    retired: bool


class ClusterFacts(msgspec.Struct, frozen=True):
    """What policies and names need of a cluster."""

    name: str
    labels: dict[str, str]
    teams: tuple[str, ...]


class Job(msgspec.Struct, frozen=True):
    """One simulation: the proposed policies, the calls to decide, and the directory at its start."""

    files: tuple[Document, ...]
    only: bool
    """Whether all policies outside the files are removed."""
    without: tuple[str, ...]
    """Further policies that are removed."""
    since: float
    """In epoch seconds."""
    agent: str
    """"" is no filter."""
    cluster: str
    in_force: tuple[str, ...]
    """The documents in force."""
    agents: tuple[AgentFacts, ...]
    clusters: tuple[ClusterFacts, ...]
    teams: tuple[str, ...]


class Progress(msgspec.Struct, frozen=True, tag=True):
    """How many events of the trail have been read; `of` is 0 where that is unknown."""

    read: int
    of: int


class Outcome(msgspec.Struct, frozen=True, tag=True):
    """The end of a simulation: a result, or a message."""

    result: Row | None = None
    message: str = ""
    faults: tuple[Row, ...] = ()
    """Those of the proposed policies, if they are why there is no result."""


Line: TypeAlias = Progress | Outcome
