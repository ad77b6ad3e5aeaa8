"""Some steps of the demo's run as a terminal: what they print, without what differs from run to run."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

from docs.pictures.svg import MONO, SANS, Picture, path, rect, terminal_line, text
from sandbox.demo.scene import Step
from sandbox.demo.script import STEPS

# A call, a denial by policy, a lock that ends an open call, and a person who decides.
SHOWN = ("get", "denied", "lock", "ask again")
# Of the demo's output, and of a phone.
COLUMNS, PHONE_COLUMNS = 80, 46
TITLE = "A run of make demo"
DESCRIPTION = (
    "A terminal. kubectl lists the pods of a cluster. A policy denies a delete, with its rule, a reason and "
    "a contact. The operator locks the agent, which ends its open exec and refuses its next call. A person "
    "denies a call that waits for approval."
)
# What differs from run to run, and what is shown for it: an age, and the number of a request for approval.
# That of a bundle, which has a dash before it, is the same in each run.
_VARYING = ((r"(?<=   )\d+s$", "8s"), (r"\b[0-9a-f]{16}\b(?<!-[0-9a-f]{16})", "7b6bdb4f15868a7b"))
# Nothing that is shown is a secret. This refuses what a later version of the demo may print: a token, a code
# or a key, which are longer, a URL, an address with a port, a path of this machine, or a time.
_REFUSED = re.compile(r"[\w+=-]{21,}|://|\d:\d|(?<![\w/.])/\w|hw[a-z]_|-----")
FONT_PX, ADVANCE_PX, LINE_PX = 13.5, 8.1, 20
PAD_PX, HEAD_PX = 22, 40

STYLE = f"""
text {{ font: {FONT_PX}px {MONO}; fill: $text; }}
tspan {{ white-space: pre; }}
.window {{ fill: $surface; stroke: $edge; }}
.rule {{ stroke: $edge; }}
.head {{ font: 13px {SANS}; fill: $quiet; }}
.prompt {{ fill: $accent; font-weight: 600; }}
.command {{ font-weight: 600; }}
.output {{ fill: $quiet; }}
.error {{ fill: $bad; }}
.ok {{ fill: $ok; font-weight: 600; }}
.meaning {{ fill: $ok; }}
"""


class UnfitOutput(Exception):
    """The demo's output lacks a step, or has what the picture must not show."""


def captured() -> str:
    """What `make demo ARGS=--once` prints."""
    with TemporaryDirectory() as folder:
        argv = [sys.executable, "-m", "sandbox.demo", "--once", "--port=0", f"--dir={Path(folder, 'demo')}"]
        return subprocess.run(argv, check=False, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603 - ours


def steps() -> list[Step]:
    """The shown steps, in the demo's order."""
    return [step for step in STEPS if step.name in SHOWN]


def chosen(output: str) -> list[str]:
    """The lines of the shown steps, with an empty line between two; raises UnfitOutput."""
    parts = [part.splitlines() for each in output.split("\n\n") if (part := each.strip("\n"))]
    by_end = {lines[-1]: lines for lines in parts}
    shown: list[str] = []
    for step in steps():
        if step.verdict not in by_end:
            raise UnfitOutput(f"step {step.name!r} of the demo failed: see `make demo ARGS=--once`")
        shown += ["", *map(stable, by_end[step.verdict])]
    return shown[1:]


def stable(line: str) -> str:
    """The line as in every run; raises UnfitOutput if it has what may be a secret."""
    for pattern, instead in _VARYING:
        line = re.sub(pattern, instead, line)
    if found := _REFUSED.search(line):
        raise UnfitOutput(f"the picture must not show {found[0]!r}: {line}")
    return line


def fit(lines: Sequence[str], columns: int) -> list[str]:
    """The lines in a narrower terminal: paragraphs break between other words, verdicts lose their columns."""
    paragraphs: list[str] = []
    for line in lines:
        if line.startswith("    "):
            paragraphs[-1] += f" {line.strip()}"
        else:
            paragraphs.append(re.sub(r" {2,}", "  ", line) if line.startswith("ok ") else line)
    fitted = []
    for paragraph in paragraphs:
        fitted += textwrap.wrap(
            paragraph, columns, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
        ) or [""]
    return fitted


def colours(lines: Sequence[str]) -> Iterator[tuple[tuple[str, str], ...]]:
    """The parts of each line, with a class each."""
    kind = ""
    for line in lines:
        if line.startswith("$ "):
            kind = "command"
            yield (("prompt", "$ "), (kind, line[2:]))
        elif verdict := re.match(r"ok +\S+(?: \S+)* {2,}", line):
            kind = "meaning"
            yield (("ok", verdict[0]), (kind, line[verdict.end() :]))
        else:
            # A line that is indented further goes on with the one before.
            if not line.startswith("    "):
                kind = "error" if re.match(r"  (error|Error)\b", line) else "output"
            yield ((kind, line),)


def draw(lines: Sequence[str], name: str, columns: int) -> Picture:
    """The lines in a terminal of that many columns."""
    width = round(2 * PAD_PX + columns * ADVANCE_PX)
    height = HEAD_PX + PAD_PX + len(lines) * LINE_PX + 8
    shapes = [
        rect(0.5, 0.5, width - 1, height - 1, "window", 10),
        path(f"M0.5 {HEAD_PX}H{width - 0.5}", "rule"),
        text(PAD_PX, 26, f"make demo: {len(SHOWN)} of its {len(STEPS)} steps", "head"),
    ]
    for number, runs in enumerate(colours(lines)):
        length = round(sum(len(content) for _, content in runs) * ADVANCE_PX, 1)
        shapes.append(terminal_line(PAD_PX, HEAD_PX + 28 + number * LINE_PX, runs, length))
    return Picture(name, TITLE, DESCRIPTION, width, height, STYLE, tuple(shapes))


def pictures(lines: Sequence[str]) -> tuple[Picture, Picture]:
    """The terminal, and one for a phone."""
    return draw(lines, "demo", COLUMNS), draw(fit(lines, PHONE_COLUMNS), "demo-phone", PHONE_COLUMNS)


def lines_of(svg: str) -> list[str]:
    """The lines that a picture shows."""
    texts = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")  # noqa: S314 - our own file
    return ["".join(each.itertext()) for each in texts if each.get("class") == "line"]
