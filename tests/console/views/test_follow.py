from __future__ import annotations

import json
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from proxy.console.views.filters import Filters
from proxy.console.views.follow import RowStream
from tests.console.views.listed import listed

NONE = Filters({})


def message(*rows: dict[str, object], event: str = "events", id: str = "c1") -> bytes:
    return f"event: {event}\nid: {id}\ndata: {json.dumps({'events': rows})}\n\n".encode()


def rows_of(sent: bytes) -> list[dict[str, str]]:
    [data] = [line for line in sent.split(b"\n") if line.startswith(b"data: ")]
    found: list[dict[str, str]] = json.loads(data.removeprefix(b"data: "))["rows"]
    return found


def test_events_become_rows_with_the_newest_first() -> None:
    sent = RowStream(NONE).feed(message(listed(eid="a", request="old"), listed(eid="b", request="new")))
    assert sent.startswith(b"event: events\nid: c1\ndata: ")
    assert [(row["key"], row["what"], row["what_href"]) for row in rows_of(sent)] == [
        ("b", "new", "/audit/b"), ("a", "old", "/audit/a"),
    ]  # fmt: skip


def test_a_row_leads_to_the_same_filters_and_its_own_agent() -> None:
    sent = RowStream(Filters({"status": "4xx"})).feed(message(listed()))
    [row] = rows_of(sent)
    assert row["actor_href"] == "/audit?status=4xx&agent=builder"
    assert row["cluster_href"] == "/audit?status=4xx&cluster=prod"


def test_the_two_events_of_a_call_are_one_row() -> None:
    sent = RowStream(NONE).feed(message(listed(phase="intent", result="-"), listed(result="201")))
    assert [row["result"] for row in rows_of(sent)] == ["201"]


def test_texts_are_escaped_and_short_and_the_event_stays_here() -> None:
    hostile = "\x1b]0;x\x07safe\u202egnp\\"
    sent = RowStream(NONE).feed(message(listed(request=hostile, why="w" * 70_000, event={"secret": "s"})))
    [row] = rows_of(sent)
    assert row["what"] == r"\x1b]0;x\x07safe\u202egnp\\"
    assert len(sent) < 2000
    assert b"secret" not in sent


@given(st.lists(st.integers(1, 200), max_size=30))
def test_pieces_of_any_size_make_the_same_messages(cuts: list[int]) -> None:
    stream = b": comment\n\nevent: start\nid: c0\ndata: {}\n\n" + message(listed(), listed(eid="b"))
    stream += b'event: gap\nid: c2\ndata: {"message": "too slow"}\n\n'
    whole = RowStream(NONE).feed(stream)
    rows = RowStream(NONE)
    assert b"".join(map(rows.feed, _pieces(stream, cuts))) == whole
    assert b'event: gap\nid: c2\ndata: {"message": "too slow"}\n\n' in whole
    assert whole.startswith(b": comment\n\nevent: start\nid: c0\ndata: {}\n\n")


def _pieces(stream: bytes, cuts: list[int]) -> Iterable[bytes]:
    at = 0
    for cut in cuts:
        yield stream[at : at + cut]
        at += cut
    yield stream[at:]
