from __future__ import annotations

import pytest

from sandbox import recorder
from sandbox.kinds import EVENTS, PODS
from sandbox.objects import Object, integer, text
from sandbox.recorder import EventRecorder
from sandbox.storage import Store

POD: Object = {"metadata": {"name": "p", "namespace": "a", "uid": "u"}}


def events(store: Store) -> list[Object]:
    return [item.value for item in store.collection(EVENTS.group, EVENTS.resource).items()]


def test_an_event_names_its_object() -> None:
    store = Store()
    EventRecorder(store).record(PODS, POD, "Started", "it started", component="kubelet", field_path="spec.x")
    [event] = events(store)
    assert [text(event, "involvedObject", key) for key in ("kind", "name", "uid", "fieldPath")] == [
        "Pod",
        "p",
        "u",
        "spec.x",
    ]
    assert (event["type"], event["reason"], text(event, "source", "component")) == (
        "Normal",
        "Started",
        "kubelet",
    )


def test_the_same_again_is_counted() -> None:
    store = Store()
    records = EventRecorder(store)
    for _ in range(3):
        records.record(PODS, POD, "Killing", "again", component="kubelet")
    assert [integer(event, "count") for event in events(store)] == [3]


def test_no_more_than_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "EVENTS_MAX", 3)
    store = Store()
    records = EventRecorder(store)
    for number in range(6):
        records.record(PODS, POD, "Started", str(number), component="kubelet")
    assert sorted(text(event, "message") for event in events(store)) == ["3", "4", "5"]
