"""Conditions of rules (`when`) in CEL, the language of Kubernetes' own admission policies.

The evaluator is a Rust library (the extras `hub` and `guardrails`), loaded when the first policy with a
condition is read; all that stands here is what a condition may look at, and what one may cost.

A condition sees `request`, `agent`, `cluster` and `now`, and nothing else; a name or a field that is not
there is refused when the policy is read, as is an answer that is neither true nor false. CEL has no loops of
its own, only the macros over lists, and two of them in one another are the most there may be; still a long
text can be searched by a slow expression, so the time is taken of each evaluation, in CPU seconds of the
thread, and one that took longer than CONDITION_S_MAX, twice in a row, counts as failed: once it may have been
the collector of garbage, which works on the same thread. Failed is denied (see `auth.policy.match`).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FileFinder
from importlib.util import find_spec, module_from_spec
from threading import Lock
from types import ModuleType
from typing import Protocol

import attrs

from auth.policy.match import Condition, ConditionError, Facts
from auth.request_kind import Asked
from auth.requestinfo import parse

# Longer than any rule that a person reads; it also bounds how deep an expression can be nested.
CONDITION_CHARACTERS_MAX = 1000
# Each runs over a list, and in one another their lengths multiply.
MACROS_MAX = 2
# A plain condition takes some 10 µs, one over 64 teams and 64 labels some 500.
CONDITION_S_MAX = 0.005
# Of a text that a request brings. An agent can make a path of 1 MiB, on which a slow expression takes seconds
# before anybody can take its time; names in Kubernetes have 253 characters.
TEXT_CHARACTERS_MAX = 8 * 1024

# A string, so that what is only text is not taken for a name. CEL's triple quotes and raw strings are refused
# instead: nobody needs them in a line.
_STRING = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'")
_UNREADABLE = re.compile(r"//|\"\"\"|'''|[rRbB]+[\"']")
_MACRO = re.compile(r"\b(?:all|exists|exists_one|map|filter)\s*\(\s*([A-Za-z_]\w*)\s*,")
_MACRO_NAME = re.compile(r"\b(?:all|exists|exists_one|map|filter)\s*\(")
_FIELD = re.compile(r"\b(request|agent|cluster)\s*\.\s*([A-Za-z_]\w*)")
_PACKAGE = "cel"
_EXTENSION = "cel.cel"
_LOADING = Lock()
_REQUEST = "request"
_NOW = "now"
_FUNCTIONS = frozenset(
    {
        *("size", "contains", "startsWith", "endsWith", "matches", "string", "int", "uint", "double"),
        *("timestamp", "duration", "getFullYear", "getMonth", "getDate", "getDayOfMonth", "getDayOfWeek"),
        *("getDayOfYear", "getHours", "getMinutes", "getSeconds", "getMilliseconds"),
    }
)


class Program(Protocol):
    """A compiled expression of the library."""

    def execute(self, context: dict[str, object]) -> object: ...
    def variables(self) -> list[str]: ...
    def functions(self) -> list[str]: ...


class CelConditions:
    """Conditions in CEL; `timer` gives CPU seconds, as time.thread_time does."""

    def __init__(self, timer: Callable[[], float]) -> None:
        self._timer = timer

    def check(self, text: str) -> str:
        """Say what is wrong with a condition; empty when nothing is."""
        if len(text) > CONDITION_CHARACTERS_MAX:
            return f"{len(text)} characters exceed the {CONDITION_CHARACTERS_MAX} of a condition"
        plain = without_strings(text)
        if _UNREADABLE.search(plain):
            return "comments, raw strings and triple quotes are refused in a condition"
        macros = len(_MACRO_NAME.findall(plain))
        if macros > MACROS_MAX:
            return (
                f"{macros} of all, exists, exists_one, map and filter exceed the {MACROS_MAX} of a condition"
            )
        try:
            program = _compile(text)
        except ValueError as error:
            return f"this is no CEL: {_first_line(error).rpartition('<input>:')[2]}"
        except ImportError:
            return (
                "a condition needs the package common-expression-language: "
                "pip install common-expression-language"
            )
        return _unknown(program, plain) or self._tried(program)

    def compile(self, text: str) -> Condition:
        """Make a condition that passed the check."""
        program = _compile(text)
        sections = [(name, _SECTIONS[name]) for name in program.variables() if name in _SECTIONS]
        timer = self._timer
        about_request = _REQUEST in dict(sections)

        def evaluated(facts: Facts) -> tuple[object, float]:
            # The path holds all the others, but for a name that the query selects.
            if about_request and max(len(facts.info.path), len(facts.info.name)) > TEXT_CHARACTERS_MAX:
                raise ConditionError(f"the request's path or name exceeds {TEXT_CHARACTERS_MAX} characters")
            begun = timer()
            try:
                answer = program.execute({name: section(facts) for name, section in sections})
            except Exception as error:
                # The library raises what it likes: KeyError for a label that is not there, for one.
                raise ConditionError(_failed(error)) from error
            return answer, timer() - begun

        def condition(facts: Facts) -> bool:
            answer, took_s = evaluated(facts)
            if took_s > CONDITION_S_MAX:
                answer, took_s = evaluated(facts)
            if took_s > CONDITION_S_MAX:
                raise ConditionError(
                    f"the condition took {took_s * 1000:.1f} ms, more than {CONDITION_S_MAX * 1000:.0f}"
                )
            if not isinstance(answer, bool):
                raise ConditionError(f"the condition gave {type(answer).__name__}, neither true nor false")
            return answer

        return condition

    def timed(self, text: str) -> bool:
        """Whether a condition that passed the check looks at the time."""
        return _NOW in _compile(text).variables()

    def _tried(self, program: Program) -> str:
        """Evaluate it once. What depends on the request may fail; a function or type that is not there fails
        each time."""
        try:
            answer = program.execute({name: section(_SAMPLE) for name, section in _SECTIONS.items()})
        except RuntimeError as error:
            return f"it cannot be evaluated: {_first_line(error)}"
        except Exception:
            return ""
        if not isinstance(answer, bool):
            return f"it gives {type(answer).__name__}: a condition must be true or false"
        return ""


def without_strings(text: str) -> str:
    """A condition whose strings are empty; of one that passes no check it may be anything."""
    return _STRING.sub("''", text)


def _compile(text: str) -> Program:
    program: Program = _library().compile(text)
    return program


def _library() -> ModuleType:
    """The library's extension module, loaded by the first condition of the process; raises ImportError.

    `import cel` would import its command line as well, and a terminal toolkit with it: 370 modules, 19 MB and
    0.15 s of CPU more. The images leave the toolkit out (deploy/Containerfile).
    """
    # Initialised a second time in a process, the module panics.
    with _LOADING:
        if (loaded := sys.modules.get(_EXTENSION)) is not None:
            return loaded
        package = find_spec(_PACKAGE)
        for folder in (package and package.submodule_search_locations) or ():
            spec = FileFinder(folder, (ExtensionFileLoader, EXTENSION_SUFFIXES)).find_spec(_EXTENSION)
            if spec is not None and spec.loader is not None:
                module = module_from_spec(spec)
                spec.loader.exec_module(module)
                # A later plain `import cel` finds this module instead of initialising a second one.
                sys.modules[_EXTENSION] = module
                return module
        raise ModuleNotFoundError(f"No module named {_EXTENSION!r}", name=_EXTENSION)


def _unknown(program: Program, plain: str) -> str:
    """The first name in a condition that means nothing."""
    bound = set(_MACRO.findall(plain))
    for name in program.variables():
        if name not in _SECTIONS and name not in bound:
            return f'there is no "{name}" in a condition, only {", ".join(_SECTIONS)}'
    for name in program.functions():
        if re.fullmatch(r"[A-Za-z]\w*", name) and name not in _FUNCTIONS:
            return f'there is no function "{name}", only {", ".join(sorted(_FUNCTIONS))}'
    for section, field in _FIELD.findall(plain):
        known = tuple(_FIELDS[section](_SAMPLE))
        if section not in bound and field not in known:
            return f'there is no "{section}.{field}", only {", ".join(known)}'
    return ""


def _failed(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"the condition needs {error}, which is not there"
    return f"the condition failed: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200] or type(error).__name__


def _request(facts: Facts) -> dict[str, object]:
    asked, info = facts.asked, facts.info
    return {
        "verb": asked.verb,
        "reads": asked.reads,
        "group": asked.group,
        "version": info.version,
        "resource": asked.resource,
        "subresource": asked.subresource,
        "namespace": asked.namespace,
        "name": info.name,
        "path": info.path,
        "dryRun": info.dry_run,
    }


def _agent(facts: Facts) -> dict[str, object]:
    return {"name": facts.agent.name, "owner": facts.agent.owner, "teams": list(facts.agent.teams)}


def _cluster(facts: Facts) -> dict[str, object]:
    return {"name": facts.cluster.name, "labels": dict(facts.cluster.labels)}


def _now(facts: Facts) -> datetime:
    return datetime.fromtimestamp(facts.now, UTC)


_FIELDS: dict[str, Callable[[Facts], dict[str, object]]] = {
    _REQUEST: _request,
    "agent": _agent,
    "cluster": _cluster,
}
_SECTIONS: dict[str, Callable[[Facts], object]] = {**_FIELDS, _NOW: _now}


@attrs.frozen
class _SampleAgent:
    name: str = "sample"
    owner: str = "sample@example.com"
    teams: tuple[str, ...] = ("sample",)


@attrs.frozen
class _SampleCluster:
    name: str = "sample"
    labels: dict[str, str] = attrs.Factory(dict)


_SAMPLE = Facts(
    Asked("get", True, "", "pods", "", "default", "", collective=False, across=False),
    parse(b"GET", b"/api/v1/namespaces/default/pods/a"),
    _SampleAgent(),
    _SampleCluster(),
    0.0,
)
