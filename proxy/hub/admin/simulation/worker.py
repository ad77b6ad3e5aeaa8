"""The worker process of a simulation: reads the trail, and decides its calls again.

A process of its own, with the lowest priority: to decide a million calls takes a minute of CPU, which the
hub's loop would lack. It reads a Job from standard input, and writes a line for each progress and for the
outcome.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import attrs
import msgspec

from audit.errors import AuditUnavailable
from auth.policy.conditions import CelConditions
from auth.policy.diff import diff
from auth.policy.document import name_of
from auth.policy.match import Bundle, compile_bundle
from auth.policy.rules import Effect, missing
from auth.policy.simulation import Agent, Cluster, Simulation, merged, simulate
from auth.policy.text import PolicyError, Source, split
from proxy.hub.admin.simulation.calls import RecordedCalls
from proxy.hub.admin.simulation.job import Job, Line, Outcome, Progress, Row
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.files.private_files import DataDirError
from proxy.hub.home.trails import open_names, place_of
from proxy.process.suggestions import did_you_mean

# How often progress is written. A worker whose hub is gone ends at its next line.
PROGRESS_EVERY_S = 0.5
_CHANGES = {Effect.DENY: "newly denied", Effect.ASK: "newly asked", Effect.ALLOW: "newly allowed"}
_ORDER = list(_CHANGES)


class _RefusedError(Exception):
    """The input names something that does not exist."""


def run_worker(data_dir: str) -> None:
    """Run the process."""
    os.nice(19)
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)

    def write(line: Line) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
        sys.stdout.buffer.flush()

    write(run_job(Path(data_dir), job, write))


def run_job(data_dir: Path, job: Job, tell: Callable[[Progress], None]) -> Outcome:
    """Run a simulation on the trail of a data folder."""
    try:
        return Outcome(_run(data_dir, job, tell))
    except PolicyError as error:
        return Outcome(message=str(error), faults=tuple(attrs.asdict(fault) for fault in error.faults))
    except (_RefusedError, AuditUnavailable, DataDirError) as error:
        return Outcome(message=str(error))


def _run(data_dir: Path, job: Job, tell: Callable[[Progress], None]) -> Row:
    policies = [source for file in job.files for source in split(file.text, file.name)]
    if not policies and not job.without:
        raise _RefusedError("the input contains no policy")
    documents = _proposed(job, policies)
    current, proposed = _compiled(map(Source, job.in_force)), _compiled(documents)
    agents = {each.name: Agent(each.name, each.teams, each.owner) for each in job.agents if not each.retired}
    clusters = {each.name: Cluster(each.name, each.labels, each.teams) for each in job.clusters}
    start = datetime.fromtimestamp(job.since, UTC)
    reader = open_names(place_of(DataDir(data_dir)))
    try:
        calls = RecordedCalls(reader)
        _check_names(job, calls)
        begin = calls.begin()
        recorded = calls.since(start, job.agent or None, job.cluster or None, _throttled(tell))
        found = simulate(recorded, agents, clusters, current, proposed)
    finally:
        reader.close()
    given = {name_of(source) for source in policies}
    new = (policy for policy in proposed.policies if policy.name in given)
    changes = diff(map(Source, job.in_force), (Source(each.text.strip("\n") + "\n") for each in documents))
    return {
        "since": _time_text(start),
        "trail_begins": None if begin is None else _time_text(begin),
        **_counts(found),
        "missing": missing(new, {"team": job.teams, "agent": agents, "cluster": clusters}),
        "diff": [attrs.asdict(change) for change in changes],
    }


def _proposed(job: Job, policies: list[Source]) -> list[Source]:
    """Return the documents that would be in force; raises _RefusedError for an unknown name."""
    names = sorted(name_of(Source(text)) for text in job.in_force)
    for name in job.without:
        if name not in names:
            # A typo would otherwise look like a removal that changes nothing.
            existing = f"; the policies are: {', '.join(names)}" if names else ", and no other"
            raise _RefusedError(f"there is no policy {name!a}{existing}")
    return merged(job.in_force, policies, only=job.only, without=job.without)


def _compiled(sources: Iterable[Source]) -> Bundle:
    return compile_bundle(sources, CelConditions(time.thread_time))


def _check_names(job: Job, calls: RecordedCalls) -> None:
    """Raise _RefusedError for a name of the filters that neither the directory nor the trail has."""
    agents = {each.name for each in job.agents}
    if job.agent and job.agent not in agents and not calls.any_of(agent=job.agent):
        raise _unknown("agent", job.agent, agents, "hawse admin agent list --retired")
    clusters = {each.name for each in job.clusters}
    if job.cluster and job.cluster not in clusters and not calls.any_of(cluster=job.cluster):
        raise _unknown("cluster", job.cluster, clusters, "hawse admin cluster list")


def _unknown(kind: str, name: str, names: Iterable[str], listing: str) -> _RefusedError:
    near = did_you_mean(name, names)
    return _RefusedError(
        f"there is no {kind} {name!a}{near}, and the trail has no call of one: for the names run `{listing}`"
    )


def _throttled(tell: Callable[[Progress], None]) -> Callable[[int, int], None]:
    next_s = time.monotonic() + PROGRESS_EVERY_S

    def show(read: int, of: int) -> None:
        nonlocal next_s
        if (now := time.monotonic()) >= next_s:
            next_s = now + PROGRESS_EVERY_S
            tell(Progress(read, of))

    return show


def _counts(found: Simulation) -> Row:
    """Return the counts, and the changes by effect, denials first; of each the most frequent first."""
    return {
        "calls": found.calls,
        "newly_denied": found.newly_denied,
        "newly_asked": found.newly_asked,
        "newly_allowed": found.newly_allowed,
        "unknown": found.unknown,
        "unreadable": found.unreadable,
        "changes": [
            {
                "change": _CHANGES[change.effect],
                "count": count,
                "agent": change.agent,
                "cluster": change.cluster,
                "verb": change.verb,
                "resource": change.resource,
                "namespace": change.namespace,
                "rule_before": change.before,
                "rule_after": change.after,
            }
            for change, count in sorted(
                found.changes.items(), key=lambda each: (_ORDER.index(each[0].effect), -each[1])
            )
        ],
    }


def _time_text(when: datetime) -> str:
    """Format a time as the admin API does."""
    return when.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
