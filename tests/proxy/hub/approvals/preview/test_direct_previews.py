"""Previews of a cluster in direct mode."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proxy.hub.approvals.preview.previewer import Previewer
from proxy.hub.approvals.preview.shapes import Preview, PreviewRefused
from proxy.hub.approvals.view import Change
from proxy.kubernetes.statement import STATEMENT_TARGET
from proxy.message.failure import Failure, Processed, StreamCode
from proxy.message.relay_marks import failure_header
from tests.proxy.hub.approvals.preview.clusters import Cluster
from tests.proxy.hub.calls.bench import open_bench
from tests.proxy.hub.relays.direct_relays import close_kept, enrol_far
from tests.proxy.relay.apiserver import Connection, answer, headers, running

WEB = "/apis/apps/v1/namespaces/shop/deployments/web"


@pytest.mark.parametrize("closes", [False, True], ids=["keeps connections", "closes them"])
async def test_a_write_is_tried_out(tmp_path: Path, closes: bool) -> None:
    heads: list[bytes] = []
    refusals = [Failure(StreamCode.UNAUTHENTICATED, Processed.NO, "expired")]

    async def relay(connection: Connection) -> None:
        while head := await connection.request():
            if STATEMENT_TARGET in head:
                await connection.send(answer(404))
                continue
            heads.append(head)
            length = int([*headers(head, "content-length"), "0"][0])
            while len(connection.received) - connection._parsed < length:
                assert await connection.more()
            connection._parsed += length
            if refusals:
                name, value = failure_header(refusals.pop())
                await connection.send(answer(401, b"", name + b": " + value))
                continue
            spec = {"replicas": 0 if b"dryRun=All" in head else 3}
            said = json.dumps({"kind": "Deployment", "metadata": {"name": "web"}, "spec": spec}).encode()
            await connection.send(answer(200, said))
            if closes:
                return

    async with open_bench(tmp_path, with_task=False) as bench, running(relay, tmp_path) as server:
        await enrol_far(bench.directory, server.access.port, (tmp_path / "ca.crt").read_text())
        cluster = Cluster(bench, Previewer(bench.calls))
        for _ in range(3):
            made = await cluster.preview(f"PATCH {WEB}", {"spec": {"replicas": 0}}, cluster="far")
            assert isinstance(made, Preview)
            assert made.view.changes == (Change("spec.replicas", "3", "0"),)
        await close_kept(bench.calls.direct)
        events = [event for event in await cluster.trail() if event["phase"] == "complete"]
    assert len(heads) == 3 * 3 + 1
    assert all(headers(head, "authorization") for head in heads)
    assert [event["relay"] for event in events] == [{"instance": "direct"}] * 9


async def test_a_relay_that_cannot_be_dialled_answers_the_agent(tmp_path: Path) -> None:
    async with open_bench(tmp_path, with_task=False) as bench:
        await enrol_far(bench.directory, 1, None)
        cluster = Cluster(bench, Previewer(bench.calls))
        refused = await cluster.preview(f"PATCH {WEB}", {}, cluster="far")
        assert isinstance(refused, PreviewRefused)
        assert refused.status == 503
        assert 'cluster "far" is offline' in refused.message
