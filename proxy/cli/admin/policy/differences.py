"""Prints differences and faults of policies, as the admin API answers them."""

from __future__ import annotations

import re
from collections.abc import Iterable

import click

from audit.escape import escape
from proxy.cli.output import Object, objects, text, texts

_WORDS = {"layout": "only comments or layout"}


def print_differences(changes: Iterable[Object]) -> None:
    """Print a difference: a line for each policy and each rule, and the rule's lines below it."""
    printed = False
    for change in changes:
        printed = True
        how = text(change, "change")
        _print(f"policy {text(change, 'policy')}: {_WORDS.get(how, how)}")
        _print_lines(texts(change, "settings"))
        for rule in objects(change, "rules"):
            effect, line = text(rule, "effect"), text(rule, "line")
            _print(f"  rule {text(rule, 'rule')} ({effect}, line {line}): {text(rule, 'change')}")
            _print_lines(texts(rule, "lines"))
    if not printed:
        _print("no difference")


def fault_line(fault: Object) -> str:
    """Return a fault as the hub words it when it refuses the documents."""
    message, line = text(fault, "message"), text(fault, "line")
    if not fault.get("line"):
        return escape(message)
    where = f"{text(fault, 'file')}:{line}" if fault.get("file") else f"line {line}"
    return escape(": ".join(part for part in (where, text(fault, "path"), message) if part))


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        _print(f"    {line}")


def _print(line: str) -> None:
    click.echo(as_written(line))


def as_written(line: str) -> str:
    """Escape a line of a policy for a terminal. Applied again, it is the same policy."""
    return re.sub(r"[^\\\t]+", lambda part: escape(part[0]), line)
