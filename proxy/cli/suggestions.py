"""Suggests the right command for words known from other command lines: kubectl's verbs, order and options.

Used only after click has rejected the words.
"""

from __future__ import annotations

from collections.abc import Iterator

import click

# Words of other command lines, and their equivalents here, best first.
_VERBS = {
    "get": ("list", "show"),
    "ls": ("list",),
    "describe": ("show",),
    "create": ("add",),
    "new": ("add",),
    "delete": ("remove", "revoke"),
    "del": ("remove", "revoke"),
    "rm": ("remove", "revoke"),
    "tail": ("list",),
    "whoami": ("status",),
}


def with_suggestion(error: click.ClickException) -> click.ClickException:
    """Return the error, with a suggestion if there is one."""
    if isinstance(error, click.exceptions.NoSuchCommand) and error.ctx is not None:
        suggestion = _suggest_command(error.command_name, error.ctx)
    elif isinstance(error, click.exceptions.NoSuchOption) and error.ctx is not None:
        suggestion = _suggest_option(error.option_name, error.ctx)
    else:
        return error
    return click.UsageError(f"{error.message} {suggestion}", error.ctx) if suggestion else error


def _suggest_command(word: str, ctx: click.Context) -> str:
    group = ctx.command
    assert isinstance(group, click.Group), "only a group looks for a command"
    candidates = _VERBS.get(word, (word,))
    if own := [name for name in candidates if name in group.list_commands(ctx)]:
        return f"Did you mean `{ctx.command_path} {own[0]}`?"
    if word.removesuffix("s") in group.commands:
        # A noun in the plural: click itself suggests the noun. `agent teams` is a command too.
        return ""
    # In the table's order: `get` means `list` first of all.
    inner = [f"{ctx.command_path} {noun} {verb}" for verb in candidates for noun in _nouns_with(verb, group)]
    if len(inner) == 1:
        return f"Did you mean `{inner[0]}`?"
    return f"The noun comes first, as in `{inner[0]}`." if inner else ""


def _nouns_with(verb: str, group: click.Group) -> Iterator[str]:
    for noun, inner in group.commands.items():
        if isinstance(inner, click.Group) and verb in inner.commands:
            yield noun


def _suggest_option(option: str, ctx: click.Context) -> str:
    above = ctx.parent
    while above is not None:
        if _has(above.command, option):
            return f"It is an option of `{above.command_path}`: put it right after those words."
        above = above.parent
    if isinstance(ctx.command, click.Group):
        for name, inner in ctx.command.commands.items():
            if _has(inner, option):
                return f"Put it after the command, as in `{ctx.command_path} {name} {option}`."
    if option == "-o" and _has(ctx.command, "--json"):
        return "Did you mean '--json'?"
    if option in {"-f", "--filename"} and _has(ctx.command, "files"):
        return "Files are plain arguments here: leave the option out."
    return ""


def _has(command: click.Command, name: str) -> bool:
    return any(name in param.opts for param in command.params)
