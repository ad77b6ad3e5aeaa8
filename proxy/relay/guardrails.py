"""The cluster owner's guardrails: what may pass to this API server, whatever the hub says.

Files of the same form as the hub's policies, that stand beside the relay and that the hub has no hand in. The
relay asks them of every request as it has parsed it itself, after the hub has allowed it: so they can narrow
and never widen. Any rule that denies wins; a set of files that allows anything allows nothing else, and one
that only denies lets all the rest pass.

What a relay cannot know of its own is refused when the files are read: a selection of clusters (they are
about this one), and in a condition the cluster's labels and the agent's owner. Who acts is the hub's word, so
a limit that is to hold against the hub itself binds every team, and not some agent by its name.

Where there are guardrails, the namespace that the relay runs in is closed to agents as well: the files
themselves are there, and whoever acts under an agent's name could be given the right to change them.

At the start a fault in a file ends the relay. A fault in a change leaves the guardrails that stand, with an
error in the log: to let nothing pass because of a misspelt word would cut off who has to mend it, and what
stands is the owner's own.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

import attrs

from auth.policy.advice import Advice, advise
from auth.policy.conditions import CelConditions, without_strings
from auth.policy.match import NO_RULE, Bundle, Condition, compile_bundle
from auth.policy.rules import ClusterSelector
from auth.policy.text import Fault, PolicyError, Source, split
from auth.principal import USER_PREFIX
from auth.requestinfo import RequestInfo
from auth.tokens import RelayClaims
from proxy.message.failure import Failure, Processed, StreamCode
from proxy.message.rewrite import DECISION_HEADER
from proxy.message.status import status_response
from proxy.process.files import FILE_BYTES_MAX
from proxy.process.plural import counted
from proxy.relay.verify import Refused

log = logging.getLogger("hawse.relay")

FILES_MAX = 64
SUFFIXES = (".yaml", ".yml")
# A fault in a changed file is told again so often, as nobody reads the first line of a log.
FAULT_TOLD_EVERY_S = 300.0
# Agents at once; what is forgotten is taken apart anew.
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
# What a condition may say of the agent is named, and not what it may not: (agent).owner is the owner as well.
_UNKNOWN = re.compile(r"\bcluster\b|\bagent\b(?!\s*\.\s*(?:name|teams)\b)(?:\s*\.\s*owner\b)?")


class GuardrailDenied(Refused):
    """A guardrail does not let a request pass; `head` and `body` are the answer that says so."""

    def __init__(self, advice: Advice, method: str) -> None:
        message = f"the guardrails of this cluster: {advice.message}"
        super().__init__(Failure(StreamCode.FORBIDDEN, Processed.NO, message))
        self.rule = advice.rule
        mark = ((DECISION_HEADER, f"guardrails {advice.rule}".encode("ascii")),)
        self.head, body = status_response(403, "", message, details=_details(advice), headers=mark)
        self.body = b"" if method == "HEAD" else body


@attrs.frozen
class _Agent:
    """Who acts, as far as the hub's token tells."""

    name: str
    teams: tuple[str, ...]
    owner: str = ""


@attrs.frozen
class _ThisCluster:
    """The one cluster there is here; nothing of it can be asked for."""

    name: str = "this"
    labels: dict[str, str] = attrs.Factory(dict)


_HERE = _ThisCluster()
_Stamp = tuple[tuple[str, int, int, int, int], ...]


@attrs.frozen
class _Read:
    """The files at one moment."""

    stamp: _Stamp
    bundle: Bundle
    allows: bool
    """Whether some rule allows, switched on or not: then what no rule allows does not pass."""


class _RelayConditions:
    """Conditions without what a relay does not know."""

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
        """Read them for the first time; raises PolicyError with every fault.

        `namespace` is the relay's own, empty outside a cluster. A file must be there; a folder may be empty,
        and then lets everything pass.
        """
        self._path = path
        self._namespace = namespace
        self._clock = clock
        self._monotonic = monotonic
        self._read = _read(path, namespace)
        self._refused: _Stamp | None = None
        self._fault = ""
        self._told_at = 0.0
        self._tell()

    def check(self, claims: RelayClaims, info: RequestInfo) -> None:
        """Let a request pass; raises GuardrailDenied."""
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
        """Whether some rule looks at the time, so that what was let pass may not pass later."""
        return self._read.bundle.timed

    def look(self) -> bool:
        """Read the files again if they have changed, and return whether others are in force now.

        A fault leaves what stands, and is logged.
        """
        now = self._monotonic()
        stamp: _Stamp | None = None
        try:
            stamp = _stamp(self._path)
            if stamp == self._read.stamp:
                self._fault = ""
                return False
            if self._fault and stamp == self._refused and now - self._told_at < FAULT_TOLD_EVERY_S:
                return False
            if not stamp:
                raise PolicyError([Fault(str(self._path), 1, "", "all guardrails have gone")])
            self._read = _read(self._path, self._namespace)
        except PolicyError as error:
            fault = "; ".join(map(str, error.faults))
            if fault != self._fault or now - self._told_at >= FAULT_TOLD_EVERY_S:
                self._told_at = now
                log.error("the changed guardrails are refused, the former ones stay in force: %s", fault)
            self._refused, self._fault = stamp, fault
            return False
        self._fault = ""
        self._tell()
        return True

    @property
    def summary(self) -> str:
        """What is in force, in one line."""
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
    # Kubernetes keeps what it mounts in hidden folders, and links to it.
    files = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    strange = [entry for entry in files if entry.suffix not in SUFFIXES or not entry.is_file()]
    if strange:
        # One that was meant to be read and is not would be a limit that nobody keeps.
        raise PolicyError([Fault(str(entry), 1, "", "is no .yaml or .yml file") for entry in strange])
    if len(files) > FILES_MAX:
        raise PolicyError([Fault(str(path), 1, "", f"{len(files)} files exceed the {FILES_MAX} allowed")])
    return files


def _stamp(path: Path) -> _Stamp:
    """What changes when a file does; raises PolicyError."""
    try:
        return tuple(
            (str(file), status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
            for file in _files(path)
            for status in (file.stat(),)
        )
    except OSError as error:
        # No line, which would send the reader into a file that is not there.
        raise PolicyError([Fault("", 0, "", f"{path} cannot be read: {error.strerror}")]) from error


def _read(path: Path, namespace: str) -> _Read:
    """Read and compile all of it; raises PolicyError."""
    # Taken first: a change meanwhile is then seen at the next look.
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
    """What a hub's policy may say and a guardrail may not."""
    for policy in bundle.policies:
        source = policy.source
        if policy.clusters != ClusterSelector():
            message = "a guardrail is about the cluster that it stands in: leave clusters out"
            yield Fault(source.file, source.first_line, "spec.clusters", message)
        for rule in policy.rules:
            if rule.max_duration_s is not None:
                message = "a guardrail lets a request pass or not: durations are the hub's to bound"
                yield Fault(source.file, rule.line, f"rule {rule.id}", message)


def _details(advice: Advice) -> dict[str, object]:
    """The denial for programs, in the form that Kubernetes has for causes."""
    causes = [{"reason": "GuardrailDenied", "message": advice.rule, "field": "rule"}]
    if advice.instead:
        causes.append({"reason": "GuardrailDenied", "message": advice.instead, "field": "instead"})
    causes.append({"reason": "GuardrailDenied", "message": advice.ask, "field": "ask"})
    return {"causes": causes}
