"""Agents, clusters and policies for the tests of policies."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping

import attrs

from auth.policy.conditions import CelConditions
from auth.policy.match import Bundle, Decision, compile_bundle
from auth.policy.text import Source, split
from auth.requestinfo import RequestInfo, parse

CONDITIONS = CelConditions(time.thread_time)


@attrs.frozen
class Agent:
    name: str = "builder"
    owner: str = "owner@example.com"
    teams: tuple[str, ...] = ("platform",)


@attrs.frozen
class Cluster:
    name: str = "prod"
    labels: Mapping[str, str] = attrs.Factory(dict)


AGENT = Agent()
CLUSTER = Cluster("prod", {"env": "prod"})


def policy(rules: str, *, name: str = "p", bind: str = '{teams: ["*"]}', more: str = "") -> str:
    """A policy with these rules."""
    head = f"kind: Policy\nmetadata: {{name: {name}}}\nspec:\n  bind: {bind}\n"
    if more:
        head += textwrap.indent(textwrap.dedent(more).strip("\n"), "  ") + "\n"
    return head + "  rules:\n" + textwrap.indent(textwrap.dedent(rules).strip("\n"), "    ") + "\n"


def bundle(*texts: str, version: int = 1) -> Bundle:
    return compile_bundle(sources(*texts), CONDITIONS, version=version)


def sources(*texts: str) -> list[Source]:
    return [source for text in texts for source in split(text)]


def ask(
    of: Bundle | str,
    request: str,
    *,
    agent: Agent = AGENT,
    cluster: Cluster = CLUSTER,
    now: float = 1_800_000_000.0,
    upgrade: bool = False,
) -> Decision:
    """Decide about `METHOD /target`."""
    compiled = bundle(of) if isinstance(of, str) else of
    return compiled.decide(agent, cluster, info_of(request, upgrade=upgrade), now)


def info_of(request: str, *, upgrade: bool = False) -> RequestInfo:
    """The parsed request of `METHOD /target`."""
    method, _, target = request.partition(" ")
    info = parse(method.encode(), target.encode())
    return info.upgraded() if upgrade else info
