"""The anchors of a page, and the words of a command line that `hawse` does not have."""

from __future__ import annotations

import re

import click

from proxy.cli.group import build_group


def anchors(page: str) -> set[str]:
    """The anchors of the headings, as GitHub and GitLab make them."""
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def unknown(command: str) -> list[str]:
    """The words of a command line that `hawse` does not have: commands and options."""
    at: click.Command = build_group()
    wrong: list[str] = []
    # Quoted arguments may look like options, and so may what runs after `--`.
    line = re.sub(r'"[^"]*"', "WORD", command).replace("…", "").replace("[", " ").replace("]", " ")
    is_value = False
    for word in line.split(" -- ")[0].split()[1:]:
        if is_value:
            is_value = False
        elif word.startswith("-"):
            # Before a command, the word after an option is its value.
            takes_one = any(word in each.opts and not getattr(each, "is_flag", False) for each in at.params)
            is_value = isinstance(at, click.Group) and takes_one
            known = {option for each in at.params for option in (*each.opts, *each.secondary_opts)}
            if not set(word.partition("=")[0].split("|")) <= known:
                wrong.append(word)
        elif isinstance(at, click.Group):
            # `apply|remove`: either of them.
            below = [at.get_command(click.Context(at), name) for name in word.split("|")]
            if below[0] is None or None in below:
                return [word]
            at = below[0]
    return wrong
