"""The environment of the templates: escaping, the words for times and sizes, and the assets.

Agents, relays and clients choose much of what a page shows. Each value that a template prints is escaped
twice: control, bidirectional and combining characters as the command line does (audit.escape), then HTML.
Both happen here and not in the templates, so that no template can forget them.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import attrs
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Undefined
from markupsafe import Markup
from markupsafe import escape as escape_html

from audit.escape import escape
from proxy.console.base.api import at

_HERE = Path(__file__).parent.parent
_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
# Enough that a changed file gets another name.
_HASH_CHARACTERS = 12
_PIECES = re.compile(r"(?<=\.)|(?=\[)")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@attrs.frozen
class Asset:
    """A file below /static, under a name with its hash."""

    path: str
    type: str
    body: bytes = attrs.field(repr=False)
    packed: bytes = attrs.field(repr=False)


def read_assets(folder: Path = _HERE / "static") -> Mapping[str, Asset]:
    """Read the assets, by their plain names."""
    return {file.name: _asset(file) for file in sorted(folder.iterdir()) if file.suffix in _TYPES}


def _asset(file: Path) -> Asset:
    body = file.read_bytes()
    name = f"{file.stem}.{sha256(body).hexdigest()[:_HASH_CHARACTERS]}{file.suffix}"
    return Asset(f"/static/{name}", _TYPES[file.suffix], body, gzip.compress(body, mtime=0))


def environment(assets: Mapping[str, Asset]) -> Environment:
    """Make the environment."""
    made = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printed,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {
        "value": lambda text: escape_html(str(text)),
        "lines": lines,
        "words": words,
        "breakable": breakable,
        "short": short,
        "copied": copied,
        "utc": utc,
        "clock": lambda text: utc(text)[11:19],
        "epoch": epoch,
        "ago": ago,
        "lasting": lasting,
        "size": size,
        "number": number,
    }
    made.globals |= {"asset": lambda name: assets[name].path, "at": at, "plural": plural}
    return made


def _printed(value: object) -> object:
    """Escape the controls of a value that a template prints."""
    if isinstance(value, Markup | Undefined):
        return value
    return "" if value is None else escape(str(value))


def lines(text: str) -> Markup:
    r"""Print a text of several lines, such as a policy or JSON, for a `<pre>`.

    Its backslashes stay single, so that it can be copied. Thus an escaped character is marked as one.
    """
    if _is_plain(text.replace("\n", "")):
        return escape_html(text)
    return Markup("\n").join(_line(line) for line in text.split("\n"))


def words(text: str) -> Markup:
    """Print a command as `lines` does, with its words marked, so that a line breaks between them alone."""
    return Markup("\n").join(Markup(" ").join(map(_word, line.split(" "))) for line in text.split("\n"))


def _word(word: str) -> Markup:
    return Markup('<span class="word">{}</span>').format(lines(word)) if "-" in word else lines(word)


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _line(line: str) -> Markup:
    if _is_plain(line):
        return escape_html(line)
    return Markup("").join(
        escape_html(one)
        if one == "\\" or (shown := escape(one)) == one
        else Markup('<span class="escaped">{}</span>').format(shown)
        for one in line
    )


def breakable(text: str) -> Markup:
    """Print a path of fields, in which a line may break after a dot and before a bracket."""
    # No entity of HTML has one of these characters.
    return Markup(_PIECES.sub("<wbr>", escape_html(escape(text))))  # noqa: S704 - it is escaped above


def short(text: str, characters: int = 160) -> str:
    """Cut a text of a client for a table: a name has up to 64 KiB."""
    return text if len(text) <= characters else f"{text[:characters]}…"


def copied(text: str) -> str:
    """Return what a button copies: the text as `lines` shows it.

    A terminal obeys controls that are pasted.
    """
    return "".join(one if one in "\\\n" else escape(one) for one in text)


def epoch(text: str | None) -> float | None:
    """Read a time of the API as epoch seconds."""
    return None if text is None else datetime.fromisoformat(text).timestamp()


def utc(text: str | float) -> str:
    """Print a time of the API, or epoch seconds: `2026-12-01 15:45:00`."""
    moment = datetime.fromisoformat(text) if isinstance(text, str) else datetime.fromtimestamp(text, UTC)
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def ago(text: str, now: float) -> str:
    """Print how long ago a time is, or in how long it comes: `3 min ago`, `in 2 days`."""
    seconds = now - datetime.fromisoformat(text).timestamp()
    if abs(seconds) < 2:
        return "now"
    return f"{lasting(seconds)} ago" if seconds > 0 else f"in {lasting(-seconds)}"


def lasting(seconds: float) -> str:
    """Print a duration in its largest unit: `12 s`, `3 min`, `2 h`, `5 days`."""
    whole = int(seconds)
    for unit, length in (("day", 86400), ("h", 3600), ("min", 60)):
        # From two units on: `90 min` says more than `1 h`.
        if whole >= 2 * length:
            count = whole // length
            return f"{count} days" if unit == "day" else f"{count} {unit}"
    return f"{whole} s"


def size(count: int) -> str:
    """Print a number of bytes: `512 B`, `4.0 KiB`, `12 MiB`."""
    value = float(count)
    for unit in _UNITS:
        if value < 1000 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"


def number(count: int) -> str:
    """Print a number: `1,204`."""
    return f"{count:,}"


def plural(count: int, one: str, many: str = "") -> str:
    """Print a number of things: `1 relay`, `1,204 relays`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
