"""What holds of every page's HTML."""

from __future__ import annotations

from collections import Counter
from html.parser import HTMLParser

_VOID = frozenset({"input", "meta", "link", "br", "path", "circle", "img", "hr", "wbr"})
_LABELLED = frozenset({"input", "select", "textarea"})


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: Counter[str] = Counter()
        self.refers: list[str] = []
        self.labels: set[str] = set()
        self.fields: list[tuple[str, bool]] = []
        self.faults: list[str] = []
        self.forms: list[dict[str, str]] = []
        self.tokens = 0
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if len(given) != len(attrs):
            self.faults.append(f"<{tag}> has an attribute twice")
        if tag not in _VOID:
            self.open.append(tag)
        self.faults += [f"<{tag} {name}>" for name in given if name.startswith("on") or name == "style"]
        for name in ("href", "src", "action"):
            if name in given and not given[name].startswith(("/", "#")):
                self.faults.append(f"<{tag} {name}={given[name]!r}>")
        if tag == "script" and not given.get("src", "").startswith("/static/"):
            self.faults.append("a script in the page")
        if tag in {"style", "iframe", "object", "embed", "img"}:
            self.faults.append(f"<{tag}>")
        if "id" in given:
            self.ids[given["id"]] += 1
        self.refers += [
            one
            for name in ("for", "aria-labelledby", "aria-describedby", "popovertarget", "data-dialog")
            for one in given.get(name, "").split()
        ]
        if tag == "label":
            self.labels.add(given.get("for", ""))
        if tag in _LABELLED and given.get("type") != "hidden":
            self.fields.append((given.get("id", ""), "label" in self.open or "aria-label" in given))
        if tag == "form" and given.get("method") == "post":
            self.forms.append(given)
        if given.get("name") == "csrf":
            self.tokens += 1

    def handle_endtag(self, tag: str) -> None:
        if tag in _VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes another element")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def faults_of(page: bytes) -> list[str]:
    """Return what is wrong with a page, such as double ids, fields without a label, or code."""
    reader = _Reader()
    text = page.decode("utf-8")
    reader.feed(text)
    reader.close()
    faults = [*reader.faults, *(f"<{tag}> is not closed" for tag in reader.open)]
    faults += [f"the id {name} is there {count} times" for name, count in reader.ids.items() if count > 1]
    faults += [f"no element has the id {name}" for name in reader.refers if name not in reader.ids]
    faults += [
        f"the field {name!r} has no label"
        for name, inside in reader.fields
        if not inside and name not in reader.labels
    ]
    posts = [form for form in reader.forms if form.get("action") != "/signin"]
    if reader.tokens != len(posts):
        faults.append(f"{len(posts)} forms, and {reader.tokens} tokens")
    # Those that a browser or a terminal would obey: they are there as escapes alone.
    faults += [f"the character {ord(one):#x}" for one in text if one != "\n" and not one.isprintable()]
    return faults


def text_of(page: bytes) -> str:
    """Return the text of a page, with single spaces."""
    reader = _Reader()
    reader.feed(page.decode("utf-8"))
    return " ".join(" ".join(reader.text).split())
