"""Output of commands: tables and sentences for people, JSON for programs.

Results (a key, a manifest, a list) go to standard output, notes for a person to standard error, so that
either can be piped. Some values, such as relay names, are chosen by remote peers, so all output is escaped
for terminals.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TypeAlias

import click

from audit.escape import escape, escape_lines
from auth.principal import IdentityError, slug
from proxy.cli.errors import CommandError, indented
from proxy.cli.table import laid_out, terminal_columns

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
Object: TypeAlias = "dict[str, Json]"
Column = tuple[str, Callable[[Object], str]]

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
yes_option = click.option(
    "--yes", is_flag=True, help="Do not ask for confirmation. Without a terminal it never asks."
)


def print_json(value: Json) -> None:
    """Print a JSON document."""
    click.echo(as_json_text(value), nl=False)


def as_json_text(value: Json) -> str:
    """Format a JSON document, in ASCII so that it is safe on a terminal too."""
    return json.dumps(value, indent=2, ensure_ascii=True) + "\n"


def print_table(
    rows: Sequence[Object],
    columns: Sequence[Column],
    *,
    as_json: bool,
    empty: str,
    spare: Sequence[str] = (),
) -> None:
    """Print rows under their headings. Without rows, print `empty`, which names the next step.

    As JSON, print complete rows. `spare` are the columns that a narrow terminal leaves out, in that order.
    """
    if as_json:
        print_json([*rows])
        return
    cells = [[escape(cell(row)) for _, cell in columns] for row in rows]
    if not cells:
        say(empty)
        return
    table = laid_out([[name for name, _ in columns], *cells], spare, terminal_columns())
    for line in table.lines:
        click.echo(line)
    if table.left_out:
        say(f"not shown: {', '.join(table.left_out)} (all: --json, or | cat)")


def print_fields(document: Object, fields: Sequence[Column], *, as_json: bool) -> None:
    """Print one object, one field a line; as JSON, the complete object."""
    if as_json:
        print_json(document)
        return
    width = max(len(name) for name, _ in fields)
    for name, cell in fields:
        click.echo(f"{name.ljust(width)}  {escape(cell(document))}".rstrip())


def confirm(question: str, *, yes: bool) -> None:
    """Ask before an irreversible change. Does not ask with --yes or without a terminal."""
    if not yes and sys.stdin.isatty():
        click.confirm(question, abort=True, err=True)


def say(text: str) -> None:
    """Print a note for a person to standard error.

    Each line is escaped separately. Only text from the hub can have several lines.
    """
    click.echo(indented(escape_lines(text)), err=True)


def print_change(document: Object, sentence: str, *, as_json: bool) -> None:
    """Report a change, and the clusters whose RBAC must be applied. As JSON, print the hub's whole answer."""
    if as_json:
        print_json(document)
        return
    say(sentence)
    say_apply_rbac(document)


def say_apply_rbac(document: Object) -> None:
    """Name the clusters whose ClusterRole is outdated, with the command for each."""
    try:
        # The commands are pasted into a shell.
        names = [slug("cluster name", name) for name in texts(document, "apply_rbac")]
    except IdentityError as error:
        raise CommandError(f"the hub's answer holds an invalid name: {error}") from error
    if names:
        say("the users that the relay may impersonate have changed; apply this in each cluster:")
        for name in names:
            say(f"  hawse admin cluster rbac {name} | kubectl apply -f -")
        say("  (add --namespace, --service-account and --constrained if the relay was set up with them)")
        say("  (if its chart is installed: hawse admin cluster values NAME, then helm upgrade)")
        if len(names) > 1:
            say("or keep a file for each: hawse admin cluster rbac --all --output-dir DIR")


def objects(document: Object, key: str) -> list[Object]:
    """Return the list of objects under a key."""
    value = document.get(key)
    if not isinstance(value, list):
        raise CommandError(f"the hub's answer has no {key}: does the hub run the same version?")
    return [item for item in value if isinstance(item, dict)]


def child(document: Object, key: str) -> Object:
    """Return the object under a key."""
    value = document.get(key)
    if not isinstance(value, dict):
        raise CommandError(f"the hub's answer has no {key}: does the hub run the same version?")
    return value


def text(document: Object, key: str) -> str:
    """Return the text under a key; empty if it is missing."""
    value = document.get(key)
    return "" if value is None else str(value)


def texts(document: Object, key: str) -> list[str]:
    """Return the list of texts under a key."""
    value = document.get(key)
    return [str(item) for item in value] if isinstance(value, list) else []


def strict_texts(document: Object, key: str) -> list[str]:
    """Return the list of texts under a key, which must be present but may be empty. Raises CommandError."""
    if not isinstance(document.get(key), list):
        raise CommandError(f"the hub's answer has no {key}: does the hub run the same version?")
    return texts(document, key)


def field(key: str) -> Callable[[Object], str]:
    """A column that shows a text."""
    return lambda row: text(row, key) or "-"


def listed(key: str) -> Callable[[Object], str]:
    """A column that shows a list."""
    return lambda row: ", ".join(texts(row, key)) or "-"


def since(key: str) -> Callable[[Object], str]:
    """A column that shows the age of a time."""
    return lambda row: age(text(row, key), datetime.now(UTC))


def age(when: str, now: datetime) -> str:
    """Return the age of a time, in the largest fitting unit."""
    if not when:
        return "never"
    try:
        seconds = max(0, int((now - datetime.fromisoformat(when)).total_seconds()))
    except ValueError:
        return when
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit} ago"
    return f"{seconds}s ago"
