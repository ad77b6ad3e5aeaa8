"""Previews of a cluster whose relay has its tunnel to another hub."""

from __future__ import annotations

from pathlib import Path

import trio

from proxy.hub.approvals.preview.previewer import Previewer
from proxy.hub.approvals.view import Change
from tests.proxy.hub.approvals.preview.clusters import Cluster
from tests.proxy.hub.calls.bench import open_bench
from tests.proxy.hub.hop.bench import second_hub

WEB = "/apis/apps/v1/namespaces/shop/deployments/web"


async def test_a_write_is_tried_out_and_recorded_as_if_the_relay_were_here(tmp_path: Path) -> None:
    async with open_bench(tmp_path, with_task=False) as bench, trio.open_nursery() as nursery:
        cluster = Cluster(bench, Previewer(bench.calls))
        cluster.answer = lambda asked: (
            200,
            {"kind": "Deployment", "spec": {"replicas": 0 if asked.dry else 3}},
        )
        async with second_hub(bench, "far-away") as relays:
            [(_, relay)] = relays.values()
            nursery.start_soon(cluster.serve, relay)
            made = await cluster.made(f"PATCH {WEB}", {"spec": {"replicas": 0}})
            assert made.view.changes == (Change("spec.replicas", "3", "0"),)
            events = [event for event in await cluster.trail() if event["phase"] == "complete"]
            nursery.cancel_scope.cancel()
    assert len(cluster.asked) == 3
    assert [event["relay"]["instance"] for event in events] == ["far-away"] * 3
