"""The code blocks of a page, with the marks that say how a test runs them.

A block is a run of lines indented by four spaces. A comment right above it may mark it:

    <!-- stand-in: NAME -->    the block needs what a test does not have; something else is done in its place
    <!-- way: NAME -->         the block is for one of several ways to reach the same state
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import attrs

_MARK = re.compile(r"<!-- (stand-in|way): ([a-z]+) -->")
_EXACT = re.compile(r"[0-9]/[0-9]|[1-5][0-9]{2}")
_INDENT = "    "
_PROMPT = "$ "


@attrs.frozen
class Step:
    """Lines for a shell, and what they must print: None where the page does not show it."""

    lines: str
    output: str | None = None


@attrs.frozen
class Block:
    """A code block; `number` is the line of the page on which it begins."""

    number: int
    text: str
    stand_in: str = ""
    way: str = ""

    @property
    def steps(self) -> list[Step]:
        """All lines as one step, or a step for each prompt and the output below it."""
        if not self.text.startswith(_PROMPT):
            return [Step(self.text)]
        steps = []
        for part in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            steps.append(Step(command, output))
        return steps


def blocks(page: str) -> Iterator[Block]:
    """Yield the blocks of a page, in order. Raises ValueError for a mark without a block."""
    mark: re.Match[str] | None = None
    begun, lines = 0, list[str]()
    for number, line in enumerate([*page.splitlines(), "end"], 1):
        if line.startswith(_INDENT):
            begun = begun or number
            lines.append(line.removeprefix(_INDENT))
        elif not line:
            if lines:
                lines.append("")
        else:
            if lines:
                named = {} if mark is None else {mark[1].replace("-", "_"): mark[2]}
                yield Block(begun, "\n".join(lines).strip("\n") + "\n", **named)
                begun, lines, mark = 0, [], None
            if mark is not None:
                raise ValueError(f"line {number}: the mark above is followed by no block")
            mark = _MARK.fullmatch(line)


def pattern(output: str) -> re.Pattern[str]:
    """A pattern for what a command must print. A word may differ from its first digit on (an age, an id), and
    so may the space between columns. READY (1/1) and the status of an answer (403) must not differ.
    """
    words = [word if _EXACT.fullmatch(word) else re.sub(r"[0-9].*", "\0", word) for word in output.split()]
    return re.compile(r"\s+".join(re.escape(word).replace("\0", r"\S+") for word in words))
