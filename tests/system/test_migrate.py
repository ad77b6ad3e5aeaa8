"""A hub with everything around it moves from SQLite into PostgreSQL."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.system.homes import add_agent
from tests.system.world import POD, WAYS, World, run, running_world

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(120)]


def annotate(world: World, way: str, value: str) -> None:
    done = world.kubectl(way, "annotate", "pod", POD, f"moved={value}", "--overwrite")
    assert done.code == 0, done.err


def place(event: dict[str, object]) -> tuple[object, object]:
    return event.get("epoch"), event["seq"]


def test_agents_and_relays_go_on_when_their_hub_has_moved_to_postgresql(
    tmp_path: Path, postgres_database: str
) -> None:
    with running_world(tmp_path) as world:
        assert world.hub is not None
        # An agent with a key of its own, and one that has a code and has not used it.
        keyed, made = add_agent(world, "keyed", tmp_path / "keyed", "--credential", "code")
        assert keyed.login("--code", str(made["code"])).code == 0
        assert keyed.hawse("kubeconfig").code == 0
        late, unused = add_agent(world, "late", tmp_path / "late", "--credential", "code")
        for way in WAYS:
            annotate(world, way, "before")
        argv = ["hawse", "admin", "migrate", "--to", postgres_database]
        refused = run(argv, world.operator)
        assert (refused.code, refused.err.count(b"\n")) == (1, 1)
        assert b"stop it first" in refused.err

        world.hub.stop()
        before = world.hub_audit()
        settings = world.admin("migrate", "--to", postgres_database)
        with (tmp_path / "hub.toml").open("ab") as file:
            file.write(b"\n" + settings)
        world.start_hub()
        world.wait_for_tunnel()

        for way in WAYS:
            annotate(world, way, "after")
        for home in (keyed, late):
            if home is late:
                assert late.login("--code", str(unused["code"])).code == 0
                assert late.hawse("kubeconfig").code == 0
            else:
                home.forget_tokens()
            for way in WAYS:
                assert home.kubectl(way, "get", "pods").code == 0
        world.admin("agent", "lock", "keyed")
        assert keyed.kubectl("tunnel", "get", "pods").code == 1

        after = world.hub_audit()
        assert after[: len(before)] == before
        moved, started = after[len(before) : len(before) + 2]
        assert (moved["req"]["verb"], place(moved)) == ("migrate", (None, before[-1]["seq"] + 1))  # type: ignore[index,operator]
        assert (started["kind"], place(started)) == ("hub.started", (1, 1))
        writes = [event for event in after[len(before) :] if "moved%22" in json.dumps(event)]
        assert writes
