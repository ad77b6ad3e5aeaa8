"""The cluster owner's guardrails: limits on requests to this API server, which the hub cannot exceed.

They are files in the form of the hub's policies, stored beside the relay, out of the hub's control. The relay
applies them to each request as it has parsed it itself, after the hub has allowed it. So they can only narrow
access. Any rule that denies wins. If any rule allows, requests that no rule allows are denied; if all rules
deny, the other requests pass.

Some policy features need facts that a relay does not know, and are errors when the files are read: a
selection of clusters (guardrails are for this one), and in conditions the cluster's labels and the agent's
owner. The agent's identity is the hub's claim, so a limit that must hold against the hub itself has to bind
every team, not an agent by name.

If there are guardrails, the relay's own namespace is closed to agents as well. The files are stored there,
and an agent's user could be granted the right to change them.

At the start an error in a file ends the relay. An error in a change leaves the former guardrails in force,
and is logged. Denying everything because of a misspelt word would lock out the operator who must fix it, and
the former guardrails are the owner's own.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

import attrs

from auth.policy.advice import advise
from auth.policy.conditions import CelConditions, without_strings
from auth.policy.match import NO_RULE, Bundle, Condition, compile_bundle
from auth.policy.rules import ClusterSelector
from auth.policy.text import Fault, PolicyError, Source, split
from auth.principal import USER_PREFIX
from auth.requestinfo import RequestInfo
from auth.tokens import RelayClaims
from proxy.process.files import FILE_BYTES_MAX
from proxy.process.plural import counted
from proxy.relay.denied import GuardrailDenied

log = logging.getLogger("hawse.relay")

FILES_MAX = 64
SUFFIXES = (".yaml", ".yml")
# An error in a changed file is logged again at this interval, since the first line is easily missed.
FAULT_LOGGED_EVERY_S = 300.0
# Cached agents; an evicted one is parsed again.
AGENTS_REMEMBERED_MAX = 4096

# The owner's files may hold no policy of this name.
_OWN = """
kind: Policy
metadata: {{name: relay}}
spec:
  bind: {{teams: ["*"]}}
  rules:
    - id: own-namespace
      effect: deny
      verbs: ["*"]
      namespaces: ["{namespace}"]
      acrossNamespaces: [secrets]
      reason: the relay, its key and these guardrails are there
"""
# A list of allowed facts, not of forbidden ones: (agent).owner is the owner as well.
_UNKNOWN = re.compile(r"\bcluster\b|\bagent\b(?!\s*\.\s*(?:name|teams)\b)(?:\s*\.\s*owner\b)?")


@attrs.frozen
class _Agent:
    """The acting agent, as far as the hub's token describes it."""

    name: str
    teams: tuple[str, ...]
    owner: str = ""


@attrs.frozen
class _ThisCluster:
    """Stands for this cluster in policies; no condition can refer to it."""

    name: str = "this"
    labels: dict[str, str] = attrs.Factory(dict)


_HERE = _ThisCluster()
_Stamp = tuple[tuple[str, int, int, int, int], ...]


@attrs.frozen
class _Read:
    """The compiled files, as read at one moment."""

    stamp: _Stamp
    bundle: Bundle
    allows: bool
    """Whether some rule allows, enabled or not: then requests that no rule allows are denied."""


class _RelayConditions:
    """Conditions restricted to the facts that a relay knows."""

    def __init__(self) -> None:
        self._cel = CelConditions(time.thread_time)

    def check(self, text: str) -> str:
        unknown = _UNKNOWN.search(without_strings(text))
        if unknown is not None:
            return f'a relay does not know "{unknown[0]}": ask for request, agent.name, agent.teams or now'
        return self._cel.check(text)

    def compile(self, text: str) -> Condition:
        return self._cel.compile(text)

    def timed(self, text: str) -> bool:
        return self._cel.timed(text)


class Guardrails:
    """The guardrails in a file, or in all files of a folder; read again when one of them changes."""

    def __init__(
        self,
        path: Path,
        *,
        namespace: str = "",
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read them for the first time; raises PolicyError with every error.

        `namespace` is the relay's own, empty outside a cluster. A file must exist; a folder may be empty, and
        then all requests pass.
        """
        self._path = path
        self._namespace = namespace
        self._clock = clock
        self._monotonic = monotonic
        self._read = _read(path, namespace)
        self._refused: _Stamp | None = None
        self._fault = ""
        self._logged_at = 0.0
        self._tell()

    def check(self, claims: RelayClaims, info: RequestInfo) -> None:
        """Raise GuardrailDenied if a request must not pass."""
        read = self._read
        if not read.bundle.policies:
            return
        agent = _agent(claims.user, claims.groups)
        decision = read.bundle.decide(agent, _HERE, info, self._clock())
        if decision.allowed or (decision is NO_RULE and not read.allows):
            return
        advice = advise(read.bundle, agent, _HERE, info, decision)
        what = advice.what.removesuffix(f" on cluster {_HERE.name}")
        advice = attrs.evolve(advice, what=what, ask=advice.ask or "the owner of this cluster")
        raise GuardrailDenied(advice, info.method)

    @property
    def timed(self) -> bool:
        """Whether some rule depends on the time, so that an allowed request may be denied later."""
        return self._read.bundle.timed

    def look(self) -> bool:
        """Read the files again if they have changed, and return whether the guardrails in force have changed.

        On an error the former ones stay in force, and the error is logged.
        """
        now = self._monotonic()
        stamp: _Stamp | None = None
        try:
            stamp = _stamp(self._path)
            if stamp == self._read.stamp:
                self._fault = ""
                return False
            if self._fault and stamp == self._refused and now - self._logged_at < FAULT_LOGGED_EVERY_S:
                return False
            if not stamp:
                raise PolicyError([Fault(str(self._path), 1, "", "all guardrails were removed")])
            self._read = _read(self._path, self._namespace)
        except PolicyError as error:
            fault = "; ".join(map(str, error.faults))
            if fault != self._fault or now - self._logged_at >= FAULT_LOGGED_EVERY_S:
                self._logged_at = now
                log.error("the changed guardrails are refused, the former ones stay in force: %s", fault)
            self._refused, self._fault = stamp, fault
            return False
        self._fault = ""
        self._tell()
        return True

    @property
    def hash(self) -> str:
        """The hash of the guardrails in force."""
        return self._read.bundle.hash

    @property
    def summary(self) -> str:
        """The guardrails in force, in one line."""
        bundle = self._read.bundle
        if not bundle.policies:
            return f"no guardrails in {self._path}: what the hub allows passes"
        rules = sum(len(policy.rules) for policy in bundle.policies)
        rest = "what no rule allows is denied" if self._read.allows else "the rest passes"
        return f"guardrails of {self._path}: {counted(rules, 'rule')}, {rest} ({bundle.hash})"

    def _tell(self) -> None:
        log.info("%s", self.summary)


@lru_cache(AGENTS_REMEMBERED_MAX)
def _agent(user: str, groups: tuple[str, ...]) -> _Agent:
    return _Agent(user.removeprefix(USER_PREFIX), tuple(group.partition("/")[2] for group in groups))


def _files(path: Path) -> list[Path]:
    """The files that hold guardrails; raises PolicyError, OSError."""
    if not path.is_dir():
        return [path]
    # Kubernetes keeps mounted files in hidden folders, and links to them.
    files = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    strange = [entry for entry in files if entry.suffix not in SUFFIXES or not entry.is_file()]
    if strange:
        # A file that is silently skipped would be a limit that is not enforced.
        raise PolicyError([Fault(str(entry), 1, "", "is no .yaml or .yml file") for entry in strange])
    if len(files) > FILES_MAX:
        raise PolicyError([Fault(str(path), 1, "", f"{len(files)} files exceed the {FILES_MAX} allowed")])
    return files


def _stamp(path: Path) -> _Stamp:
    """A stamp that changes when a file does; raises PolicyError."""
    try:
        return tuple(
            (str(file), status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
            for file in _files(path)
            for status in (file.stat(),)
        )
    except OSError as error:
        # Without a line number, since the file has no content to point to.
        raise PolicyError([Fault("", 0, "", f"{path} cannot be read: {error.strerror}")]) from error


def _read(path: Path, namespace: str) -> _Read:
    """Read and compile all files; raises PolicyError."""
    # Taken first: a change during the read is then detected by the next check.
    stamp = _stamp(path)
    sources = [source for name, *_ in stamp for source in split(_text(Path(name)), name)]
    own = [Source(_OWN.format(namespace=namespace), "the relay's own")] if sources and namespace else []
    bundle = compile_bundle([*own, *sources], _RelayConditions())
    faults = list(_misplaced(bundle))
    if path.is_file() and not sources:
        faults.append(Fault(str(path), 1, "", "holds no policy"))
    if faults:
        raise PolicyError(faults)
    return _Read(stamp, bundle, any(rule.allows for policy in bundle.policies for rule in policy.rules))


def _text(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            raw = opened.read(FILE_BYTES_MAX + 1)
        if len(raw) > FILE_BYTES_MAX:
            raise PolicyError([Fault(str(file), 1, "", f"is larger than {FILE_BYTES_MAX} bytes")])
        return raw.decode("utf-8")
    except OSError as error:
        raise PolicyError([Fault(str(file), 1, "", f"cannot be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise PolicyError([Fault(str(file), 1, "", "is not text in UTF-8")]) from error


def _misplaced(bundle: Bundle) -> Iterable[Fault]:
    """Errors for policy features that guardrails do not have."""
    for policy in bundle.policies:
        source = policy.source
        if policy.clusters != ClusterSelector():
            message = "a guardrail applies to its own cluster: leave clusters out"
            yield Fault(source.file, source.first_line, "spec.clusters", message)
        for rule in policy.rules:
            if rule.ask is not None:
                message = "a guardrail allows or denies a request: the hub asks about requests"
                yield Fault(source.file, rule.line, f"rule {rule.id}", message)
            if rule.max_duration_s is not None:
                message = "a guardrail allows or denies a request: the hub limits durations"
                yield Fault(source.file, rule.line, f"rule {rule.id}", message)
