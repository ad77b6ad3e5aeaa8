"""The pages for readers: their links lead somewhere, and the messages that they quote are the program's."""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import get_args, get_origin

import attrs
import pytest

from proxy.hub.home.config import HubConfig
from proxy.process.config import Address
from proxy.relay.config import FileConfig
from tests.pages import anchors, unknown

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "*/*.md", "*/*/*.md", "*/*/*/*.md")
    for path in ROOT.glob(pattern)
    if not path.relative_to(ROOT).parts[0].startswith(".")
)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`]+)`")
# Sections whose tables begin each row with messages of the program, and the page of each.
QUOTING = [
    *(
        ("docs/troubleshooting.md", section)
        for section in (
            *("kubectl cannot reach the hub", "The login is refused", "A call is refused"),
            *("The cluster does not answer", "A call ends early", "The hub does not start"),
            *("`hawse admin` is refused", "The relay's log", "The hub's log"),
        )
    ),
    ("docs/operations.md", "The trail was replaced or lost"),
    ("docs/approvals.md", "What an agent sees"),
    ("docs/postgres.md", "What an error means"),
    ("docs/several-hubs.md", "What a message means"),
]
# Names, numbers and words that stand for others in a quoted message; and the ends of its parts, which the
# program may join from several strings.
_VARIABLE = re.compile(
    r"…|https://\S*|\bagent:\w+|\bPOLICY/RULE\b|/clusters/NAME|\"x\"|\b[xy]\b|\b\d+ calls\b|\b\d+\b"
    r"|\bbytes(?= a second)|\bahead of\b|\brequest target\b|\b(?=the relay of cluster)|[:;,()]"
)
# Behind a message of another program, in docs/troubleshooting.md.
_FOREIGN = re.compile(r"` \((?:kubectl|kubelet|kube-apiserver|a proxy)\)")
# Messages of other programs, elsewhere.
FOREIGN = {
    "certificate verify failed",
    "does not match host name",
    "no pg_hba.conf entry for host …",
    "password authentication failed for user …",
    "server does not support SSL, but SSL was required",
}


@pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_each_link_leads_to_a_file_and_a_heading_that_exist(path: Path) -> None:
    for link in _LINK.findall(path.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


def test_the_index_leads_to_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    reached = {(index.parent / link.partition("#")[0]).resolve() for link in _LINK.findall(index.read_text())}
    guides = {*(ROOT / "docs").glob("*.md"), *(ROOT / "deploy").rglob("*.md")}
    guides |= {ROOT / name for name in ("SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")}
    assert {str(path.relative_to(ROOT)) for path in guides - reached - {index}} == set()


@cache
def texts() -> str:
    """All strings of the program, a line each, without what is formatted into them."""
    found = []
    for package in ("tunnel", "auth", "audit", "proxy"):
        for path in (ROOT / package).rglob("*.py"):
            nodes = ast.walk(ast.parse(path.read_text()))
            found += [
                node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)
            ]
    return "\n".join(found)


def quoted(page: str, section: str) -> list[str]:
    text = (ROOT / page).read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")]
    return [message for row in rows if not _FOREIGN.search(row) for message in _CODE.findall(row)]


# Parts of what commands print and log, as pages show it; how the lines of a page are broken does not matter.
SHOWN = {
    "docs/images/demo-light.svg": [
        "is in force",
        "its calls are refused and its open calls are ended; to undo: hawse admin agent unlock",
        "ask the operator of this hub to unlock it (`hawse admin agent unlock",
        "approval request",
    ],
    "docs/agents.md": [
        "the key is in",
        "next: hawse kubeconfig",
        "a key of its own",
        "accepted until",
        "as the hub's",
        "API server down",
        "not tried",
    ],
    "docs/configuration.md": [
        "can start:",
        "neither was opened",
        "the check of the",
        "expected host:port, as in 127.0.0.1:8443 or [::]:8443",
        "no such",
        "did you mean",
        "cannot be read:",
        ", looked for in",
        "is up",
    ],
    "docs/operations.md": [
        "in force, and kept in the hub's reserve until the",
        "trail and store",
        "in force until the hub restarts",
        "took over from the hub that ran here; it finishes its open calls",
        "the hub is ready",
        "upgrade the hub first",
        "no common version",
        "the relay may not impersonate",
        "the relay has these rights where it runs as service account",
        "to fix",
        "ended by the client",
        "before the answer",
        "of which",
        "at the relay and behind it",
        "the API server received it",
    ],
    "docs/policy.md": [
        "is denied by",
        "message to the agent:",
        "policies for this agent and cluster:",
        "the cluster's own RBAC decides after it",
        "no-rule-allows",
        "is no verb: one of",
        "no fault in",
    ],
    "docs/postgres.md": [
        "this hub cannot confirm its state with the database since",
        "the audit trail cannot be written, so the call is refused",
        "so no token is issued",
        "which cannot delete events",
        "for a standby of",
    ],
    "docs/security.md": ["in force until the hub restarts"],
    "docs/several-hubs.md": ["CANNOT REACH", "silent"],
}


@pytest.mark.parametrize("page", SHOWN)
def test_what_a_page_shows_is_what_commands_print(page: str) -> None:
    text = " ".join(re.sub(r"<[^>]*>", "", (ROOT / page).read_text()).split())
    assert [part for part in SHOWN[page] if part not in text] == []
    assert [part for part in SHOWN[page] if part not in texts()] == []


@pytest.mark.parametrize(("page", "section"), QUOTING)
def test_each_quoted_message_is_the_programs(page: str, section: str) -> None:
    messages = quoted(page, section)
    assert len(messages) >= 3
    wrong = {}
    for message in set(messages) - FOREIGN:
        # A single word proves nothing.
        parts = [part for each in _VARIABLE.split(message) if " " in (part := each.strip())]
        missing = [part for part in parts if part not in texts()]
        if missing or not parts:
            wrong[message] = missing
    assert wrong == {}


def commands(page: str) -> list[str]:
    """What the page shows as a line or as a word of `hawse`, up to what a shell would do with it."""
    shown = [line.strip().removeprefix("$ ") for line in page.splitlines() if line.startswith("    ")]
    shown += [" ".join(each.split()) for each in _CODE.findall(page.replace("```", ""))]
    found = [re.split(r" [#|>&]|&& |;|\)", each)[0].strip() for each in shown if each.startswith("hawse ")]
    return [each for each in found if re.match(r"hawse [a-z]", each)]


@pytest.mark.parametrize(
    "name", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
)
def test_each_command_and_each_option_of_a_page_exists(name: str) -> None:
    shown = commands((ROOT / name).read_text())
    assert shown
    assert {each: wrong for each in shown if (wrong := unknown(each))} == {}


def test_the_map_of_contributing_has_each_folder() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    mapped = set(re.findall(r"\[[a-z/]+\]\(([a-z/]+)/\)", page))
    found = {path.parent for path in ROOT.glob("[a-z]*/__init__.py") if path.parent.name != "proxy"}
    for above in ("tunnel", "auth", "audit", "proxy", "proxy/hub", "deploy", "docs"):
        found |= {path.parent for path in (ROOT / above).glob("*/__init__.py")}
    assert {str(folder.relative_to(ROOT)) for folder in found} - mapped == set()


def test_each_target_of_make_that_a_page_names_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set()
    for path in PAGES:
        page = path.read_text()
        shown = [line for line in page.splitlines() if line.startswith("    ")] + _CODE.findall(page)
        for line in shown:
            # All words are targets up to the first that is a variable or belongs to the shell.
            for words in re.findall(r"^\s*(?:\w+=\S+ )?make((?: [a-z0-9-]+)+)", line.split("#")[0]):
                named |= set(words.split())
    assert len(named) > 20
    assert named - targets == set()


def test_the_list_of_targets_fits_a_terminal() -> None:
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = listed.stdout.splitlines()
    assert len(lines) > 20
    assert [line for line in lines if len(line) > 80 or not re.match(r"[a-z0-9-]+  +\S", line)] == []


def keys(kind: type[attrs.AttrsInstance], prefix: str = "") -> list[str]:
    """The keys of a configuration, with the tables that they are in."""
    found = []
    for field in attrs.fields(attrs.resolve_types(kind)):
        # A list of tables is named as one of them.
        each = get_args(field.type)[0] if get_origin(field.type) is tuple else field.type
        if isinstance(each, type) and attrs.has(each) and each is not Address:
            found += keys(each, f"{prefix}{field.name}.")
        else:
            found.append(f"{prefix}{field.name}")
    return found


@pytest.mark.parametrize(("kind", "heading"), [(HubConfig, "The hub"), (FileConfig, "The relay")])
def test_every_key_of_a_configuration_has_a_row(kind: type[attrs.AttrsInstance], heading: str) -> None:
    page = (ROOT / "docs" / "configuration.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = {name for row in re.findall(r"^\| (`[^|]*) \|", page, re.MULTILINE) for name in _CODE.findall(row)}
    named = {name.removesuffix(".NAME.…") for name in rows} - {"limits.…"}
    assert named == set(keys(kind))


def test_every_metric_has_a_row() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    named = {re.sub(r"_total$", "", name) for name in re.findall(r"`(hawse_[a-z_]+)", page)}
    assert named == set(re.findall(r"^hawse_[a-z_]+$", texts(), re.MULTILINE))
