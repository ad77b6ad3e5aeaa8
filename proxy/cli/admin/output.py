"""How `hawse admin` speaks: tables and sentences for people, JSON for programs.

What a program wants (a key, a manifest, a list) goes to standard output, what a person wants to read beside
it to standard error, so that each can be piped by itself. Names of relays and the like were chosen by their
senders, so everything is made safe for a terminal first.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import click

from audit.escape import escape, escape_lines
from auth.principal import IdentityError, slug
from proxy.cli.admin.client import Json, Object
from proxy.cli.admin.table import laid_out, terminal_columns
from proxy.cli.errors import CommandError, indented

Column = tuple[str, Callable[[Object], str]]

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask; who has no terminal is never asked.")


def print_json(value: Json) -> None:
    """Print a document for a program."""
    click.echo(as_json_text(value), nl=False)


def as_json_text(value: Json) -> str:
    """A document for a program; in ASCII, so that it is safe for a terminal too."""
    return json.dumps(value, indent=2, ensure_ascii=True) + "\n"


def print_table(
    rows: Sequence[Object],
    columns: Sequence[Column],
    *,
    as_json: bool,
    empty: str,
    spare: Sequence[str] = (),
) -> None:
    """Print rows under their headings, or the sentence that says what to do when there are none.

    As JSON it is every row with all that it holds. `spare` are the columns that a narrow terminal does not
    show, the first of them first.
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
    """Print one thing, a field a line; as JSON with all that it holds."""
    if as_json:
        print_json(document)
        return
    width = max(len(name) for name, _ in fields)
    for name, cell in fields:
        click.echo(f"{name.ljust(width)}  {escape(cell(document))}".rstrip())


def confirm(question: str, *, yes: bool) -> None:
    """Ask before what cannot be undone; a program, or whoever said --yes, is not asked."""
    if not yes and sys.stdin.isatty():
        click.confirm(question, abort=True, err=True)


def say(text: str) -> None:
    """Tell the person something that no program reads.

    Its lines are made safe, each by itself; a second one can only be of what the hub has said.
    """
    click.echo(indented(escape_lines(text)), err=True)


def tell_change(document: Object, sentence: str, *, as_json: bool) -> None:
    """Say what was changed, and where its RBAC has to be applied; as JSON, all that the hub answers."""
    if as_json:
        print_json(document)
        return
    say(sentence)
    say_apply_rbac(document)


def say_apply_rbac(document: Object) -> None:
    """Name the clusters whose ClusterRole no longer fits, with the command for each."""
    try:
        # They are pasted into a shell.
        names = [slug("cluster name", name) for name in texts(document, "apply_rbac")]
    except IdentityError as error:
        raise CommandError(f"the hub's answer holds a name that is refused: {error}") from error
    if names:
        say("whom the relay may impersonate has changed; apply it in each cluster:")
        for name in names:
            say(f"  hawse admin cluster rbac {name} | kubectl apply -f -")
        say("  (with --namespace, --service-account and --constrained, where the relay was set up with them)")


def objects(document: Object, key: str) -> list[Object]:
    """The list of objects under a key."""
    value = document.get(key)
    if not isinstance(value, list):
        raise CommandError(f"the hub's answer holds no {key}: is it of the same version?")
    return [item for item in value if isinstance(item, dict)]


def child(document: Object, key: str) -> Object:
    """The object under a key."""
    value = document.get(key)
    if not isinstance(value, dict):
        raise CommandError(f"the hub's answer holds no {key}: is it of the same version?")
    return value


def text(document: Object, key: str) -> str:
    """The text under a key; empty when there is none."""
    value = document.get(key)
    return "" if value is None else str(value)


def texts(document: Object, key: str) -> list[str]:
    """The list of texts under a key."""
    value = document.get(key)
    return [str(item) for item in value] if isinstance(value, list) else []


def strict_texts(document: Object, key: str) -> list[str]:
    """The list of texts under a key, which has to be there, be it empty. Raises CommandError."""
    if not isinstance(document.get(key), list):
        raise CommandError(f"the hub's answer holds no {key}: is it of the same version?")
    return texts(document, key)


def field(key: str) -> Callable[[Object], str]:
    """A cell that shows a text."""
    return lambda row: text(row, key) or "-"


def listed(key: str) -> Callable[[Object], str]:
    """A cell that shows a list."""
    return lambda row: ", ".join(texts(row, key)) or "-"


def since(key: str) -> Callable[[Object], str]:
    """A cell that shows how long ago a time was."""
    return lambda row: age(text(row, key), datetime.now(UTC))


def age(when: str, now: datetime) -> str:
    """Say how long ago a time was, in its one fitting unit."""
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
