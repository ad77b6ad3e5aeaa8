from __future__ import annotations

from urllib.parse import quote

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sandbox import storage
from sandbox.kinds import CONFIG_MAPS
from sandbox.objects import Object, integer, items, lookup, text
from sandbox.status import StatusError
from tests.sandbox.world import World, streamed

MAPS = "/api/v1/namespaces/default/configmaps"


def put(world: World, name: str, **labels: str) -> None:
    metadata: Object = {"name": name, "namespace": "default", "labels": {**labels}}
    world.store.collection(CONFIG_MAPS.group, CONFIG_MAPS.resource).put({"metadata": metadata})


def remove(world: World, name: str) -> None:
    world.writer.remove(CONFIG_MAPS, "default", name)


def summary(events: list[Object]) -> list[tuple[str, str]]:
    return [(text(event, "type"), text(event, "object", "metadata", "name")) for event in events]


async def test_chunks_show_the_state_at_the_first_of_them(world: World) -> None:
    for name in "abcde":
        put(world, name, seen="yes")
    first = await world.object("GET", f"{MAPS}?limit=2&labelSelector=seen%3Dyes".replace("%3D", "="))
    remove(world, "c")
    put(world, "f", seen="yes")
    names = [text(item, "metadata", "name") for item in items(first, "items")]
    token = text(first, "metadata", "continue")
    while token:
        page = await world.object("GET", f"{MAPS}?limit=2&labelSelector=seen=yes&continue={quote(token)}")
        names += [text(item, "metadata", "name") for item in items(page, "items")]
        assert text(page, "metadata", "resourceVersion") == text(first, "metadata", "resourceVersion")
        token = text(page, "metadata", "continue")
    assert names == ["a", "b", "c", "d", "e"]


async def test_what_remains_is_counted_where_nothing_is_selected(world: World) -> None:
    for name in "abc":
        put(world, name)
    whole = await world.object("GET", f"{MAPS}?limit=1")
    assert integer(whole, "metadata", "remainingItemCount") == 3  # kube-root-ca.crt is the fourth
    chosen = await world.object("GET", f"{MAPS}?limit=1&labelSelector=!x")
    assert lookup(chosen, "metadata", "remainingItemCount") is None


async def test_the_last_chunk_is_empty_when_what_is_left_does_not_match(world: World) -> None:
    for name in "ab":
        put(world, name, seen="yes")
    full = await world.object("GET", f"{MAPS}?limit=2&labelSelector=seen=yes")  # before kube-root-ca.crt
    assert len(items(full, "items")) == 2
    token = text(full, "metadata", "continue")
    rest = await world.object("GET", f"{MAPS}?limit=2&labelSelector=seen=yes&continue={quote(token)}")
    assert (items(rest, "items"), lookup(rest, "metadata", "continue")) == ([], None)
    every = await world.object("GET", f"{MAPS}?limit=3")
    assert (len(items(every, "items")), lookup(every, "metadata", "continue")) == (3, None)


async def test_a_list_of_the_past(world: World) -> None:
    put(world, "a")
    revision = world.store.revision
    remove(world, "a")
    then = await world.object("GET", f"{MAPS}?resourceVersion={revision}&resourceVersionMatch=Exact")
    assert "a" in [text(item, "metadata", "name") for item in items(then, "items")]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("continue=nonsense", 400),
        ("resourceVersion=x", 400),
        ("limit=x", 400),
        ("fieldSelector=spec.x=1", 400),
        ("labelSelector=a in", 400),
        ("resourceVersion=999999", 504),
        ("watch=1&resourceVersion=999999", 504),
        ("watch=1&sendInitialEvents=true", 422),
        ("watch=1&resourceVersionMatch=NotOlderThan", 422),
    ],
)
async def test_options_that_cannot_be_met(world: World, query: str, code: int) -> None:
    with pytest.raises(StatusError) as caught:
        await world.ask("GET", f"{MAPS}?{query}")
    assert caught.value.code == code


async def test_a_watch_goes_on_from_a_revision(world: World) -> None:
    put(world, "a")
    revision = world.store.revision
    put(world, "a", changed="yes")
    put(world, "b")
    remove(world, "a")
    events = await streamed(await world.ask("GET", f"{MAPS}?watch=1&resourceVersion={revision}"), lines=3)
    assert summary(events) == [("MODIFIED", "a"), ("ADDED", "b"), ("DELETED", "a")]
    assert text(events[2], "object", "metadata", "resourceVersion") == str(world.store.revision)
    assert text(events[0], "object", "kind") == "ConfigMap"


@pytest.mark.parametrize("query", ["watch=1", "watch=1&resourceVersion=0"])
async def test_a_watch_of_no_revision_begins_with_what_is_there(world: World, query: str) -> None:
    put(world, "a")
    events = await streamed(await world.ask("GET", f"{MAPS}?{query}"), lines=1)
    assert summary(events) == [("ADDED", "a"), ("ADDED", "kube-root-ca.crt")]


async def test_initial_events_end_with_a_bookmark(world: World) -> None:
    query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    events = await streamed(await world.ask("GET", f"{MAPS}?{query}"), lines=2)
    assert [event["type"] for event in events] == ["ADDED", "BOOKMARK"]
    assert text(events[1], "object", "metadata", "annotations", "k8s.io/initial-events-end") == "true"
    assert text(events[1], "object", "metadata", "resourceVersion") == str(world.store.revision)


async def test_a_selecting_watch_adds_what_begins_to_match_and_deletes_what_ceases_to(world: World) -> None:
    revision = world.store.revision
    put(world, "other")
    put(world, "a")
    put(world, "a", seen="yes")
    put(world, "a", seen="yes", more="yes")
    put(world, "a")
    query = f"watch=1&resourceVersion={revision}&labelSelector=seen=yes"
    events = await streamed(await world.ask("GET", f"{MAPS}?{query}"), lines=3)
    assert summary(events) == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]


async def test_a_watch_of_one_object_and_of_one_namespace(world: World) -> None:
    revision = world.store.revision
    put(world, "a")
    put(world, "b")
    world.writer.create(CONFIG_MAPS, "kube-public", {"metadata": {"name": "b"}})
    query = f"watch=1&resourceVersion={revision}&timeoutSeconds=1"
    by_field = await streamed(
        await world.ask("GET", f"{MAPS}?{query}&fieldSelector=metadata.name=b"), lines=1
    )
    by_path = await streamed(
        await world.ask("GET", f"/api/v1/watch/namespaces/default/configmaps/b?{query}"), lines=1
    )
    assert summary(by_field) == summary(by_path) == [("ADDED", "b")]


async def test_a_change_wakes_a_watch_and_its_time_ends_it(world: World, autojump_clock: MockClock) -> None:
    answer = await world.ask("GET", f"{MAPS}?watch=1&resourceVersion={world.store.revision}&timeoutSeconds=5")
    began = trio.current_time()
    seen: list[Object] = []

    async def watch() -> None:
        seen.extend(await streamed(answer))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await wait_all_tasks_blocked()
        put(world, "a")
    assert summary(seen) == [("ADDED", "a")]
    assert trio.current_time() - began == pytest.approx(5)


async def test_a_quiet_watch_gets_bookmarks(world: World, autojump_clock: MockClock) -> None:
    query = f"watch=1&resourceVersion={world.store.revision}&allowWatchBookmarks=true&timeoutSeconds=150"
    events = await streamed(await world.ask("GET", f"{MAPS}?{query}"))
    assert [event["type"] for event in events][:2] == ["BOOKMARK", "BOOKMARK"]


async def test_a_watch_of_what_was_forgotten_is_told_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "HISTORY_MAX", 2)
    revision = world.store.revision
    for _ in range(8):
        put(world, "a")
    [event] = await streamed(await world.ask("GET", f"{MAPS}?watch=1&resourceVersion={revision}"))
    assert (event["type"], lookup(event, "object", "code"), lookup(event, "object", "reason")) == (
        "ERROR",
        410,
        "Expired",
    )


async def test_rows_instead_of_objects(world: World) -> None:
    accept = "application/json;as=Table;v=v1;g=meta.k8s.io"
    put(world, "a")
    listed = await world.object("GET", MAPS, accept=accept)
    assert items(listed, "rows")[0]["cells"] == ["a", 0, "<unknown>"]
    answer = await world.ask("GET", f"{MAPS}?watch=1", headers={"accept": accept})
    put(world, "b")
    events = await streamed(answer, lines=3)
    assert ["columnDefinitions" in str(event) for event in events] == [True, False, False]
    partial = await world.object(
        "GET", MAPS, accept="application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
    )
    assert partial["kind"] == "PartialObjectMetadataList"
    assert set(items(partial, "items")[0]) == {"kind", "apiVersion", "metadata"}
