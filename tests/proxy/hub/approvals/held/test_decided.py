"""Whether a request still counts, by the policies, teams and owners of now."""

from __future__ import annotations

import attrs
import pytest

from proxy.hub.approvals.held.decided import no_longer_asked
from proxy.hub.approvals.request import NewRequest, Request, State
from proxy.hub.approvals.view import View
from tests.fakes.requests import APPROVER
from tests.proxy.hub.approvals.held.fakes import POLICY, HeldBench

EXEC = "/api/v1/namespaces/dev/pods/a/exec?stdin=true&command=sh"


def request_of(bench: HeldBench) -> Request:
    """Return an approved request for an exec with input, as the bench's policy asks for it."""
    now = bench.hub.directory.current
    new = NewRequest(
        agent_id=now.agents_by_name["ann"].id,
        cluster_id=now.clusters_by_name["prod"].id,
        plan="p",
        effect="e",
        what="create pods/exec dev/a",
        reason="look first",
        policy="careful",
        rule="risky",
        bundle=now.bundle.id,
        approvers=(APPROVER,),
        valid_for_s=900,
        interactive=True,
        view=View(),
        method="GET",
        target=EXEC,
        upgrade=True,
    )
    return Request("a-1", new, State.APPROVED, 0, 0.0, 3600.0, decided_by=APPROVER)


def why_not(bench: HeldBench, request: Request) -> str:
    return no_longer_asked(bench.hub.directory.current, request, request.new.info, 0.0)


@pytest.mark.parametrize("bench", ["without a task"], indirect=True)
async def test_an_approval_ends_with_the_rule_as_it_was(bench: HeldBench) -> None:
    request = request_of(bench)
    assert why_not(bench, request) == ""
    # The approver was asked by a name that the rule does not have, as `owner` after a change of the owner.
    assert why_not(bench, attrs.evolve(request, decided_by="bob")) == "bob may not approve it any more"
    assert why_not(bench, attrs.evolve(request, decided_by="bob", state=State.PENDING)) == ""
    await bench.apply(POLICY.replace(", interactive: true", ""))
    assert why_not(bench, request) == "careful/risky does not allow interactive calls any more"
    exact = attrs.evolve(request, new=attrs.evolve(request.new, interactive=False))
    assert why_not(bench, exact) == ""
