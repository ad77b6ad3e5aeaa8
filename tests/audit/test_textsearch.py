from __future__ import annotations

import pytest
from msgspec.structs import replace

from audit.record import Approval, Decision, Request, Response, Stream, encode
from audit.textsearch import Text
from tests.audit.events import call

EVENT = replace(
    call(),
    req=Request("GET", "/api/v1/namespaces/app/pods/web/exec?command=rm&command=-rf&command=%2FDaten", "get"),
    resp=Response(403, "Gesperrt: STRASSE"),
    stream=Stream("websocket", ("rm", "-rf", "/Daten"), close_reason="upstream failed"),
    decision=Decision("deny", "no-kill", "sre-prod"),
    note="asked for by nobody",
)


@pytest.mark.parametrize(
    "text",
    [
        "pods/web",
        "PODS/WEB",
        "rm -rf",
        "-rf /daten",
        "/Daten",
        "straße",
        "upstream fail",
        "no-kill",
        "nobody",
    ],
)
def test_a_text_is_found_in_path_arguments_and_reasons_whatever_its_case(text: str) -> None:
    assert Text(text).is_in(encode(EVENT))


@pytest.mark.parametrize("text", ["kubectl/v1", "10.0.0.9", "robot", "rm  -rf", "raw_target"])
def test_other_members_are_not_searched(text: str) -> None:
    assert not Text(text).is_in(encode(EVENT))


def test_an_event_of_a_newer_hawse_is_searched_too() -> None:
    assert Text("soon").is_in(b'{"v":2,"kind":"new","note":"Soon","req":{"raw_target":"/","later":[1]}}')


def test_the_events_of_a_request_and_the_previews_of_a_call_are_found_by_their_ids() -> None:
    opened = replace(EVENT, approval=Approval("0f0f1e1e2d2d3c3c", by="ann@example.com"), serves=EVENT.eid)
    for text in ("0f0f1e1e2d2d3c3c", "ann@example.com", EVENT.eid):
        assert Text(text).is_in(encode(opened))
        assert not Text(text).is_in(encode(EVENT))
