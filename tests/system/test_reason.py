"""The reason that an agent states, on its way: operators see it, and no cluster gets it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.clients.mcp.client import running
from tests.fakes.apiserver import Exchange
from tests.system.chain import Chain
from tests.system.connecting import connected
from tests.system.waiting import wait_until
from tests.system.world import AGENT, NAMESPACE, POD, WAYS, World, run

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(120)]

REASON = "der Pod hängt: \N{HEBREW LETTER ALEF}"
HEADER = f"Hawse-Reason: {REASON}"
SMALL_SERVER = Path(__file__).parents[1] / "clients" / "mcp" / "small_server.py"


def claimed(world: World, mark: str) -> list[object]:
    """Return what the events about a target with this mark claim."""
    rows = world.audit_rows("--agent", AGENT)
    found = [row for row in rows if mark in json.dumps(row.get("req"))]
    return [row["client"].get("claimed_reason") for row in found]


@pytest.mark.parametrize("way", WAYS)
def test_a_reason_is_recorded_and_goes_no_further(chain: Chain, way: str) -> None:
    path, mark = chain.path(lambda exchange: exchange.answer())
    # The backend behind a proxy path gets all other headers of the client.
    backend = chain.server.on(lambda exchange: exchange.answer())
    for target in (path, f"/api/v1/namespaces/work/pods/{backend}/proxy/x"):
        answer = chain.client(way).get(target, HEADER, "X-Other: 1")
        assert answer.status == 200
    exchanges: list[Exchange] = [*chain.server.seen(mark), *chain.server.seen(backend)]
    assert len(exchanges) == 2
    assert exchanges[1].header("x-other") == ["1"]
    assert b"reason" not in b"".join(exchange.head.lower() for exchange in exchanges)
    wait_until(lambda: all(claimed(chain.world, each) for each in (mark, backend)))
    for each in (mark, backend):
        assert set(claimed(chain.world, each)) == {REASON}


def test_a_text_that_is_no_reason_is_refused(chain: Chain) -> None:
    path, mark = chain.path(lambda exchange: exchange.answer())
    answer = chain.client("tunnel").get(path, f"Hawse-Reason: {'x' * 201}")
    assert answer.status == 400
    assert json.loads(answer.body)["message"] == (
        "the header Hawse-Reason has 201 characters, 200 is the limit"
    )
    assert chain.server.seen(mark) == []


def test_operators_see_the_reason_of_a_command(world: World) -> None:
    with connected(world.agent, "tunnel", "--reason", REASON) as connect:
        assert connect.kubectl("get", "pod", POD, "-o", "name").code == 0
    wait_until(lambda: REASON in claimed(world, POD))
    eid = next(
        str(row["eid"])
        for row in reversed(world.audit_rows("--agent", AGENT))
        if row["client"].get("claimed_reason") == REASON
    )
    shown = world.hawse("audit", "show", eid, environment=world.operator).decode()
    assert "claimed   der Pod hängt: \\u05d0" in shown.splitlines()


@pytest.mark.parametrize(
    ("arguments", "variable", "said"),
    [
        (["--reason", "a\nb"], "", "--reason has a control character"),
        ([], "x" * 201, "HAWSE_REASON has 201 characters, 200 is the limit"),
    ],
)
def test_a_reason_that_the_hub_would_refuse_is_refused_at_the_start(
    world: World, arguments: list[str], variable: str, said: str
) -> None:
    done = run(["hawse", "connect", *arguments, "--", "true"], {**world.agent, "HAWSE_REASON": variable})
    assert done.code == 1
    assert said in done.err.decode()


def test_a_server_on_standard_input_and_output_runs_behind_it(world: World, tmp_path: Path) -> None:
    """The smaller form of `make test-mcp`."""
    argv = ["hawse", "connect", "tunnel", "--", sys.executable, str(SMALL_SERVER)]
    environment = {**world.agent, "HAWSE_REASON": REASON}
    with running(argv, environment, tmp_path / "log") as client:
        assert client.tools() == ["kubectl"]
        listed = client.call("kubectl", argv=["get", "pod", POD, f"--namespace={NAMESPACE}", "-o", "name"])
        assert (listed.text, listed.failed) == (f"pod/{POD}\n", False)
        world.admin("agent", "lock", AGENT)
        try:
            refused = client.call("kubectl", argv=["get", "pods", f"--namespace={NAMESPACE}"])
        finally:
            world.admin("agent", "unlock", AGENT)
        assert refused.failed
        assert f"agent:{AGENT} is locked" in refused.text
        again = client.call("kubectl", argv=["get", "pod", POD, f"--namespace={NAMESPACE}", "-o", "name"])
        assert (again.text, again.failed) == (f"pod/{POD}\n", False)
