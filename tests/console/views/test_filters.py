from __future__ import annotations

import shlex
from urllib.parse import parse_qsl, urlsplit

from click.testing import CliRunner
from hypothesis import given as with_any
from hypothesis import strategies as st

from proxy.cli.audit.list import list_events
from proxy.console.views.filters import NAMES, Filters
from proxy.console.views.given import VALUE_CHARACTERS_MAX


def test_an_address_is_read_and_made_again() -> None:
    filters = Filters.of({"agent": " builder ", "q": "a b&c", "cluster": "", "page": "3"})
    assert filters.values == {"q": "a b&c", "agent": "builder"}
    assert filters.path() == "/audit?q=a+b%26c&agent=builder"
    assert filters.path(agent="", before="17") == "/audit?q=a+b%26c&before=17"
    assert Filters.of({}).path() == "/audit"


@with_any(st.dictionaries(st.sampled_from(NAMES), st.text(st.characters(codec="utf-8"), max_size=20)))
def test_filters_survive_their_address(query: dict[str, str]) -> None:
    filters = Filters.of(query)
    split = urlsplit(filters.path())
    assert Filters.of(dict(parse_qsl(split.query))) == filters
    # No value leads elsewhere.
    assert (split.scheme, split.netloc, split.path, split.fragment) == ("", "", "/audit", "")


def test_each_chip_takes_its_filter_away() -> None:
    filters = Filters.of({"agent": "builder", "status": "4xx", "q": "secrets"})
    assert [(chip.label, chip.value) for chip in filters.chips] == [
        ("text", "secrets"), ("agent", "builder"), ("status", "4xx"),
    ]  # fmt: skip
    assert [chip.without for chip in filters.chips] == [
        "/audit?agent=builder&status=4xx", "/audit?q=secrets&status=4xx", "/audit?q=secrets&agent=builder",
    ]  # fmt: skip


def test_filters_outside_the_bar_are_shown_open() -> None:
    assert not Filters.of({"agent": "a", "status": "403", "kind": "call", "q": "x"}).more
    assert Filters.of({"verb": "get"}).more
    assert Filters.of({"until": "1h"}).more


def test_a_value_has_a_bound() -> None:
    assert len(Filters.of({"q": "x" * 70_000})["q"]) == VALUE_CHARACTERS_MAX


def test_controls_are_left_out() -> None:
    assert Filters.of({"q": "\x1b[2Ja\u202eb\n", "agent": "\0"}).values == {"q": "[2Jab"}


def test_the_command_is_one_that_the_command_line_takes() -> None:
    values = {
        "q": "-x y", "agent": "builder", "cluster": "prod", "status": "403,5xx", "since": "2h", "team": "a,b",
        "namespace": "app", "resource": "pods/exec", "verb": "get,list", "kind": "call,auth.failed",
        "actor": "operator:ada",
        "until": "1h",
    }  # fmt: skip
    words = shlex.split(Filters.of(values).command)
    assert words[:3] == ["hawse", "audit", "list"]
    assert words.count("--kind") == 2
    # It is parsed whole: the fault is the folder, which has no trail.
    result = CliRunner().invoke(list_events, [*words[3:], "--data-dir", "/nonexistent"])
    assert "there is no audit trail" in result.output, result.output
