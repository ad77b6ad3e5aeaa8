"""The groups of hawse's commands."""

from __future__ import annotations

import click

from proxy.cli.group import build_group


def groups(*path: str) -> list[tuple[str, ...]]:
    """The paths of the group at `path` and of the groups in it."""
    found: click.Command | None = build_group()
    for name in path:
        assert isinstance(found, click.Group)
        found = found.get_command(click.Context(found), name)
    if not isinstance(found, click.Group):
        return []
    return [path, *(inner for name in found.commands for inner in groups(*path, name))]
