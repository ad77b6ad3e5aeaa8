"""What to type here for what another command line has taught: kubectl's verbs, their order, its options.

Looked up only after click has refused the words.
"""

from __future__ import annotations

from collections.abc import Iterator

import click

# The words of other command lines, and what they are called here, the nearest first.
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


def advised(error: click.ClickException) -> click.ClickException:
    """The same error, or one that says as well what to type instead."""
    if isinstance(error, click.exceptions.NoSuchCommand) and error.ctx is not None:
        advice = _instead_of_command(error.command_name, error.ctx)
    elif isinstance(error, click.exceptions.NoSuchOption) and error.ctx is not None:
        advice = _instead_of_option(error.option_name, error.ctx)
    else:
        return error
    return click.UsageError(f"{error.message} {advice}", error.ctx) if advice else error


def _instead_of_command(word: str, ctx: click.Context) -> str:
    group = ctx.command
    assert isinstance(group, click.Group), "only a group looks for a command"
    meant = _VERBS.get(word, (word,))
    if own := [name for name in meant if name in group.list_commands(ctx)]:
        return f"Did you mean `{ctx.command_path} {own[0]}`?"
    if word.removesuffix("s") in group.commands:
        # The plural of a noun, which click knows for a near word, though `agent teams` is a command too.
        return ""
    # In the order of the table above: what `get` means before anything else is `list`.
    inner = [f"{ctx.command_path} {noun} {verb}" for verb in meant for noun in _nouns_with(verb, group)]
    if len(inner) == 1:
        return f"Did you mean `{inner[0]}`?"
    return f"The noun comes first, as in `{inner[0]}`." if inner else ""


def _nouns_with(verb: str, group: click.Group) -> Iterator[str]:
    for noun, inner in group.commands.items():
        if isinstance(inner, click.Group) and verb in inner.commands:
            yield noun


def _instead_of_option(option: str, ctx: click.Context) -> str:
    above = ctx.parent
    while above is not None:
        if _has(above.command, option):
            return f"It is an option of `{above.command_path}`, and stands behind those words."
        above = above.parent
    if isinstance(ctx.command, click.Group):
        for name, inner in ctx.command.commands.items():
            if _has(inner, option):
                return f"It stands behind the command, as in `{ctx.command_path} {name} {option}`."
    if option == "-o" and _has(ctx.command, "--json"):
        return "Did you mean '--json'?"
    if option in {"-f", "--filename"} and _has(ctx.command, "files"):
        return "The file is named without it."
    return ""


def _has(command: click.Command, name: str) -> bool:
    return any(name in param.opts for param in command.params)
