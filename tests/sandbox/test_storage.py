from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from sandbox import storage
from sandbox.objects import Object, text
from sandbox.storage import Collection, RevisionTooOld, Store


def thing(name: str, namespace: str = "a", **fields: str) -> Object:
    return {"metadata": {"name": name, "namespace": namespace}, **fields}


def names(collection: Collection, revision: int | None = None, namespace: str = "") -> list[str]:
    items = collection.items(namespace) if revision is None else collection.items_at(revision, namespace)
    return [f"{item.key}={text(item.value, 'v')}" for item in items]


def test_every_change_has_a_revision_of_its_own() -> None:
    store = Store()
    one, other = store.collection("", "ones"), store.collection("", "others")
    revisions = [one.put(thing("x")).revision, other.put(thing("x")).revision, one.put(thing("x")).revision]
    removed = one.remove("a", "x")
    assert removed is not None
    assert [*revisions, removed.revision] == [2, 3, 4, 5]
    assert text(removed.value, "metadata", "resourceVersion") == "5"
    assert one.remove("a", "x") is None


def test_lists_are_in_order_and_of_one_namespace() -> None:
    collection = Store().collection("", "things")
    for namespace, name in (("b", "x"), ("a", "z"), ("a", "y"), ("ab", "w")):
        collection.put(thing(name, namespace))
    assert names(collection) == ["a/y=", "a/z=", "ab/w=", "b/x="]
    assert names(collection, namespace="a") == ["a/y=", "a/z="]


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.booleans(), st.text(max_size=1)), max_size=30))
def test_every_past_state_can_be_seen_again(steps: list[tuple[str, bool, str]]) -> None:
    store = Store()
    collection = store.collection("", "things")
    seen = {store.revision: names(collection)}
    for name, present, value in steps:
        if present:
            collection.put(thing(name, v=value))
        else:
            collection.remove("a", name)
        seen[store.revision] = names(collection)
    assert {revision: names(collection, revision) for revision in seen} == seen


def test_a_cursor_gives_each_change_once() -> None:
    store = Store()
    collection = store.collection("", "things")
    collection.put(thing("x"))
    cursor = collection.cursor(store.revision)
    assert cursor.take() == []
    collection.put(thing("x", v="2"))
    collection.remove("a", "x")
    assert [(change.type, change.previous is None) for change in cursor.take()] == [
        ("MODIFIED", False),
        ("DELETED", False),
    ]
    assert cursor.take() == []


def test_what_was_forgotten_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "HISTORY_MAX", 3)
    store = Store()
    collection = store.collection("", "things")
    late = collection.cursor(store.revision)
    for number in range(10):
        collection.put(thing("x", v=str(number)))
    with pytest.raises(RevisionTooOld):
        late.take()
    with pytest.raises(RevisionTooOld, match=r"too old resource version: 2 \(\d+\)"):
        collection.items_at(2)
    assert names(collection, store.revision - 2) == ["a/x=7"]


async def test_waiting_ends_with_the_next_change() -> None:
    store = Store()
    collection = store.collection("", "things")
    cursor = collection.cursor(store.revision)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cursor.wait)
        await wait_all_tasks_blocked()
        collection.put(thing("x"))
    assert len(cursor.take()) == 1
