"""A hub with everything around it moves from SQLite into PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.homes import add_agent
from tests.system.world import POD, WAYS, running_world

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(120)]


def test_agents_and_relays_go_on_when_their_hub_has_moved_to_postgresql(
    tmp_path: Path, postgres_database: str
) -> None:
    with running_world(tmp_path) as world:
        # Beside the world's agent, which has an API key: a key of its own, and a code that is not used yet.
        keyed, made = add_agent(world, "keyed", tmp_path / "keyed", "--credential", "code")
        assert keyed.login("--code", str(made["code"])).code == 0
        coded, unused = add_agent(world, "coded", tmp_path / "coded", "--credential", "code")
        assert world.kubectl("tunnel", "annotate", "pod", POD, "moved=no").code == 0
        assert world.hub is not None
        world.hub.stop()
        before = world.audit_rows()
        settings = world.admin("migrate", "--to", postgres_database)
        with (tmp_path / "hub.toml").open("ab") as file:
            file.write(b"\n" + settings)
        world.start_hub()
        world.wait_for_tunnel()

        for way in WAYS:
            assert world.kubectl(way, "annotate", "pod", POD, f"moved={way}", "--overwrite").code == 0
        assert coded.login("--code", str(unused["code"])).code == 0
        assert keyed.hawse("kubeconfig").code == 0
        assert keyed.kubectl("tunnel", "get", "pods").code == 0

        rows = world.audit_rows()
        assert rows[: len(before)] == before
        new = rows[len(before) :]
        assert [(row["kind"], row.get("epoch"), row["seq"]) for row in new[:2]] == [
            ("admin.action", None, before[-1]["seq"] + 1),
            ("hub.started", 1, 1),
        ]
        writes = [row["phase"] for row in new if row.get("req", {}).get("verb") == "patch"]
        assert writes == ["intent", "complete"] * 2
