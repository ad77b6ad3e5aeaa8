"""The view models of the pages of agents, clusters, teams and policies, without a browser."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.console.views.fleet import Enrolment, enrolment_steps, limits_of, relay_row, state_of_cluster
from proxy.console.views.listing import ROWS, Few, Listing, offset_of
from proxy.console.views.policies import Rule, changes, checked, counted, marked, progress, verdict
from proxy.hub.home.sections.limits import LimitsConfig
from proxy.hub.store.names import check_labels, check_name
from tests.console.fleet_data import SIMULATED

NOW = 1_800_000_000.0
RELAY = {
    "instance": "relay-1", "connected": True, "leaving": False, "hub": "", "version": "0.1.0",
    "address": "192.0.2.1", "connected_at": "2027-01-15T07:00:00Z", "last_seen_at": "2027-01-15T07:59:55Z",
    "rtt_ms": 3.0, "streams": 0, "key": "k", "api_server": "up",
}  # fmt: skip


# -- pages of a listing


@given(st.integers(0, 3 * ROWS), st.integers(0, 4 * ROWS))
def test_the_pages_of_a_listing_hold_each_row_once(total: int, start: int) -> None:
    # From any offset: to the end by `after`, and to the beginning by `before`.
    seen: list[int] = []
    offset = start
    while True:
        rows = max(0, min(ROWS, total - offset))
        listing = Listing("/agents", {"q": "a b"}, offset, rows, total)
        seen += range(offset, offset + rows)
        if not listing.after:
            break
        assert listing.after.startswith("/agents?q=a+b&offset=")
        offset = offset_of(listing.after.rpartition("=")[2])
    assert seen == list(range(start, total)) or not seen
    steps = 0
    while (before := Listing("/agents", {}, offset, 0, total).before) and steps < 9:
        offset, steps = offset_of(before.partition("offset=")[2]), steps + 1
    assert offset == 0


@pytest.mark.parametrize("text", ["", "-1", "1e9", "٣", "x", "9999999999"])
def test_a_malformed_offset_is_the_beginning(text: str) -> None:
    assert offset_of(text) == 0


def test_a_filter_is_dropped_or_changed_from_the_first_page() -> None:
    listing = Listing("/agents", {"q": "", "team": "sre", "state": "locked"}, 200, 100, 1_200)
    assert listing.address(state="") == "/agents?team=sre"
    assert (listing.text, listing.filtered) == ("201–300 of 1,200", True)
    assert Listing("/agents", {"q": ""}, 0, 3, 3).text == ""


@given(st.lists(st.text(max_size=3), max_size=9), st.integers(1, 5))
def test_few_never_says_one_more(names: list[str], most: int) -> None:
    few = Few.of(names, most)
    assert [*few.names] == names[: len(few.names)]
    assert len(few.names) + few.more == len(names)
    assert few.more != 1


# -- clusters and their relays


def test_a_cluster_that_lost_its_relays_is_not_one_that_never_had_any() -> None:
    words = [
        state_of_cluster({"relays": relays, "last_seen_at": seen}).text
        for relays, seen in ((2, "2027-01-15T07:00:00Z"), (0, "2027-01-15T07:00:00Z"), (0, None))
    ]
    assert words == ["online", "offline", "never connected"]


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({}, "connected"),
        ({"leaving": True}, "draining"),
        ({"last_seen_at": "2027-01-15T07:58:00Z"}, "silent"),
        ({"last_seen_at": None}, "connected"),
        ({"connected": False, "leaving": True}, "gone"),
    ],
)
def test_the_state_of_a_relay(changed: dict[str, Any], word: str) -> None:
    assert relay_row({**RELAY, **changed}, NOW).state.text == word


def test_the_steps_of_an_enrolment_turn_green_one_by_one() -> None:
    cluster = {"created_at": "2027-01-15T07:00:00Z"}

    def words(*given: Any) -> list[str]:
        return [step.state.text for step in enrolment_steps(*given)]

    gone, deaf = {**RELAY, "connected": False}, {**RELAY, "api_server": "down"}
    assert words(None, []) == ["waiting", "waiting", "waiting"]
    assert words(cluster, [gone]) == ["done", "waiting", "waiting"]
    assert words(cluster, [gone, deaf]) == ["done", "done", "does not answer"]
    assert words(cluster, [deaf, RELAY]) == ["done", "done", "done"]
    # The next step is the one that stands out.
    assert [step.state.tone for step in enrolment_steps(cluster, [])] == ["ok", "info", ""]


@given(
    st.dictionaries(st.sampled_from(["teams", "image"]), st.text(st.sampled_from("a -'\"$`;|&\n*"))),
    st.sampled_from(["prod", "a;b", "$x", "-a"]),
    st.sampled_from(["https://relay.example", "https://x;y", "https://$(a)'b c"]),
)
def test_a_command_of_an_enrolment_has_nothing_that_a_shell_reads(
    query: dict[str, str], name: str, relay_url: str
) -> None:
    enrolment = Enrolment.of({**query, "name": name, "relay_url": relay_url, "mode": "direct"})
    if enrolment.faults:
        return
    check_name("cluster name", enrolment.name)
    added, _, applied = enrolment.command.partition("\\\n  | ")
    words = shlex.split(added)
    assert words[:4] == ["hawse", "admin", "cluster", "add"]
    assert words[4] == enrolment.name
    assert words.count("--team") == len(enrolment.teams)
    assert words[words.index("--relay-url") + 1] == enrolment.relay_url
    if enrolment.image:
        assert words[words.index("--image") + 1] == enrolment.image
    assert shlex.split(applied)[:3] == ["kubectl", "--context", enrolment.name]


def test_an_enrolment_is_read_from_its_form() -> None:
    query = {"name": " prod ", "teams": "sre, web", "labels": "env=prod region=", "mode": "odd"}
    enrolment = Enrolment.of(query)
    assert (enrolment.teams, enrolment.labels, enrolment.mode) == (
        ("sre", "web"), ("env=prod", "region="), "tunnel",
    )  # fmt: skip
    assert enrolment.faults == {}
    check_labels(dict(label.split("=") for label in enrolment.labels))
    assert enrolment.command == (
        "hawse admin cluster add prod --team sre --team web --label env=prod --label region= \\\n"
        "  | kubectl --context prod apply -f -"
    )
    wrong = Enrolment.of({"name": "Prod", "teams": "s re;", "labels": "x", "mode": "direct"})
    assert wrong.faults.keys() == {"name", "teams", "labels", "relay_url"}


# -- policies


LINES = st.lists(st.sampled_from(["# why", "", "  - id: x", "    verbs: [get]", "spec:"]), max_size=20)


@given(LINES, st.sets(st.integers(-1, 25)))
def test_a_marked_text_is_the_text(lines: list[str], starts: set[int]) -> None:
    rules = [Rule(f"r{line}", "allow", True, "", line) for line in sorted(starts)]
    blocks = marked("\n".join(lines), rules)
    flat = [line for block in blocks for line in block.lines]
    assert flat == "\n".join(lines).rstrip("\n").split("\n")
    at = 1
    for block in blocks:
        assert block.first == at
        assert block.rule is None or block.rule.line == at
        at += len(block.lines)
    there = [block.rule.line for block in blocks if block.rule is not None]
    assert there == sorted(line for line in starts if 1 <= line < at)


def test_comments_before_a_rule_do_not_belong_to_the_rule_above() -> None:
    text = "spec:\n- id: a\n  verbs: [get]\n\n# About b.\n- id: b\n  # inside\n  verbs: [get]\n# end\n"
    rules = [Rule("a", "allow", True, "", 2), Rule("b", "deny", False, "", 6)]
    assert [(block.first, block.rule.id if block.rule else "") for block in marked(text, rules)] == [
        (1, ""), (2, "a"), (4, ""), (6, "b"), (9, ""),
    ]  # fmt: skip
    assert counted(rules) == "1 allow, 1 off"
    assert [rule.tone for rule in rules] == ["allow", "off"]
    asks = Rule("c", "ask", True, "", 9)
    assert (asks.tone, asks.badge.tone) == ("ask", "warn")
    assert counted([asks, *rules]) == "1 allow, 1 ask, 1 off"


def test_faults_are_at_their_lines() -> None:
    faults = [
        {"line": 2, "path": "spec", "message": "is odd"},
        {"line": 2, "path": "", "message": "is long"},
        {"line": 0, "path": "", "message": "too many policies"},
    ]
    lines = checked("a\nb\nc\n", faults)
    assert [(line.number, line.text, [*line.faults]) for line in lines] == [
        (1, "a", []), (2, "b", ["spec: is odd", "is long"]), (3, "c", []),
    ]  # fmt: skip


def test_a_difference_keeps_the_signs_of_its_lines() -> None:
    diff = SIMULATED["diff"]
    assert isinstance(diff, list)
    [change] = changes(diff)
    assert change.text == "1 rule edited"
    assert [sign for sign, _ in change.rules[0].lines] == ["", "minus", "plus"]
    assert change.rules[0].lines[1][1] == "-resources: [secrets]"
    [layout] = changes([{"policy": "x", "change": "layout", "settings": [], "rules": []}])
    assert layout.text == "Only comments and layout."


@pytest.mark.parametrize(
    ("result", "tone"),
    [
        ((1, 0, 2, 9), "bad"),
        ((0, 0, 2, 9), "warn"),
        ((0, 1, 0, 9), "warn"),
        ((0, 0, 0, 0), "warn"),
        ((0, 0, 0, 9), "ok"),
    ],
)
def test_a_simulation_without_calls_is_no_good_news(result: tuple[int, ...], tone: str) -> None:
    names = ("newly_denied", "newly_asked", "newly_allowed", "calls")
    assert verdict(dict(zip(names, result, strict=True)))[1] == tone


def test_the_progress_of_a_simulation_without_a_known_end() -> None:
    assert progress({"state": "running", "read": 1200, "of": 0}) == "1,200 events of the trail"
    assert progress({"state": "running", "read": 1200, "of": 5000}) == "1,200 of 5,000 events of the trail"


def test_limits_are_worded_with_their_units() -> None:
    limits = LimitsConfig(requests_per_second=2_000, tokens_per_minute=0).by_key("builder")
    assert limits_of({"limits": limits}) == [
        "256 calls at once",
        "2,000 calls a second",
        "6.0 GiB a minute, both ways",
        "24 h for one call",
        "no limit: tokens a minute",
        "62 KiB of the trail a second",
    ]
