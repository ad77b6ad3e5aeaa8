"""Conditions of rules (`when`) in CEL, the language of Kubernetes' admission policies.

The evaluator is a Rust library (extras `hub` and `guardrails`), loaded for the first policy with a condition.
This module defines what a condition can read and how much it may cost.

A condition reads `request`, `agent`, `cluster` and `now`. Unknown names and fields are refused when the
policy is read, and so is a result that is not a boolean.

CEL has no loops, only macros over lists, and at most two of them may be nested. A slow expression over a long
text can still take time. So each evaluation is timed, in CPU seconds of the thread. If it takes longer than
CONDITION_S_MAX twice in a row, it counts as failed; the first time may have been garbage collection, which
runs on the same thread. A failed condition denies the request (see `auth.policy.match`).
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
from auth.request_kind import RequestKind
from auth.requestinfo import parse

# Longer than any rule that people read. It also bounds how deep an expression can nest.
CONDITION_CHARACTERS_MAX = 1000
# Each macro runs over a list, and nested macros multiply.
MACROS_MAX = 2
# A simple condition takes about 10 µs; one over 64 teams and 64 labels about 500 µs.
CONDITION_S_MAX = 0.005
# Maximum length of a text from the request. An agent can send a path of 1 MiB, on which a slow expression
# runs for seconds, and its time is measured only afterwards. Kubernetes names have at most 253 characters.
TEXT_CHARACTERS_MAX = 8 * 1024

# String literals are removed first, so that their text is not taken for names. CEL's triple quotes and raw
# strings are refused instead: a one-line condition has no use for them.
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
    """Conditions in CEL; `timer` returns CPU seconds, as time.thread_time does."""

    def __init__(self, timer: Callable[[], float]) -> None:
        self._timer = timer

    def check(self, text: str) -> str:
        """Return what is wrong with a condition; empty if it is valid."""
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
            return f"not valid CEL: {_first_line(error).rpartition('<input>:')[2]}"
        except ImportError:
            return (
                "a condition needs the package common-expression-language: "
                "pip install common-expression-language"
            )
        return _unknown(program, plain) or self._try_once(program)

    def compile(self, text: str) -> Condition:
        """Compile a condition that passed the check."""
        program = _compile(text)
        sections = [(name, _SECTIONS[name]) for name in program.variables() if name in _SECTIONS]
        timer = self._timer
        about_request = _REQUEST in dict(sections)

        def evaluated(facts: Facts) -> tuple[object, float]:
            # The path contains all the other texts, except a name that the query selects.
            if about_request and max(len(facts.info.path), len(facts.info.name)) > TEXT_CHARACTERS_MAX:
                raise ConditionError(f"the request's path or name exceeds {TEXT_CHARACTERS_MAX} characters")
            begun = timer()
            try:
                answer = program.execute({name: section(facts) for name, section in sections})
            except Exception as error:
                # The library raises arbitrary exceptions, such as KeyError for a missing label.
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
        """Whether a condition that passed the check reads the time."""
        return _NOW in _compile(text).variables()

    def _try_once(self, program: Program) -> str:
        """Evaluate the condition once on a sample, and return what is wrong.

        Errors that depend on the request's data are ignored. An unknown function or type fails on every
        request.
        """
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
    """Return the condition with empty string literals. For an invalid condition the result is undefined."""
    return _STRING.sub("''", text)


def _compile(text: str) -> Program:
    program: Program = _library().compile(text)
    return program


def _library() -> ModuleType:
    """The library's extension module, loaded for the first condition of the process; raises ImportError.

    `import cel` also imports its command line and a terminal toolkit: 370 modules, 19 MB and 0.15 s of CPU
    more. The container images omit that toolkit (deploy/Containerfile).
    """
    # The module panics if one process initialises it twice.
    with _LOADING:
        if (loaded := sys.modules.get(_EXTENSION)) is not None:
            return loaded
        package = find_spec(_PACKAGE)
        for folder in (package and package.submodule_search_locations) or ():
            spec = FileFinder(folder, (ExtensionFileLoader, EXTENSION_SUFFIXES)).find_spec(_EXTENSION)
            if spec is not None and spec.loader is not None:
                module = module_from_spec(spec)
                spec.loader.exec_module(module)
                # A later plain `import cel` then finds this module, and does not initialise a second one.
                sys.modules[_EXTENSION] = module
                return module
        raise ModuleNotFoundError(f"No module named {_EXTENSION!r}", name=_EXTENSION)


def _unknown(program: Program, plain: str) -> str:
    """Return an error for the first unknown name in a condition; empty if there is none."""
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
    kind, info = facts.kind, facts.info
    return {
        "verb": kind.verb,
        "reads": kind.reads,
        "group": kind.group,
        "version": info.version,
        "resource": kind.resource,
        "subresource": kind.subresource,
        "namespace": kind.namespace,
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
    RequestKind("get", True, "", "pods", "", "default", "", collective=False, across=False),
    parse(b"GET", b"/api/v1/namespaces/default/pods/a"),
    _SampleAgent(),
    _SampleCluster(),
    0.0,
)
