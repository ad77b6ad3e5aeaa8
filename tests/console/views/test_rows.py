from __future__ import annotations

import pytest

from proxy.console.views.rows import TEXT_CHARACTERS_MAX, row_of, without_begun
from tests.console.views.listed import EID, listed


def test_a_call_is_its_request_and_its_result() -> None:
    row = row_of(listed())
    assert (row.actor, row.cluster, row.kind, row.what) == ("builder", "prod", "", "get pods -n app")
    assert (row.result, row.tone, row.took, row.why) == ("200", "ok", "12ms", "")
    assert row.href == f"/audit/{EID}"


@pytest.mark.parametrize(
    ("changed", "result", "tone"),
    [
        ({"result": "101"}, "101", "ok"),
        ({"result": "304"}, "304", ""),
        ({"result": "404"}, "404", "warn"),
        ({"result": "503"}, "503", "bad"),
        ({"result": "none"}, "no answer", "warn"),
        ({"result": "?", "phase": "unknown"}, "unknown", "bad"),
        ({"result": "-", "phase": "intent"}, "began", "open"),
        ({"result": "-", "phase": "start"}, "began", "open"),
        ({"result": "-", "kind": "hub.started"}, "", ""),
        # The status of a denial looks like a refusal by the cluster.
        ({"result": "403", "event": {"decision": {"effect": "deny"}}}, "denied", "bad"),
        (
            {"result": "403", "event": {"decision": {"effect": "ask"}, "resp": {"processed": "no"}}},
            "asked",
            "warn",
        ),
        # Approved, and refused by the cluster.
        (
            {"result": "403", "event": {"decision": {"effect": "ask"}, "resp": {"processed": "yes"}}},
            "403",
            "warn",
        ),
        ({"result": "403"}, "403", "warn"),
    ],
)
def test_a_result_has_a_word_and_a_tone(changed: dict[str, object], result: str, tone: str) -> None:
    row = row_of(listed(**changed))
    assert (row.result, row.tone) == (result, tone)


def test_an_event_without_a_request_shows_its_note() -> None:
    row = row_of(listed(kind="hub.started", request="", why="version 0.1.0", result="-", took="-", event={}))
    assert (row.kind, row.what, row.why, row.took) == ("hub.started", "version 0.1.0", "", "")


def test_a_stream_says_how_it_ended_and_a_flood_how_often() -> None:
    assert row_of(listed(ending="ended by the client")).what == "get pods -n app (ended by the client)"
    assert row_of(listed(count=1200, request="GET /x")).what == "1,200 times GET /x"


def test_an_actor_is_shown_without_the_type_that_says_nothing() -> None:
    assert row_of(listed(agent="", actor="operator:local:ada")).actor == "local:ada"
    assert row_of(listed(agent="", actor="operator:ci")).actor == "operator:ci"
    assert row_of(listed(agent="", actor="203.0.113.9")).actor == "203.0.113.9"


def test_a_row_holds_the_beginning_of_a_long_text() -> None:
    row = row_of(listed(request="x" * 65_536, why="y" * 65_536))
    assert row.what == "x" * TEXT_CHARACTERS_MAX + "…"
    assert len(row.why) == TEXT_CHARACTERS_MAX + 1


def test_an_event_of_a_newer_hub_is_shown_as_it_is() -> None:
    row = row_of(
        listed(kind="", actor="", agent="", request="", result="", took="", event={"v": 9, "eid": EID})
    )
    assert row.what == f'{{"v":9,"eid":"{EID}"}}'
    assert (row.result, row.tone, row.actor) == ("", "", "")


def test_the_beginning_of_a_call_gives_way_to_its_end() -> None:
    end, begun = row_of(listed(number="18")), row_of(listed(number="17", phase="intent", result="-"))
    other = row_of(listed(eid="x", number="3"))
    assert without_begun([end, other, begun]) == [end, other]
    assert without_begun([other, begun]) == [other, begun]
