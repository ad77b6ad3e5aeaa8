from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from sandbox.collector import Collector
from sandbox.kinds import CONFIG_MAPS, NAMESPACES, REPLICA_SETS, SECRETS, Kind
from sandbox.objects import Json, Object, child, text
from sandbox.options import Deletion
from tests.sandbox.world import World


def owned(name: str, *owners: Object) -> Object:
    references: list[Json] = [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "name": text(owner, "metadata", "name"),
            "uid": text(owner, "metadata", "uid"),
        }
        for owner in owners
    ]
    return {"metadata": {"name": name, "ownerReferences": references}}


def replica_set(name: str) -> Object:
    labels: Object = {"a": "b"}
    template: Object = {
        "metadata": {"labels": labels},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    }
    return {
        "metadata": {"name": name},
        "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": template},
    }


def make(world: World, kind: Kind, value: Object) -> Object:
    return world.writer.create(kind, "default", value).value


@pytest.fixture
async def collected(world: World) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Collector(world.store, world.writer).run)
        await wait_all_tasks_blocked()
        yield world
        nursery.cancel_scope.cancel()


async def test_dependents_go_with_the_last_of_their_owners(collected: World) -> None:
    one = make(collected, CONFIG_MAPS, {"metadata": {"name": "one"}})
    two = make(collected, CONFIG_MAPS, {"metadata": {"name": "two"}})
    three = make(collected, CONFIG_MAPS, owned("three", one))
    make(collected, CONFIG_MAPS, owned("four", three))
    make(collected, CONFIG_MAPS, owned("both", one, two))
    await wait_all_tasks_blocked()
    collected.writer.delete(CONFIG_MAPS, "default", "one")
    await wait_all_tasks_blocked()
    assert collected.names(CONFIG_MAPS) == ["both", "kube-root-ca.crt", "two"]
    collected.writer.delete(CONFIG_MAPS, "default", "two")
    await wait_all_tasks_blocked()
    assert collected.names(CONFIG_MAPS) == ["kube-root-ca.crt"]


async def test_an_object_of_an_owner_that_never_was_goes(collected: World) -> None:
    nobody: Object = {"metadata": {"name": "nobody", "uid": "nothing"}}
    make(collected, CONFIG_MAPS, owned("orphan", nobody))
    await wait_all_tasks_blocked()
    assert "orphan" not in collected.names(CONFIG_MAPS)


@pytest.mark.parametrize("kind", [REPLICA_SETS, SECRETS], ids=lambda kind: kind.resource)
async def test_in_the_foreground_the_owner_goes_last(collected: World, kind: Kind) -> None:
    owner = make(
        collected, kind, replica_set("owner") if kind is REPLICA_SETS else {"metadata": {"name": "owner"}}
    )
    held = owned("held", owner)
    child(held, "metadata")["finalizers"] = ["example.com/hold"]
    make(collected, CONFIG_MAPS, held)
    await wait_all_tasks_blocked()
    collected.writer.delete(kind, "default", "owner", Deletion(propagation="Foreground"))
    await wait_all_tasks_blocked()
    assert collected.names(kind) == ["owner"]

    def release(value: Object) -> Object:
        child(value, "metadata")["finalizers"] = []
        return value

    collected.writer.update(CONFIG_MAPS, "default", "held", release)
    await wait_all_tasks_blocked()
    assert collected.names(kind) == []
    assert collected.names(CONFIG_MAPS) == ["kube-root-ca.crt"]


async def test_orphans_live_on_without_their_owner(collected: World) -> None:
    owner = make(collected, REPLICA_SETS, replica_set("owner"))
    make(collected, CONFIG_MAPS, owned("heir", owner))
    await wait_all_tasks_blocked()
    collected.writer.delete(REPLICA_SETS, "default", "owner", Deletion(propagation="Orphan"))
    await wait_all_tasks_blocked()
    assert collected.names(REPLICA_SETS) == []
    heir = collected.store.collection("", "configmaps").get("default", "heir")
    assert heir is not None
    assert "ownerReferences" not in child(heir.value, "metadata")


async def test_a_namespace_goes_with_all_that_is_in_it(collected: World) -> None:
    collected.writer.create(NAMESPACES, "", {"metadata": {"name": "old"}})
    collected.writer.create(CONFIG_MAPS, "old", {"metadata": {"name": "a"}})
    held: Object = {"metadata": {"name": "held", "finalizers": ["example.com/hold"]}}
    collected.writer.create(CONFIG_MAPS, "old", held)
    collected.writer.delete(NAMESPACES, "", "old")
    await wait_all_tasks_blocked()
    assert collected.names(CONFIG_MAPS, "old") == ["held"]
    assert "old" in collected.names(NAMESPACES, "")

    def release(value: Object) -> Object:
        child(value, "metadata")["finalizers"] = []
        return value

    collected.writer.update(CONFIG_MAPS, "old", "held", release)
    await wait_all_tasks_blocked()
    assert "old" not in collected.names(NAMESPACES, "")
