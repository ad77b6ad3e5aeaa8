from __future__ import annotations

import json

from tests.proxy.cli.admin.conftest import Hub


async def test_a_signing_key_is_rotated(hub: Hub) -> None:
    (before,) = await hub.json("keys", "list")
    assert before["state"] == "signing"
    told = await hub.ok("keys", "rotate", "--yes")
    assert told.stdout == ""
    after, old = await hub.json("keys", "list")
    assert (after["state"], old["state"], old["kid"]) == ("signing", "retiring", before["kid"])
    assert f"signs with key {after['kid']}" in told.stderr
    assert f"key {before['kid']} still verifies until {old['retires_at']}" in told.stderr
    # The folder's keys are those that a hub starts with and new relays get.
    assert hub.data.keys.load_or_make().active.kid == after["kid"]
    pins = json.loads((await hub.ok("keys", "pins")).stdout)
    assert [key["kid"] for key in pins["keys"]] == [after["kid"]]
    table = (await hub.ok("keys", "list")).stdout
    assert "retiring" in table
    assert "PRIVATE" not in table
